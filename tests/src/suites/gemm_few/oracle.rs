//! What a product is held to.

use tilewright_reference::{Bound, Floor, GemmProblem, compare, gemm, gemm_magnitude, round_bf16};

use super::{Case, Input};
use crate::{
    harness::{Failure, bf16_values, f32_values},
    suites::mismatch,
};

/// Holds `actual` to the definition.
pub(super) fn compare_with(case: &Case, input: &Input, actual: &[u8]) -> Result<(), Failure> {
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
        stores_bf16: !case.out_f32 && !case.silu,
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
    let (floor, values) = match case.out_f32 {
        true => (Floor::F32, f32_values(actual)),
        false => (Floor::BF16, bf16_values(actual)),
    };
    let shape = [m, case.out_cols()];
    let bound = Bound::from_plain(&shape, &truth, &plain, floor.with_absolute(absolute));
    compare("gemm_few", &values, &truth, &bound).map(|_| ()).map_err(mismatch)
}

/// `silu(gate) * up (+ residual)` of rows of eight gates and eight that go with them.
fn silu_of<R: Copy + Into<f64> + FromF64>(case: &Case, input: &Input, product: &[R]) -> Vec<R> {
    let cols = case.out_cols();
    let element = |at: usize| {
        let (row, col) = (at / cols, at % cols);
        let gate: f64 = product[row * case.n + col / 8 * 16 + col % 8].into();
        let up: f64 = product[row * case.n + col / 8 * 16 + 8 + col % 8].into();
        let residual = input.residual.as_ref().map_or(0.0, |residual| f64::from(residual[at]));
        let out = R::from_f64(gate / (1.0 + (-gate).exp()) * up + residual);
        if case.out_f32 { out } else { out.rounded() }
    };
    (0..case.m * cols).map(element).collect()
}

/// What a result is computed in.
trait FromF64 {
    fn from_f64(value: f64) -> Self;
    /// As it is stored: the plain computation's rounding, none of the truth's.
    fn rounded(self) -> Self;
}

impl FromF64 for f64 {
    fn from_f64(value: f64) -> f64 {
        value
    }
    fn rounded(self) -> f64 {
        self
    }
}

impl FromF64 for f32 {
    fn from_f64(value: f64) -> f32 {
        value as f32
    }
    fn rounded(self) -> f32 {
        round_bf16(self)
    }
}
