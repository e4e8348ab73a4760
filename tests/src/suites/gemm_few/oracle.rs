//! What products must be.

use tilewright_reference::{Bound, Floor, GemmProblem, compare, gemm, gemm_magnitude};

use super::{super::mismatch, Case, Input};
use crate::{
    harness::{Failure, f32_values},
    suites::half::Half,
};

/// The largest number of f16, and where what is rounded to it becomes infinite.
const LARGEST_F16: f64 = 65_504.0;
const INFINITE_F16: f64 = 65_520.0;

/// Compares `actual` with the product in float64.
pub(super) fn agrees(case: &Case, input: &Input, actual: &[u8]) -> Result<(), Failure> {
    let scaled = |values: &[f32], scales: &[f32]| -> Vec<f32> {
        let rows = values.chunks(case.k).zip(scales);
        rows.flat_map(|(row, scale)| row.iter().map(move |value| value * scale)).collect()
    };
    let (a, w) = (scaled(&input.a, &input.a_scales), scaled(&input.w, &input.w_scales));
    let (m, n, k) = (case.m, case.n, case.k);
    let fused = GemmProblem {
        a: &a,
        w: &w,
        bias: input.bias.as_deref(),
        residual: if case.silu { None } else { input.residual.as_deref() },
        m,
        n,
        k,
        stores_bf16: false,
    };
    let (mut truth, mut plain) = (gemm::<f64>(&fused), gemm::<f32>(&fused));
    // A tensor core truncates where it adds: about a unit in the last place of f32 of the largest term for every 16 of k.
    let largest = gemm_magnitude(&fused).into_iter().fold(0.0, f64::max);
    let mut absolute = largest * (k.div_ceil(16) + 1) as f64 / f64::from(1 << 23);
    if case.silu {
        // An error of a gate goes on with a slope of 1.1 at most, times what goes with it, and the other way round.
        absolute *= 2.2 * truth.iter().fold(1.0, |most: f64, value| most.max(value.abs()));
        truth = silu_of(case, input, &truth);
        plain = silu_of(case, input, &plain);
    }
    let half = case.half();
    let (floor, mut values) = match case.out_f32 {
        true => (Floor::F32, f32_values(actual)),
        false => (half.floor(), half.decode(actual)),
    };
    let floor = floor.with_absolute(absolute);
    if !case.out_f32 {
        plain.iter_mut().for_each(|value| *value = half.round(*value));
        if half == Half::F16 {
            take_out_infinite(&mut truth, &mut plain, &mut values, floor)?;
        }
    }
    let bound = Bound::from_plain(&[m, case.out_cols()], &truth, &plain, floor);
    compare("gemm_few", &values, &truth, &bound).map(|_| ()).map_err(mismatch)
}

/// Elements that f16 doesn't hold are infinite, of their sign; about those so near to the limit that rounding decides nothing is said. Of both, what
/// remains to be compared are zeros.
fn take_out_infinite(
    truth: &mut [f64],
    plain: &mut [f32],
    values: &mut [f32],
    floor: Floor,
) -> Result<(), Failure> {
    for at in 0..truth.len() {
        let (magnitude, found) = (truth[at].abs(), values[at]);
        let margin = floor.absolute + floor.relative * magnitude;
        if magnitude + margin <= LARGEST_F16 {
            continue;
        }
        let is_infinite = found.is_infinite() && (found > 0.0) == (truth[at] > 0.0);
        if magnitude - margin >= INFINITE_F16 && !is_infinite {
            return Err(format!("element {at}: {found}, expected infinite for {}", truth[at]));
        }
        (truth[at], plain[at], values[at]) = (0.0, 0.0, 0.0);
    }
    Ok(())
}

/// `silu(gate) * up (+ residual)` of rows of eight gates and eight that go with them.
fn silu_of<R: Copy + Into<f64> + FromF64>(case: &Case, input: &Input, product: &[R]) -> Vec<R> {
    let cols = case.out_cols();
    let element = |at: usize| {
        let (row, col) = (at / cols, at % cols);
        let gate: f64 = product[row * case.n + col / 8 * 16 + col % 8].into();
        let up: f64 = product[row * case.n + col / 8 * 16 + 8 + col % 8].into();
        let residual = input.residual.as_ref().map_or(0.0, |residual| f64::from(residual[at]));
        R::from_f64(gate / (1.0 + (-gate).exp()) * up + residual)
    };
    (0..case.m * cols).map(element).collect()
}

/// What a result is computed in.
trait FromF64 {
    fn from_f64(value: f64) -> Self;
}

impl FromF64 for f64 {
    fn from_f64(value: f64) -> f64 {
        value
    }
}

impl FromF64 for f32 {
    fn from_f64(value: f64) -> f32 {
        value as f32
    }
}
