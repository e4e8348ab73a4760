use tilewright_host::gpu::Driver;
use tilewright_reference::{
    Floor, SampleSettings, argmax as definition_of_argmax, bf16_bits, rms_norm as definition_of_rms_norm,
    sample_candidates, silu_mul as definition_of_silu_mul,
};

use super::{Extent, Failure, compare_bf16, finite_bf16, inputs};
use crate::{
    kernels::{EPS, sample_row},
    prepared::Prepared,
    problem::Rows,
};

/// Of a draw and its filters, by what f32 sums of probabilities are off.
const TOLERANCE: f64 = 1e-4;

/// `out` alone: what is timed runs many times, and each run adds `x` to the residual.
pub(super) fn rms_norm<D: Driver>(
    prepared: &Prepared<'_, D>,
    shape: &Rows,
    extent: Extent,
) -> Result<(), Failure> {
    let cols = shape.cols;
    let out = finite_bf16(prepared, "out")?;
    let weight = inputs(prepared, "weight", 0..cols)?;
    for row in extent.of(shape.rows) {
        let range = row * cols..(row + 1) * cols;
        let (x, residual) =
            (inputs(prepared, "x", range.clone())?, inputs(prepared, "residual", range.clone())?);
        let truth = definition_of_rms_norm::<f64>(&x, Some(&residual), &weight, EPS);
        let plain = definition_of_rms_norm::<f32>(&x, Some(&residual), &weight, EPS);
        compare_bf16(&format!("row {row}"), &out[range], &truth.out, &plain.out, Floor::BF16)?;
    }
    Ok(())
}

pub(super) fn silu_mul<D: Driver>(
    prepared: &Prepared<'_, D>,
    shape: &Rows,
    extent: Extent,
) -> Result<(), Failure> {
    let cols = shape.cols;
    let out = finite_bf16(prepared, "out")?;
    for row in extent.of(shape.rows) {
        let gate_up = inputs(prepared, "gate_up", 2 * row * cols..2 * (row + 1) * cols)?;
        let truth = definition_of_silu_mul::<f64>(&gate_up, cols);
        let plain = definition_of_silu_mul::<f32>(&gate_up, cols);
        compare_bf16(&format!("row {row}"), &out[row * cols..(row + 1) * cols], &truth, &plain, Floor::BF16)?;
    }
    Ok(())
}

pub(super) fn gather_rows<D: Driver>(
    prepared: &Prepared<'_, D>,
    shape: &Rows,
    extent: Extent,
) -> Result<(), Failure> {
    let cols = shape.cols;
    let (out, ids) = (finite_bf16(prepared, "out")?, prepared.integers("ids")?);
    for row in extent.of(shape.rows) {
        let first = ids[row] as usize * cols;
        let expected = inputs(prepared, "table", first..first + cols)?;
        let actual = &out[row * cols..(row + 1) * cols];
        if let Some(col) = (0..cols).find(|&col| actual[col] != bf16_bits(expected[col])) {
            return Err(Failure::Wrong(format!("row {row} differs from its table row at column {col}")));
        }
    }
    Ok(())
}

pub(super) fn argmax<D: Driver>(
    prepared: &Prepared<'_, D>,
    shape: &Rows,
    extent: Extent,
) -> Result<(), Failure> {
    tokens(prepared, shape, extent, |_, logits| vec![definition_of_argmax(logits)])
}

/// A row's parameters, [`sample_row`], as the oracle takes them.
pub(crate) fn sample_settings(row: usize) -> SampleSettings {
    let params = sample_row(row);
    SampleSettings {
        temperature: f64::from(params.temperature),
        top_p: f64::from(params.top_p),
        min_p: f64::from(params.min_p),
        uniform: f64::from(params.uniform),
        top_k: params.top_k as usize,
    }
}

pub(super) fn sample<D: Driver>(
    prepared: &Prepared<'_, D>,
    shape: &Rows,
    extent: Extent,
) -> Result<(), Failure> {
    tokens(prepared, shape, extent, |row, logits| sample_candidates(logits, &sample_settings(row), TOLERANCE))
}

/// A token a row against the ones that may be.
fn tokens<D: Driver>(
    prepared: &Prepared<'_, D>,
    shape: &Rows,
    extent: Extent,
    candidates: impl Fn(usize, &[f32]) -> Vec<u32>,
) -> Result<(), Failure> {
    let bytes = prepared.bytes("out", 0, 4 * shape.rows)?;
    for row in extent.of(shape.rows) {
        let logits = inputs(prepared, "logits", row * shape.cols..(row + 1) * shape.cols)?;
        let word = &bytes[4 * row..4 * row + 4];
        let token = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        let candidates = candidates(row, &logits);
        if !candidates.contains(&token) {
            return Err(Failure::Wrong(format!("row {row}: token {token}, expected one of {candidates:?}")));
        }
    }
    Ok(())
}
