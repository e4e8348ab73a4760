//! The same products by blocks that have all of `k`.

use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi,
    gemm_few::{
        launch::{self, Follow, Follower},
        layout,
    },
    gemm_whole,
};

use super::{Case, Ends, Input, stage_k};
use crate::harness::{Failure, Harness, same_bits};

/// The last rows by blocks that have all of `k`, where there are entries: the same bits.
pub(super) fn blocks_agree<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    input: &Input,
    actual: &[u8],
) -> Result<(), Failure> {
    let splits = launch::splits(case.n as u32, case.k as u32, stage_k(case.variant().weights) as u32);
    // So many multiprocessors that a block has so many groups of rows, or fewer.
    let row_groups = 1 + case.seed as u32 % (16 / splits);
    let multiprocessors = (case.n as u32).div_ceil(layout::PIECE_ROWS).div_ceil(row_groups);
    let m = case.m.min(gemm_whole::TOKENS as usize);
    let shape = [m, case.n, case.k].map(|size| size as u32);
    let found = gemm_whole::launch::choose(case.variant().weights, shape, splits, multiprocessors);
    let Some((variant, row_groups)) = found else { return Ok(()) };
    let first = case.m - m;
    let few = Input {
        a: input.a[first * case.k..].to_vec(),
        residual: input.residual.as_ref().map(|residual| residual[first * case.out_cols()..].to_vec()),
        packed: input.packed.clone(),
        bias: input.bias.clone(),
        w: Vec::new(),
        a_scales: Vec::new(),
        w_scales: Vec::new(),
    };
    let rows = run(harness, &Case { m, ..case.clone() }, &few, &variant.one, row_groups)?;
    same_bits("rows by blocks of all of k", &actual[actual.len() - rows.len()..], &rows)
}

fn run<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    input: &Input,
    spec: &'static abi::KernelSpec,
    row_groups: u32,
) -> Result<Vec<u8>, Failure> {
    let mut arena = harness.arena();
    let packed = input.packed.as_ref().ok_or("weights aren't packed")?;
    let a = arena.input_bytes("a", &case.half().encode(&input.a))?;
    let pieces = arena.input_bytes("packed", &packed.bytes)?;
    let Ends { bias, residual, out, wider } = Ends::new(&mut arena, case, input)?;
    let mut params = abi::GemmWhole {
        a: arena.address(a),
        packed: arena.address(pieces),
        bias,
        residual,
        out: arena.address(out),
        m: case.m as u32,
        n: case.n as u32,
        k: case.k as u32,
        steps: packed.steps,
        splits: launch::splits(case.n as u32, case.k as u32, layout::TILE_K),
        row_groups,
        piece_bytes: packed.piece_bytes,
        zeros: u32::from(packed.zeros),
        scales_f16: u32::from(case.scales_f16),
        out_f32: u32::from(case.out_f32),
        silu: u32::from(case.silu),
        out_stride: (case.out_cols() + case.more_cols) as u32,
        ..Default::default()
    };
    let next = Follower::from(&params);
    params.follow(&next, 16 << 20);
    let blocks = gemm_whole::launch::blocks(params.n, row_groups);
    arena.launch(spec, [blocks, 1, 1], &params)?;
    wider.rows(&arena.all_bytes(out)?)
}
