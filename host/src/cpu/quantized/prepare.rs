use super::pack::{Columns, Packed};
use crate::cpu::parallel::{self, Shared};
use crate::cpu::tensor::CpuTensor;
use crate::{ActivationBits, QuantizedPart, Tensor};

/// A packed column that no activation meets.
const PADDING: u32 = u32::MAX;
/// The largest magnitude of an activation's eight-bit code.
const LARGEST_CODE: f32 = 127.0;

/// What becomes of activations before a product.
#[derive(Default)]
pub(super) struct Input {
    /// The activation that each packed column multiplies, where it isn't its own number.
    source: Option<Vec<u32>>,
    /// The factor of each packed column's activation.
    factors: Option<Vec<f32>>,
    eight_bits: bool,
}

impl Input {
    pub(super) fn new(part: &QuantizedPart, packed: &Packed) -> Input {
        let columns = Columns::of(part);
        let eight_bits = part.activations == ActivationBits::Eight;
        // Factors and rounding write a copy; the copy needs its padding.
        let copied = eight_bits || part.pre_scale.is_some();
        let mut source = vec![PADDING; packed.padded_cols()];
        for col in 0..part.cols {
            source[columns.padded(col)] = part.permutation.as_ref().map_or(col as u32, |order| order[col]);
        }
        let in_order = source.iter().enumerate().all(|(col, &from)| from == col as u32);
        let factors = part.pre_scale.as_ref().map(|factors| {
            source.iter().map(|&from| factors.get(from as usize).copied().unwrap_or(0.0)).collect()
        });
        Input { source: (copied || !in_order).then_some(source), factors, eight_bits }
    }

    /// Whether activations are used as they are.
    pub(super) fn is_plain(&self) -> bool {
        self.source.is_none()
    }

    /// The activation that a packed column multiplies.
    pub(super) fn activation(&self, padded_col: usize) -> usize {
        self.source.as_ref().map_or(padded_col, |source| source[padded_col] as usize)
    }

    /// Fills rows of packed columns, `stride` apart.
    pub(super) fn prepare(&self, x: &CpuTensor, out: &mut [f32], stride: usize) {
        let Some(source) = &self.source else { return };
        let out = Shared::new(out);
        parallel::rows(x.rows(), stride, |rows| {
            for row in rows {
                // SAFETY: the output has as many rows; each is one task's.
                self.row(source, x.row(row), unsafe { out.slice(row * stride, stride) });
            }
        });
    }

    fn row(&self, source: &[u32], x: &[f32], out: &mut [f32]) {
        for (out, &from) in out.iter_mut().zip(source) {
            *out = if from == PADDING { 0.0 } else { x[from as usize] };
        }
        if let Some(factors) = &self.factors {
            out.iter_mut().zip(factors).for_each(|(out, factor)| *out *= factor);
        }
        if self.eight_bits {
            round_to_eight_bits(out);
        }
    }
}

/// Rounds a token's activations to the 255 multiples of its largest magnitude's 127th part.
fn round_to_eight_bits(row: &mut [f32]) {
    let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    if largest == 0.0 {
        return;
    }
    let scale = largest / LARGEST_CODE;
    // A scale that underflowed would make NaNs of what is nothing beside any other number.
    row.iter_mut().for_each(|x| *x = if scale > 0.0 { (*x / scale).round_ties_even() * scale } else { 0.0 });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_keeps_its_largest_and_rounds_the_rest() {
        let mut row = [-127.0, 0.5, 1.5, 3.4, 0.0];
        round_to_eight_bits(&mut row);
        assert_eq!(row, [-127.0, 0.0, 2.0, 3.0, 0.0]);
        let mut zeros = [0.0; 3];
        round_to_eight_bits(&mut zeros);
        assert_eq!(zeros, [0.0; 3]);
        let mut tiny = [f32::from_bits(1), 0.0];
        round_to_eight_bits(&mut tiny);
        assert!(tiny.iter().all(|x| x.is_finite()));
        let mut bad = [f32::NAN, 1.0];
        round_to_eight_bits(&mut bad);
        assert!(bad[0].is_nan());
    }
}
