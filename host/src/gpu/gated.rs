//! A gate's rows and those of what it gates, eight of each in turn, so that the product that has both of a pair in one thread joins them.

use super::{Driver, GpuDevice, GpuMatrix, GpuTensor, storage::require};
use crate::{HostMatrix, HostQuantized, QuantizedPart, QuantizedSpec, Result};

/// Rows of either kind that lie together.
const TURN: usize = 8;

/// `rows` rows, first a half of gates and then one of what they gate, in turn.
fn in_turn<T: Copy>(rows: &[&[T]], row_elems: usize) -> Vec<T> {
    let [gates, gated] = rows else { return Vec::new() };
    let pairs = gates.chunks(TURN * row_elems).zip(gated.chunks(TURN * row_elems));
    pairs.flat_map(|(gates, gated)| [gates, gated]).flatten().copied().collect()
}

/// The rows of a part in turn.
fn part_in_turn(part: &QuantizedPart) -> Result<QuantizedPart> {
    fn turned<T: Copy>(values: &[T], rows: usize) -> Vec<T> {
        let (gates, gated) = values.split_at(values.len() / 2);
        in_turn(&[gates, gated], values.len() / rows.max(1))
    }
    let rows = part.rows;
    QuantizedPart::new(QuantizedSpec {
        codes: turned(&part.codes, rows),
        scales: turned(&part.scales, rows),
        zeros: turned(&part.zeros, rows),
        ..QuantizedSpec::clone(part)
    })
}

impl<Dr: Driver> GpuDevice<Dr> {
    /// In turn where Hopper's products take it so; else as it comes.
    pub(super) fn make_gated(&self, weights: &HostMatrix<'_>) -> Result<GpuMatrix<Dr>> {
        match weights.parts[..] {
            [(rows, gates), (others, gated)]
                if self.is_hopper()
                    && rows == others
                    && rows > 0
                    && rows.is_multiple_of(TURN)
                    && weights.cols.is_multiple_of(8) =>
            {
                let row_bytes = weights.cols * weights.dtype.bytes();
                for bytes in [gates, gated] {
                    require(
                        bytes.len() == rows * row_bytes,
                        "matrix",
                        "bytes of a part",
                        rows * row_bytes,
                        bytes.len(),
                    )?;
                }
                let bytes = in_turn(&[gates, gated], row_bytes);
                let parts = vec![(2 * rows, &bytes[..])];
                let matrix = self.make_matrix(&HostMatrix { parts, ..weights.clone() })?;
                Ok(GpuMatrix { is_paired: true, ..matrix })
            }
            _ => self.make_matrix(weights),
        }
    }

    /// As [`GpuDevice::make_gated`]; what isn't packed isn't put in turn.
    pub(super) fn make_gated_quantized(&self, weights: &HostQuantized) -> Result<GpuMatrix<Dr>> {
        match weights.parts() {
            parts @ [part] if part.rows.is_multiple_of(2 * TURN) && self.packs(parts) => {
                let matrix = self.make_packed(&[part_in_turn(part)?])?;
                Ok(GpuMatrix { is_paired: true, ..matrix })
            }
            _ => self.make_quantized(weights),
        }
    }

    /// Generated tokens' products are joined as they are stored; those of prompts are stored and then joined.
    pub(super) fn launch_linear_gated(
        &self,
        x: &GpuTensor<Dr>,
        w: &GpuMatrix<Dr>,
        gate_up: &mut GpuTensor<Dr>,
        out: &mut GpuTensor<Dr>,
    ) -> Result<()> {
        let op = "linear_gated";
        require(2 * out.cols == w.rows, op, "columns of out", w.rows / 2, out.cols)?;
        require(gate_up.cols == w.rows, op, "columns of gate_up", w.rows, gate_up.cols)?;
        if !w.is_paired {
            self.launch_linear(x, w, None, gate_up)?;
            return self.launch_silu_mul(gate_up, out);
        }
        gate_up.resize(op, "gate_up", x.rows, x.generated)?;
        out.resize(op, "out", x.rows, x.generated)?;
        if self.gemm_gated(x, w, gate_up, out)? {
            return Ok(());
        }
        self.silu_mul_rows(gate_up, out, x.generated, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ActivationBits, CodeBits, DType};

    #[test]
    fn rows_alternate_in_eights() {
        let rows: Vec<u8> = (0..32).collect();
        let (gates, gated) = rows.split_at(16);
        let turned = in_turn(&[gates, gated], 1);
        assert_eq!(turned[..16], [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23]);
        assert_eq!(turned[16..24], [8, 9, 10, 11, 12, 13, 14, 15]);
        let part = QuantizedPart::new(QuantizedSpec {
            rows: 16,
            cols: 2,
            bits: CodeBits::Four,
            group: 1,
            codes: (0..32).map(|i| i / 2).collect(),
            scales: (0..32).map(|i| (i / 2) as f32).collect(),
            scale_type: DType::F16,
            zeros: (0..32).map(|i| i / 2).collect(),
            permutation: None,
            pre_scale: None,
            activations: ActivationBits::Full,
        });
        // Of 16 rows the halves are eights already.
        let part = part.expect("valid");
        assert_eq!(part_in_turn(&part).expect("valid"), part);
    }
}
