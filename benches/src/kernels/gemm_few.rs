use tilewright_host::{
    Error, Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_kernels::{
    abi,
    gemm_few::{
        Activations, ROWS, Weights,
        launch::{choose, grid, partial_bytes, splits, tiles},
        layout,
    },
    gemm_sm90::launch::MapShape,
    gemm_whole,
};

use super::Kernel;
use crate::{
    prepared::Prepared,
    problem::{Gemm, GemmWeights, Problem},
    random::{INT4_PIECE_BYTES, Kind},
};

/// Rows up to which `k` is split.
const MOST_SPLIT: usize = 128;

/// The kernel for few rows. Buffers: `a`, `out`, `w` or of 4 bits `packed`, and `a_scales`, `w_scales` of bytes.
pub struct Few;

impl<D: Driver> Kernel<D> for Few {
    fn name(&self) -> &'static str {
        "gemm_few"
    }

    fn takes(&self, problem: &Problem, info: &GpuInfo) -> bool {
        let Problem::Gemm(Gemm { weights, m, n, k }) = problem else { return false };
        let line = if *weights == GemmWeights::Bf16 { 8 } else { 16 };
        let most = if weights.is_int4() { usize::MAX } else { 128 };
        info.compute_capability == (9, 0) && *m <= most && n.is_multiple_of(8) && k.is_multiple_of(line)
    }

    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>> {
        let mut prepared = Prepared::new(driver);
        let Problem::Gemm(Gemm { weights, m, n, k }) = *problem else { return Ok(prepared) };
        let (kernel_weights, kind, element_bytes, stage_k) = match weights {
            GemmWeights::Bf16 => (Weights::Bf16, Kind::Bf16, 2, 64),
            GemmWeights::Int8 => (Weights::Int8, Kind::I8, 1, 128),
            GemmWeights::Int4 => (int4(Activations::Bf16), Kind::Bf16, 2, layout::TILE_K),
            GemmWeights::Int4F16 => (int4(Activations::F16), Kind::F16, 2, layout::TILE_K),
        };
        if prepare_whole(&mut prepared, kernel_weights, kind, [m, n, k], seed)? {
            return Ok(prepared);
        }
        // Many rows fill the device without.
        let splits = if m > MOST_SPLIT { 1 } else { splits(n as u32, k as u32, stage_k) };
        let variant = choose(kernel_weights, m as u32, splits).ok_or_else(|| Error::Shape {
            op: "gemm_few",
            what: "weights",
            expected: "of a kind that has a kernel".to_string(),
            found: weights.name().to_string(),
        })?;
        let a = prepared.random("a", kind, m * k, seed)?;
        let out = prepared.output("out", m * n * 2)?;
        let mut params =
            abi::GemmFew { out, m: m as u32, n: n as u32, out_stride: n as u32, ..abi::GemmFew::default() };
        let (rows, n32, k32) = (variant.tile.tokens, n as u32, k as u32);
        params.a_map = driver.tensor_map(&MapShape::new(element_bytes, params.m, k32, rows).at(a))?;
        params.steps = k32.div_ceil(stage_k);
        if weights.is_int4() {
            params.packed = prepared.random("packed", Kind::Int4Piece, packed_bytes(n32, k32), seed)?;
            params.piece_bytes = INT4_PIECE_BYTES as u32;
        } else {
            let w = prepared.random("w", kind, n * k, seed)?;
            params.w_map = driver.tensor_map(&MapShape::new(element_bytes, n32, k32, ROWS).at(w))?;
        }
        if weights == GemmWeights::Int8 {
            params.a_scales = prepared.random("a_scales", Kind::Scale, m, seed)?;
            params.w_scales = prepared.random("w_scales", Kind::Scale, n, seed)?;
        }
        params.splits = splits;
        let partials = partial_bytes(variant, params.m, n32, params.splits);
        params.partials = prepared.u32s("partials", vec![0; partials / 4])?;
        let counters = tiles(variant, params.m, n32) as usize;
        params.counters = prepared.u32s("counters", vec![0; counters])?;
        let grid = grid(variant, params.m, n32, params.splits, driver.info().multiprocessors);
        prepared.launch(&variant.spec, grid, &params);
        Ok(prepared)
    }
}

/// 4-bit weights as they are timed.
fn int4(activations: Activations) -> Weights {
    Weights::Int4 { groups: 1, activations }
}

/// Bytes of 4-bit weights `[n, k]`.
fn packed_bytes(n: u32, k: u32) -> usize {
    (n.div_ceil(ROWS) * layout::PIECES * k.div_ceil(layout::TILE_K)) as usize * INT4_PIECE_BYTES
}

/// The launch whose blocks have all of `k`. Whether there is one: of 4-bit weights.
fn prepare_whole<D: Driver>(
    prepared: &mut Prepared<'_, D>,
    weights: Weights,
    activations: Kind,
    shape: [usize; 3],
    seed: u64,
) -> Result<bool> {
    let [m, n, k] = shape.map(|size| size as u32);
    let splits = splits(n, k, layout::TILE_K);
    let multiprocessors = prepared.driver().info().multiprocessors;
    let Some((kernel, row_groups)) = gemm_whole::launch::choose(weights, [m, n, k], splits, multiprocessors)
    else {
        return Ok(false);
    };
    let params = abi::GemmWhole {
        a: prepared.random("a", activations, shape[0] * shape[2], seed)?,
        packed: prepared.random("packed", Kind::Int4Piece, packed_bytes(n, k), seed)?,
        out: prepared.output("out", shape[0] * shape[1] * 2)?,
        m,
        n,
        k,
        steps: k.div_ceil(layout::TILE_K),
        splits,
        row_groups,
        piece_bytes: INT4_PIECE_BYTES as u32,
        out_stride: n,
        ..Default::default()
    };
    let blocks = gemm_whole::launch::blocks(n, row_groups);
    prepared.launch(kernel, [blocks, 1, 1], &params);
    Ok(true)
}
