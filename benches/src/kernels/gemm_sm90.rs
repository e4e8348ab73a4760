use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_kernels::{
    abi,
    gemm_sm90::{
        BLOCK_M,
        launch::{BAND, Element, MapShape, choose, tiles},
    },
};

use super::Kernel;
use crate::{
    prepared::Prepared,
    problem::{Gemm, GemmWeights, Problem},
    random::Kind,
};

/// The kernel for many rows. Buffers: `a`, `w`, `out`, and `a_scales`, `w_scales` of bytes.
pub struct Hopper;

impl<D: Driver> Kernel<D> for Hopper {
    fn name(&self) -> &'static str {
        "gemm_sm90"
    }

    fn takes(&self, problem: &Problem, info: &GpuInfo) -> bool {
        let Problem::Gemm(Gemm { weights, m, n, k }) = problem else { return false };
        let line = match weights {
            GemmWeights::Bf16 => 8,
            GemmWeights::Int8 => 16,
            GemmWeights::Int4 => return false,
        };
        info.compute_capability == (9, 0) && *m > 64 && n.is_multiple_of(8) && k.is_multiple_of(line)
    }

    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>> {
        let mut prepared = Prepared::new(driver);
        let Problem::Gemm(Gemm { weights, m, n, k }) = *problem else { return Ok(prepared) };
        let (element, kind) = match weights {
            GemmWeights::Int8 => (Element::Int8, Kind::I8),
            GemmWeights::Bf16 | GemmWeights::Int4 => (Element::Bf16, Kind::Bf16),
        };
        let a = prepared.random("a", kind, m * k, seed)?;
        let w = prepared.random("w", kind, n * k, seed)?;
        let out = prepared.output("out", m * n * 2)?;
        let (a_scales, w_scales) = match element {
            Element::Int8 => (
                prepared.random("a_scales", Kind::Scale, m, seed)?,
                prepared.random("w_scales", Kind::Scale, n, seed)?,
            ),
            Element::Bf16 => (0, 0),
        };
        let (m, n, k) = (m as u32, n as u32, k as u32);
        let multiprocessors = driver.info().multiprocessors;
        let (tile, spec) = choose(element, m, n, multiprocessors);
        let bytes = element.bytes();
        let params = abi::GemmSm90 {
            a_map: driver.tensor_map(&MapShape::new(bytes, m, k, BLOCK_M).at(a))?,
            w_map: driver.tensor_map(&MapShape::new(bytes, n, k, tile.block_n).at(w))?,
            out_map: driver.tensor_map(&MapShape::new(2, m, n, 64).at(out))?,
            a_scales,
            w_scales,
            m,
            n,
            k,
            band: BAND,
            ..abi::GemmSm90::default()
        };
        let blocks = tiles(tile, m, n).min(u64::from(multiprocessors)) as u32;
        prepared.launch(spec, [blocks, 1, 1], &params);
        Ok(prepared)
    }
}
