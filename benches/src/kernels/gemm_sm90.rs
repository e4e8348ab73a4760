use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_kernels::{
    abi,
    dequantize_int4::{DEQUANTIZE_F16, DEQUANTIZE_INT4},
    gemm_few::{ROWS, layout},
    gemm_sm90::{
        BLOCK_M,
        launch::{BAND, Element, MapShape, choose, tiles},
    },
};

use super::Kernel;
use crate::{
    prepared::Prepared,
    problem::{Gemm, GemmWeights, Problem},
    random::{INT4_PIECE_BYTES, Kind},
};

/// The kernel for many rows. Buffers: `a`, `w`, `out`, and `a_scales`, `w_scales` of bytes; `packed` of 4 bits, which become `w` first.
pub struct Hopper;

impl<D: Driver> Kernel<D> for Hopper {
    fn name(&self) -> &'static str {
        "gemm_sm90"
    }

    fn takes(&self, problem: &Problem, info: &GpuInfo) -> bool {
        let Problem::Gemm(Gemm { weights, m, n, k }) = problem else { return false };
        let line = match weights {
            GemmWeights::Bf16 | GemmWeights::Int4 | GemmWeights::Int4F16 => 8,
            GemmWeights::Int8 => 16,
        };
        info.compute_capability == (9, 0) && *m > 64 && n.is_multiple_of(8) && k.is_multiple_of(line)
    }

    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>> {
        let mut prepared = Prepared::new(driver);
        let Problem::Gemm(Gemm { weights, m, n, k }) = *problem else { return Ok(prepared) };
        let (element, kind) = match weights {
            GemmWeights::Int8 => (Element::Int8, Kind::I8),
            GemmWeights::Int4F16 => (Element::F16, Kind::F16),
            GemmWeights::Bf16 | GemmWeights::Int4 => (Element::Bf16, Kind::Bf16),
        };
        let a = prepared.random("a", kind, m * k, seed)?;
        let w = match weights {
            GemmWeights::Int4 => dequantized(&mut prepared, &DEQUANTIZE_INT4, [n, k], seed)?,
            GemmWeights::Int4F16 => dequantized(&mut prepared, &DEQUANTIZE_F16, [n, k], seed)?,
            GemmWeights::Bf16 | GemmWeights::Int8 => prepared.random("w", kind, n * k, seed)?,
        };
        let out = prepared.output("out", m * n * 2)?;
        let (a_scales, w_scales) = match element {
            Element::Int8 => (
                prepared.random("a_scales", Kind::Scale, m, seed)?,
                prepared.random("w_scales", Kind::Scale, n, seed)?,
            ),
            Element::Bf16 | Element::F16 => (0, 0),
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
            out_stride: n,
            ..abi::GemmSm90::default()
        };
        let blocks = tiles(tile, m, n).min(u64::from(multiprocessors)) as u32;
        prepared.launch(spec, [blocks, 1, 1], &params);
        Ok(prepared)
    }
}

/// Random 4-bit weights and the launch that makes 16 bits of each; the address of these.
fn dequantized<D: Driver>(
    prepared: &mut Prepared<'_, D>,
    spec: &'static abi::KernelSpec,
    [n, k]: [usize; 2],
    seed: u64,
) -> Result<u64> {
    let (n32, k32) = (n as u32, k as u32);
    let steps = k32.div_ceil(layout::TILE_K);
    let tiles = n32.div_ceil(ROWS) * steps;
    let packed = prepared.random(
        "packed",
        Kind::Int4Piece,
        (tiles * layout::PIECES) as usize * INT4_PIECE_BYTES,
        seed,
    )?;
    let out = prepared.output("w", n * k * 2)?;
    let piece_bytes = INT4_PIECE_BYTES as u32;
    let params = abi::DequantizeInt4 {
        packed,
        out,
        n: n32,
        k: k32,
        steps,
        piece_bytes,
        groups: 1,
        ..Default::default()
    };
    prepared.launch(spec, [tiles, 1, 1], &params);
    Ok(out)
}
