use tilewright_host::{
    Error, Result,
    gpu::{Driver, GpuInfo, select_tile},
};
use tilewright_kernels::abi;

use super::Kernel;
use crate::{
    prepared::Prepared,
    problem::{Gemm, GemmWeights, Problem},
    random::Kind,
};

/// Elements of an output for which it is timed: beyond, it would be timed for the sake of it.
const MOST: usize = 4096 * 4096;

/// The tile that the device itself would choose. Buffers: `a`, `w`, `out`.
pub struct Baseline;

impl<D: Driver> Kernel<D> for Baseline {
    fn name(&self) -> &'static str {
        "gemm_bf16"
    }

    fn takes(&self, problem: &Problem, _: &GpuInfo) -> bool {
        matches!(problem, Problem::Gemm(p) if p.weights == GemmWeights::Bf16 && p.k.is_multiple_of(8) && p.m * p.n <= MOST)
    }

    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>> {
        let mut prepared = Prepared::new(driver);
        let Problem::Gemm(Gemm { m, n, k, .. }) = *problem else { return Ok(prepared) };
        let params = abi::Gemm {
            a: prepared.random("a", Kind::Bf16, m * k, seed)?,
            w: prepared.random("w", Kind::Bf16, n * k, seed)?,
            out: prepared.output("out", m * n * 2)?,
            m: m as u32,
            n: n as u32,
            k: k as u32,
            ..abi::Gemm::default()
        };
        let tile = select_tile(params.m, params.n, driver.info().multiprocessors).ok_or_else(|| {
            let (expected, found) = ("fewer blocks than a grid holds".to_string(), m.to_string());
            Error::Shape { op: "gemm_bf16", what: "m", expected, found }
        })?;
        let grid = [params.n.div_ceil(tile.block_n), params.m.div_ceil(tile.block_m), 1];
        prepared.launch(tile.spec, grid, &params);
        Ok(prepared)
    }
}
