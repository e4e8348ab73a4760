use tilewright_host::gpu::Driver;
use tilewright_kernels::gemm_few::layout::{self, PIECE_ROWS};
use tilewright_reference::{GemmProblem, bf16_from_bits, gemm, gemm_magnitude};

use super::{Extent, Failure, Half, compare_half, finite, inputs};
use crate::{
    prepared::Prepared,
    problem::{Gemm, GemmWeights},
    random::INT4_PIECE_BYTES,
};

/// Columns of a row that are compared at a time.
const COLS: usize = 256;

pub(super) fn check<D: Driver>(
    prepared: &Prepared<'_, D>,
    problem: &Gemm,
    extent: Extent,
) -> Result<(), Failure> {
    let Gemm { weights, m, n, k } = *problem;
    let half = if weights == GemmWeights::Int4F16 { Half::F16 } else { Half::Bf16 };
    let out = finite(prepared, "out", half)?;
    for row in extent.of(m) {
        // Of a large product the end of the row, where a tile is ragged.
        let first = if extent == Extent::All { 0 } else { n.saturating_sub(COLS) };
        let mut a = inputs(prepared, "a", row * k..(row + 1) * k)?;
        let mut w = match weights {
            GemmWeights::Int4 | GemmWeights::Int4F16 => int4(prepared, first..n, k, half)?,
            GemmWeights::Bf16 | GemmWeights::Int8 => inputs(prepared, "w", first * k..n * k)?,
        };
        if weights == GemmWeights::Int8 {
            scale(&mut a, &inputs(prepared, "a_scales", row..row + 1)?);
            scale(&mut w, &inputs(prepared, "w_scales", first..n)?);
        }
        let problem = GemmProblem {
            a: &a,
            w: &w,
            bias: None,
            residual: None,
            m: 1,
            n: n - first,
            k,
            stores_bf16: false,
        };
        let truth = gemm::<f64>(&problem);
        let plain: Vec<f32> = gemm::<f32>(&problem).into_iter().map(|value| half.round(value)).collect();
        // A tensor core truncates where it adds: about a unit in the last place of f32 of the largest term for every 16 of k. Scales
        // round their products once more.
        let largest = gemm_magnitude(&problem).into_iter().fold(0.0, f64::max);
        let absolute = largest * (k.div_ceil(16) + 1) as f64 / f64::from(1 << 23);
        let actual = &out[row * n + first..(row + 1) * n];
        let floor = half.floor().with_absolute(absolute);
        compare_half(half, &format!("row {row}"), actual, &truth, &plain, floor)?;
    }
    Ok(())
}

/// Multiplies row by row.
fn scale(values: &mut [f32], scales: &[f32]) {
    let row = values.len() / scales.len().max(1);
    for (values, scale) in values.chunks_mut(row.max(1)).zip(scales) {
        values.iter_mut().for_each(|value| *value *= scale);
    }
}

/// Rows of 4-bit weights, from the bytes of their pieces.
fn int4<D: Driver>(
    prepared: &Prepared<'_, D>,
    rows: std::ops::Range<usize>,
    k: usize,
    half: Half,
) -> Result<Vec<f32>, Failure> {
    let bytes = prepared.elements("packed")?;
    // Weights that were rounded first are the product's.
    let rounded = prepared.elements("w").is_ok();
    let steps = k.div_ceil(layout::TILE_K as usize);
    let mut w = Vec::with_capacity(rows.len() * k);
    for row in rows {
        let (of_rows, of_piece) = (row / PIECE_ROWS as usize, row as u32 % PIECE_ROWS);
        for col in 0..k {
            let piece = (of_rows * steps + col / layout::TILE_K as usize) * INT4_PIECE_BYTES;
            let byte = |at: u32| bytes.value(piece + at as usize) as u8;
            let (at, shift) = layout::nibble(of_piece, (col % layout::TILE_K as usize) as u32);
            let value = byte(at + shift / 8) >> (shift % 8) & 15;
            let at = layout::scale(0, of_piece);
            let scale = bf16_from_bits(u16::from_le_bytes([byte(at), byte(at + 1)]));
            let weight = (f32::from(value) - 8.0) * scale;
            w.push(if rounded { half.round(weight) } else { weight });
        }
    }
    Ok(w)
}
