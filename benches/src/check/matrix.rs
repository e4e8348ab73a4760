use tilewright_host::gpu::Driver;
use tilewright_reference::{Floor, GemmProblem, gemm, gemm_magnitude};

use super::{Extent, Failure, compare_bf16, finite_bf16, inputs};
use crate::{prepared::Prepared, problem::Gemm};

/// Columns of a row that are compared at a time.
const COLS: usize = 256;

pub(super) fn check<D: Driver>(
    prepared: &Prepared<'_, D>,
    problem: &Gemm,
    extent: Extent,
) -> Result<(), Failure> {
    let Gemm { m, n, k } = *problem;
    let out = finite_bf16(prepared, "out")?;
    for row in extent.of(m) {
        // Of a large product the end of the row, where a tile is ragged.
        let first = if extent == Extent::All { 0 } else { n.saturating_sub(COLS) };
        let problem = GemmProblem {
            a: &inputs(prepared, "a", row * k..(row + 1) * k)?,
            w: &inputs(prepared, "w", first * k..n * k)?,
            bias: None,
            residual: None,
            m: 1,
            n: n - first,
            k,
            stores_bf16: true,
        };
        let (truth, plain) = (gemm::<f64>(&problem), gemm::<f32>(&problem));
        // A tensor core truncates where it adds: about a unit in the last place of f32 of the largest term for every 16 of k.
        let largest = gemm_magnitude(&problem).into_iter().fold(0.0, f64::max);
        let absolute = largest * (k.div_ceil(16) + 1) as f64 / f64::from(1 << 23);
        let actual = &out[row * n + first..(row + 1) * n];
        compare_bf16(&format!("row {row}"), actual, &truth, &plain, Floor::BF16.with_absolute(absolute))?;
    }
    Ok(())
}
