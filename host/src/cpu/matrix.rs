use half::f16;
use rayon::prelude::*;

use super::buffer::Buffer;
use super::isa::{LANES, bf16_lane};
use super::quantized::Packed;
use super::{Precision, shape, tensor::round_to_bf16};
use crate::{DType, HostMatrix, Result};

/// A weight matrix `[n, k]` in panels of sixteen rows, `[n / 16][k][16]`: one vector load gives one column of a panel, and a
/// product streams through memory in order. Rows past the last are zeros.
pub struct CpuMatrix {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) panels: Panels,
}

/// A matrix's elements, as the checkpoint has them: widening in registers is cheaper than the memory traffic of f32.
pub(super) enum Panels {
    /// Each group of sixteen in the order of [`bf16_lane`].
    Bf16(Buffer<u16>),
    F16(Buffer<u16>),
    F32(Buffer<f32>),
    /// In panels of their own kind, part by part; products with them are in [`super::quantized`].
    Quantized(Vec<Packed>),
}

impl CpuMatrix {
    pub(super) fn new(weights: &HostMatrix<'_>, precision: Precision) -> Result<Self> {
        let (rows, cols, dtype) = (weights.rows(), weights.cols, weights.dtype);
        let mut sources = Vec::with_capacity(rows);
        for &(part_rows, bytes) in &weights.parts {
            let row_bytes = cols.saturating_mul(dtype.bytes());
            if bytes.len() != part_rows.saturating_mul(row_bytes) {
                let expected = format!("{part_rows} * {row_bytes} bytes");
                return Err(shape("matrix", "parts", expected, format!("{} bytes", bytes.len())));
            }
            sources.extend(bytes.chunks_exact(row_bytes.max(1)));
        }
        let size = [rows.div_ceil(LANES), cols, LANES];
        let purpose = "a weight matrix";
        let panels = match (dtype, precision) {
            (DType::Bf16, _) => Panels::Bf16(pack(
                &sources,
                cols,
                Buffer::zeroed(&size, purpose)?,
                bf16_lane,
                u16::from_le_bytes,
            )),
            (DType::F16, Precision::F32) => Panels::F16(pack(
                &sources,
                cols,
                Buffer::zeroed(&size, purpose)?,
                in_order,
                u16::from_le_bytes,
            )),
            (DType::F32, Precision::F32) => Panels::F32(pack(
                &sources,
                cols,
                Buffer::zeroed(&size, purpose)?,
                in_order,
                f32::from_le_bytes,
            )),
            (DType::F16, Precision::Bf16) => {
                Panels::Bf16(pack(&sources, cols, Buffer::zeroed(&size, purpose)?, bf16_lane, |bytes| {
                    bf16_bits(f16::from_le_bytes(bytes).to_f32())
                }))
            }
            (DType::F32, Precision::Bf16) => {
                Panels::Bf16(pack(&sources, cols, Buffer::zeroed(&size, purpose)?, bf16_lane, |bytes| {
                    bf16_bits(f32::from_le_bytes(bytes))
                }))
            }
        };
        Ok(CpuMatrix { rows, cols, panels })
    }

    /// Copies a row, widened.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        let panel = row / LANES * self.cols * LANES;
        let lane = row % LANES;
        let steps = out.iter_mut().take(self.cols).enumerate();
        match &self.panels {
            Panels::Bf16(bits) => {
                let at = panel + bf16_lane(lane);
                steps.for_each(|(k, x)| *x = f32::from_bits(u32::from(bits[at + k * LANES]) << 16));
            }
            Panels::F16(bits) => {
                steps.for_each(|(k, x)| *x = f16::from_bits(bits[panel + lane + k * LANES]).to_f32());
            }
            Panels::F32(values) => steps.for_each(|(k, x)| *x = values[panel + lane + k * LANES]),
            Panels::Quantized(parts) => {
                if let Some(part) = parts.iter().find(|part| part.output_rows().contains(&row)) {
                    part.read_row(row - part.output_rows().start, &mut out[..self.cols]);
                }
            }
        }
    }

    /// Bytes that a product reads.
    pub(super) fn bytes(&self) -> usize {
        match &self.panels {
            Panels::Bf16(bits) | Panels::F16(bits) => bits.bytes(),
            Panels::F32(values) => values.bytes(),
            Panels::Quantized(parts) => parts.iter().map(Packed::bytes).sum(),
        }
    }
}

/// A matrix of rows of `cols` floats.
pub(super) fn of_floats(values: &[f32], cols: usize, precision: Precision) -> Result<CpuMatrix> {
    let parts = vec![(values.len() / cols.max(1), bytemuck::cast_slice(values))];
    CpuMatrix::new(&HostMatrix { parts, cols, dtype: DType::F32 }, precision)
}

fn in_order(lane: usize) -> usize {
    lane
}

fn bf16_bits(x: f32) -> u16 {
    (round_to_bf16(x).to_bits() >> 16) as u16
}

/// Fills the panels from rows of `SIZE`-byte elements, which need not be aligned.
fn pack<T: Send, const SIZE: usize>(
    sources: &[&[u8]],
    cols: usize,
    mut panels: Buffer<T>,
    lane_order: impl Fn(usize) -> usize + Sync,
    element: impl Fn([u8; SIZE]) -> T + Sync,
) -> Buffer<T> {
    if cols > 0 {
        panels.par_chunks_mut(cols * LANES).zip(sources.par_chunks(LANES)).for_each(|(panel, rows)| {
            for (lane, row) in rows.iter().enumerate() {
                let at = lane_order(lane);
                for (group, &bytes) in panel.chunks_exact_mut(LANES).zip(row.as_chunks::<SIZE>().0) {
                    group[at] = element(bytes);
                }
            }
        });
    }
    panels
}
