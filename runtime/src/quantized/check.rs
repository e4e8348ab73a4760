use rayon::prelude::*;
use serde::Serialize;
use tilewright_host::{ActivationBits, Batch, DType, Device, HostMatrix, HostQuantized, Outputs};

use crate::Result;

/// Products of f32 are off by at most this part of the sum of their terms' magnitudes: sums of 256 terms, then of their totals.
const F32_PART: f64 = 1e-5;
/// As [`F32_PART`] where weights are rounded to bf16, twice at most.
const BF16_PART: f64 = 1.0 / 256.0;
/// What rounding activations to eight bits, or not, adds where factors leave them no whole numbers: half a step of the 127.
const EIGHT_BIT_PART: f64 = 1.0 / 64.0;

/// A device's product with quantised weights, held against the plain dequantisation of the file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MatrixCheck {
    /// The matrix.
    pub name: String,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// The worst element's error over the sum of its terms' magnitudes; infinite where a value isn't a number.
    pub worst_error: f64,
    /// The output it is at.
    pub output: usize,
    /// What was expected there.
    pub expected: f64,
    /// What the device found there.
    pub found: f32,
    /// The largest error allowed.
    pub bound: f64,
    /// Whether the worst error is within the bound.
    pub passed: bool,
}

/// Multiplies one row of activations with `matrix`, which `device` made of `weights`, and compares with a sum in f64 over
/// `(code - zero) * scale`. Activations are whole numbers from -127 to 127, which bf16 and eight bits hold exactly.
///
/// # Errors
/// If the device fails. A difference is not an error but a verdict.
pub fn check_matrix<D: Device>(
    device: &D,
    name: &str,
    weights: &HostQuantized,
    matrix: &D::Matrix,
    computes_in_f32: bool,
) -> Result<MatrixCheck> {
    let x = probe(weights.cols());
    let rounds_factored = weights
        .parts()
        .iter()
        .any(|part| part.pre_scale.is_some() && part.activations == ActivationBits::Eight);
    let bound = match computes_in_f32 {
        true => F32_PART,
        false if rounds_factored => BF16_PART + EIGHT_BIT_PART,
        false => BF16_PART,
    };
    compare(name, &expected(weights, &x), &product(device, &x, matrix, weights.rows())?, x.len(), bound)
}

/// As [`check_matrix`], of weights `[rows, cols]` that aren't quantised.
pub(crate) fn check_plain<D: Device>(
    device: &D,
    name: &str,
    weights: &[f32],
    matrix: &D::Matrix,
    [rows, cols]: [usize; 2],
    exact: bool,
) -> Result<MatrixCheck> {
    let x = probe(cols);
    let sums: Vec<(f64, f64)> =
        weights.par_chunks_exact(cols).map(|row| sum(x.iter().map(|&x| f64::from(x)), row)).collect();
    let bound = if exact { F32_PART } else { BF16_PART };
    compare(name, &sums, &product(device, &x, matrix, rows)?, cols, bound)
}

/// One row of activations multiplied on the device.
fn product<D: Device>(device: &D, x: &[f32], matrix: &D::Matrix, rows: usize) -> Result<Vec<f32>> {
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    let table = device.matrix(&HostMatrix { parts: vec![(1, &bytes)], cols: x.len(), dtype: DType::F32 })?;
    let mut batch = Batch::default();
    batch.push(&[0], 0, &[0], 1, Outputs::None);
    let mut activations = device.tensor(1, x.len())?;
    device.embed(&table, &device.step(&batch)?, &mut activations)?;
    // Logits are f32 on every device, and wide products with them are asked of any.
    let mut out = device.logits(1, rows)?;
    device.project_logits(&activations, matrix, &mut out)?;
    Ok(device.read_logits(&out)?)
}

/// The element that is worst, over the magnitude of its terms.
fn compare(
    name: &str,
    expected: &[(f64, f64)],
    found: &[f32],
    cols: usize,
    bound: f64,
) -> Result<MatrixCheck> {
    let mut worst = MatrixCheck {
        name: name.to_string(),
        shape: [expected.len(), cols],
        worst_error: 0.0,
        output: 0,
        expected: 0.0,
        found: 0.0,
        bound,
        passed: true,
    };
    for (output, &(expected, magnitude)) in expected.iter().enumerate() {
        let found = found.get(output).copied().unwrap_or(f32::NAN);
        let difference = (f64::from(found) - expected).abs();
        let error = if difference == 0.0 { 0.0 } else { difference / magnitude };
        let error = if error.is_nan() { f64::INFINITY } else { error };
        if error > worst.worst_error || output == 0 {
            worst = MatrixCheck { worst_error: error, output, expected, found, ..worst };
        }
    }
    worst.passed = worst.worst_error <= bound;
    Ok(worst)
}

/// Activations, the first of them the largest.
fn probe(cols: usize) -> Vec<f32> {
    (0..cols).map(|col| (127 - (col * 89 % 255) as i32) as f32).collect()
}

/// The sum of the terms, and of their magnitudes.
fn sum(x: impl Iterator<Item = f64>, weights: &[f32]) -> (f64, f64) {
    let terms = x.zip(weights).map(|(x, &weight)| x * f64::from(weight));
    terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
}

/// For each output the sum of its terms, and of their magnitudes.
fn expected(weights: &HostQuantized, x: &[f32]) -> Vec<(f64, f64)> {
    let mut sums = Vec::with_capacity(weights.rows());
    for part in weights.parts() {
        let mut x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        if let Some(factors) = &part.pre_scale {
            x.iter_mut().zip(factors).for_each(|(x, &factor)| *x *= f64::from(factor));
            if part.activations == ActivationBits::Eight {
                let scale = x.iter().fold(0.0_f64, |largest, x| largest.max(x.abs())) / 127.0;
                x.iter_mut().for_each(|x| *x = (*x / scale).round_ties_even() * scale);
            }
        }
        let of_row = |weights: &mut Vec<f32>, row| {
            part.read_row(row, weights);
            sum(x.iter().copied(), weights)
        };
        sums.par_extend((0..part.rows).into_par_iter().map_init(|| vec![0.0; x.len()], of_row));
    }
    sums
}
