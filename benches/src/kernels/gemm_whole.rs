use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_kernels::{
    abi,
    gemm_few::{launch::splits, layout},
    gemm_sm90::launch::MapShape,
    gemm_whole::{
        BF16, Plan,
        launch::{blocks, row_groups},
    },
};

use super::Kernel;
use crate::{
    prepared::Prepared,
    problem::{Gemm, GemmWeights, Problem},
    random::Kind,
};

/// The kernel for the fewest rows, of bf16 weights; 4-bit ones are timed as [`super::gemm_few::Few`]. Buffers: `a`, `out`, `w`.
pub struct Whole;

/// The rows' `[m, n, k]`, splits of `k`, and groups of 16 rows a block, where the kernel takes the problem.
fn fitting(problem: &Problem, multiprocessors: u32) -> Option<([u32; 3], u32, u32)> {
    let Problem::Gemm(Gemm { weights: GemmWeights::Bf16, m, n, k }) = *problem else { return None };
    let shape = [m, n, k].map(|size| size as u32);
    let splits = splits(shape[1], shape[2], Plan::BF16.step_k);
    let row_groups = row_groups(Plan::BF16, shape, splits, multiprocessors)?;
    (n.is_multiple_of(8) && k.is_multiple_of(8)).then_some((shape, splits, row_groups))
}

impl<D: Driver> Kernel<D> for Whole {
    fn name(&self) -> &'static str {
        "gemm_whole"
    }

    fn takes(&self, problem: &Problem, info: &GpuInfo) -> bool {
        info.compute_capability == (9, 0) && fitting(problem, info.multiprocessors).is_some()
    }

    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>> {
        let mut prepared = Prepared::new(driver);
        let found = fitting(problem, driver.info().multiprocessors);
        let Some(([m, n, k], splits, row_groups)) = found else { return Ok(prepared) };
        let elements = |rows: u32, cols: u32| rows as usize * cols as usize;
        let w = prepared.random("w", Kind::Bf16, elements(n, k), seed)?;
        let product = abi::GemmWhole {
            a: prepared.random("a", Kind::Bf16, elements(m, k), seed)?,
            out: prepared.output("out", elements(m, n) * 2)?,
            m,
            n,
            k,
            steps: k.div_ceil(Plan::BF16.step_k),
            splits,
            row_groups,
            out_stride: n,
            ..Default::default()
        };
        let w_map = driver.tensor_map(&MapShape::new(2, n, k, layout::PIECE_ROWS).at(w))?;
        let params = abi::GemmWholeBf16 { w_map, product, ..Default::default() };
        prepared.launch(&BF16, [blocks(n, row_groups), 1, 1], &params);
        Ok(prepared)
    }
}
