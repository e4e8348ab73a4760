//! A gate's rows and those of what it gates, eight of each in turn, so that the product that has both of a pair in one thread joins them.

use rayon::prelude::*;
use tilewright_kernels::gemm_few::pack::{Rows, TURN};

use super::{Driver, GpuDevice, GpuMatrix, GpuTensor, storage::require};
use crate::{HostMatrix, HostQuantized, Result};

/// Rows of `row_bytes`, eight gates and eight of what they gate in turn.
fn in_turn(gates: &[u8], gated: &[u8], row_bytes: usize) -> Vec<u8> {
    let turn = TURN * row_bytes;
    let mut all = vec![0; gates.len() + gated.len()];
    let turns = gates.par_chunks(turn).zip(gated.par_chunks(turn));
    all.par_chunks_mut(2 * turn).zip(turns).for_each(|(both, (gates, gated))| {
        let (of_gates, of_gated) = both.split_at_mut(gates.len());
        of_gates.copy_from_slice(gates);
        of_gated.copy_from_slice(gated);
    });
    all
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
                let bytes = in_turn(gates, gated, row_bytes);
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
                let matrix = self.make_packed(parts, Rows::InTurn)?;
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

    #[test]
    fn rows_alternate_as_packed_ones_do() {
        let rows: Vec<u8> = (0..96).collect();
        let (gates, gated) = rows.split_at(48);
        let turned = in_turn(gates, gated, 3);
        for (row, turned) in turned.chunks_exact(3).enumerate() {
            assert_eq!(turned, &rows[Rows::InTurn.source(row, 32) * 3..][..3]);
        }
    }
}
