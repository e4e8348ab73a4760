use super::pack::{Columns, Packed};
use super::{codes_a_word, place_value};
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
    /// The activation that each packed column multiplies.
    source: Vec<u32>,
    /// The factor of each packed column's activation.
    factors: Option<Vec<f32>>,
    /// The inverse of [`place_value`] in each packed column.
    places: Vec<f32>,
    eight_bits: bool,
}

impl Input {
    pub(super) fn new(part: &QuantizedPart, packed: &Packed) -> Input {
        let columns = Columns::of(part);
        let mut source = vec![PADDING; packed.padded_cols()];
        for col in 0..part.cols {
            source[columns.padded(col)] = part.permutation.as_ref().map_or(col as u32, |order| order[col]);
        }
        let factors = part.pre_scale.as_ref().map(|factors| {
            source.iter().map(|&from| factors.get(from as usize).copied().unwrap_or(0.0)).collect()
        });
        let codes = codes_a_word(part.bits);
        let places = (0..source.len()).map(|col| 1.0 / place_value(part.bits, col % codes)).collect();
        Input { source, factors, places, eight_bits: part.activations == ActivationBits::Eight }
    }

    /// The activation that a packed column multiplies.
    pub(super) fn activation(&self, padded_col: usize) -> usize {
        self.source[padded_col] as usize
    }

    /// Fills a row of [`Packed::prepared_cols`] for each of `x`: activations in the packed order divided by their place's value,
    /// zeros in the padding, then the plain sum of each segment's activations.
    pub(super) fn prepare(&self, packed: &Packed, x: &CpuTensor, out: &mut [f32]) {
        let (cols, out) = (packed.prepared_cols(), Shared::new(out));
        parallel::rows(x.rows(), cols, |rows| {
            for row in rows {
                // SAFETY: the output has as many rows; each is one task's.
                let out = unsafe { out.slice(row * cols, cols) };
                let (activations, sums) = out.split_at_mut(packed.padded_cols());
                self.row(x.row(row), activations);
                let codes = codes_a_word(packed.bits);
                for (sum, segment) in sums.iter_mut().zip(&packed.segments) {
                    *sum = total(&activations[segment.block * codes..][..segment.blocks * codes]);
                }
                activations.iter_mut().zip(&self.places).for_each(|(x, place)| *x *= place);
            }
        });
    }

    fn row(&self, x: &[f32], out: &mut [f32]) {
        for (out, &from) in out.iter_mut().zip(&self.source) {
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

/// The sum, to the last bit or nearly: zero points multiply it.
fn total(values: &[f32]) -> f32 {
    let mut sums = [0.0_f64; 4];
    for four in values.chunks(4) {
        sums.iter_mut().zip(four).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    ((sums[0] + sums[1]) + (sums[2] + sums[3])) as f32
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
