//! The same products by blocks that have all of `k`.

use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi,
    gemm_few::{
        Weights,
        launch::{Follow, Follower},
        layout,
    },
    gemm_sm90::launch::MapShape,
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
    let splits = case.splits();
    // So many multiprocessors that a block has so many groups of rows, or fewer.
    let row_groups = 1 + case.seed as u32 % (16 / splits);
    let multiprocessors = (case.n as u32).div_ceil(layout::PIECE_ROWS).div_ceil(row_groups);
    let weights = case.variant().weights;
    let of_rows = |m: usize| {
        let shape = [m, case.n, case.k].map(|size| size as u32);
        let (spec, row_groups) = match weights {
            Weights::Bf16 => {
                let plan = gemm_whole::Plan::BF16;
                (&gemm_whole::BF16, gemm_whole::launch::row_groups(plan, shape, splits, multiprocessors)?)
            }
            _ => gemm_whole::launch::choose(weights, shape, splits, multiprocessors)?,
        };
        Some((m, spec, row_groups))
    };
    // As many as a block has room for, and one, which half blocks may have.
    let most = case.m.min(gemm_whole::TOKENS as usize);
    for (m, spec, row_groups) in (1..=most).rev().find_map(of_rows).into_iter().chain(of_rows(1)) {
        check_last(harness, case, input, actual, (m, spec, [splits, row_groups]))?;
    }
    Ok(())
}

/// Whether the last `m` rows are those that blocks of all of `k` make of them.
fn check_last<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    input: &Input,
    actual: &[u8],
    (m, spec, sizes): (usize, &'static abi::KernelSpec, [u32; 2]),
) -> Result<(), Failure> {
    let first = case.m - m;
    let few = Input {
        a: input.a[first * case.k..].to_vec(),
        residual: input.residual.as_ref().map(|residual| residual[first * case.out_cols()..].to_vec()),
        packed: input.packed.clone(),
        bias: input.bias.clone(),
        w: if case.variant().weights == Weights::Bf16 { input.w.clone() } else { Vec::new() },
        a_scales: Vec::new(),
        w_scales: Vec::new(),
    };
    let rows = run(harness, &Case { m, ..case.clone() }, &few, spec, sizes)?;
    same_bits("rows by blocks of all of k", &actual[actual.len() - rows.len()..], &rows)
}

fn run<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    input: &Input,
    spec: &'static abi::KernelSpec,
    [splits, row_groups]: [u32; 2],
) -> Result<Vec<u8>, Failure> {
    let mut arena = harness.arena();
    let a = arena.input_bytes("a", &case.half().encode(&input.a))?;
    let Ends { bias, residual, out, wider } = Ends::new(&mut arena, case, input)?;
    let mut params = abi::GemmWhole {
        a: arena.address(a),
        bias,
        residual,
        out: arena.address(out),
        m: case.m as u32,
        n: case.n as u32,
        k: case.k as u32,
        steps: case.k.div_ceil(stage_k(case.variant().weights)) as u32,
        splits,
        row_groups,
        out_f32: u32::from(case.out_f32),
        silu: u32::from(case.silu),
        out_stride: (case.out_cols() + case.more_cols) as u32,
        ..Default::default()
    };
    let grid = [gemm_whole::launch::blocks(params.n, row_groups), 1, 1];
    if let Some(packed) = &input.packed {
        let pieces = arena.input_bytes("packed", &packed.bytes)?;
        params.packed = arena.address(pieces);
        params.piece_bytes = packed.piece_bytes;
        params.zeros = u32::from(packed.zeros);
        params.scales_f16 = u32::from(case.scales_f16);
        let next = Follower::from(&params);
        params.follow(&next, 16 << 20);
        arena.launch(spec, grid, &params)?;
    } else {
        let w = arena.input_bf16("w", &input.w)?;
        let shape = MapShape::new(2, params.n, params.k, layout::PIECE_ROWS);
        let w_map = arena.tensor_map(&shape.at(arena.address(w)))?;
        arena.launch(spec, grid, &abi::GemmWholeBf16 { w_map, product: params, ..Default::default() })?;
    }
    wider.rows(&arena.all_bytes(out)?)
}
