//! From the warps' parts to the output: the merge within a block, and the join of a sequence's chunks by its last block.

use super::{
    SharedPlan, THREADS, WARPS,
    item::{Item, group},
    softmax::Softmax,
};
use crate::{
    abi::{AttentionDecode, KV_BF16},
    ptx,
};

/// Chunks whose outputs a thread of the join has on their way at once: 32 chunks take two round trips to L2.
const JOIN_AHEAD: usize = 16;

/// Part of a row's output, unnormalised, under the largest score it has seen.
#[derive(Clone, Copy)]
struct Part {
    max: f32,
    sum: f32,
    out: [f32; 4],
}

impl Part {
    const NOTHING: Part = Part { max: f32::NEG_INFINITY, sum: 0.0, out: [0.0; 4] };

    /// Adds a part whose maximum is at most `self.max`, which is that of all parts.
    #[inline(always)]
    fn add(&mut self, max: f32, sum: f32, out: [f32; 4]) {
        // Parts that saw no key are zeros under -inf, and so is the whole if none saw any; -inf less -inf would be NaN.
        let weight = if max == f32::NEG_INFINITY { 0.0 } else { ptx::ex2(max - self.max) };
        self.sum = ptx::fma(weight, sum, self.sum);
        for i in 0..4 {
            self.out[i] = ptx::fma(weight, out[i], self.out[i]);
        }
    }
}

/// Four dims of a row of the block.
#[derive(Clone, Copy)]
struct Piece {
    row: u32,
    dim: u32,
}

/// Leaves a warp's maxima, sums and outputs in shared memory, rows below `rows` alone.
///
/// # Safety
/// The whole warp calls it, when its ring is neither read nor on its way.
#[inline(always)]
pub(super) unsafe fn share<const FORMAT: u32, const STEPS: usize, const ROWS8: usize>(
    plan: &SharedPlan,
    rows: u32,
    softmax: &Softmax<STEPS, ROWS8>,
) {
    let tid = ptx::here(ptx::tid_x());
    let (warp, g, t) = (tid / 32, tid % 32 / 4, tid % 4);
    let s_part = ptx::shared_base() + warp * plan.ring_stride();
    let s_sums = ptx::shared_base() + plan.merge_sums() + warp * plan.rows * 8;
    let mut sums = [[0.0; 2]; ROWS8];
    for n in 0..ROWS8 {
        for e in 0..2 {
            // SAFETY: the warp is whole.
            sums[n][e] = unsafe { softmax.total(n, e) };
        }
    }
    for n in 0..ROWS8 {
        for e in 0..2 {
            let row = n as u32 * 8 + 2 * t + e as u32;
            if row < rows {
                // SAFETY: each lane writes its own words of the warp's part.
                unsafe {
                    if g == 0 {
                        let pair = [softmax.max[n][e].to_bits(), sums[n][e].to_bits()];
                        ptx::st_shared_v2_b32(s_sums + row * 8, pair);
                    }
                    let s_row = s_part + row * plan.merge_row() * 4;
                    for d in 0..STEPS {
                        let (first, next) = if FORMAT == KV_BF16 { (g, g + 8) } else { (2 * g, 2 * g + 1) };
                        let out = &softmax.out[d][n];
                        ptx::st_shared_b32(s_row + (d as u32 * 16 + first) * 4, out[e].to_bits());
                        ptx::st_shared_b32(s_row + (d as u32 * 16 + next) * 4, out[2 + e].to_bits());
                    }
                }
            }
        }
    }
}

/// The warps' parts of a piece, in ascending order of warp.
///
/// # Safety
/// After [`share`] and a barrier.
#[inline(always)]
unsafe fn merge(plan: &SharedPlan, piece: Piece) -> Part {
    let base = ptx::shared_base();
    let mut sums = [[f32::NEG_INFINITY, 0.0]; WARPS as usize];
    let mut whole = Part::NOTHING;
    for w in 0..WARPS {
        // SAFETY: written by `share`.
        let word =
            unsafe { ptx::ld_shared_v2_b32(base + plan.merge_sums() + (w * plan.rows + piece.row) * 8) };
        sums[w as usize] = word.map(f32::from_bits);
        whole.max = ptx::max(whole.max, sums[w as usize][0]);
    }
    for w in 0..WARPS {
        let at = w * plan.ring_stride() + (piece.row * plan.merge_row() + piece.dim) * 4;
        // SAFETY: written by `share`.
        let out = unsafe { ptx::ld_shared_v4_b32(base + at) };
        let [max, sum] = sums[w as usize];
        whole.add(max, sum, out.map(f32::from_bits));
    }
    whole
}

/// Normalises a piece and writes it to the output; zeros for a row that saw no key.
///
/// # Safety
/// The piece's row is one of the item's.
#[inline(always)]
unsafe fn write_out(p: &AttentionDecode, plan: &SharedPlan, item: &Item, piece: Piece, part: &Part) {
    let group = group(p);
    let row = item.row_tile * plan.rows + piece.row;
    let query = u64::from(item.query_start + row / group);
    let head = query * u64::from(p.q_heads) + u64::from(item.kv_head * group + row % group);
    let inverse = if part.sum == 0.0 { 0.0 } else { 1.0 / part.sum };
    let out = part.out.map(|out| out * inverse);
    let at = p.out + (head * u64::from(plan.head_dim) + u64::from(piece.dim)) * 2;
    // SAFETY: the caller's promise.
    unsafe { ptx::st_global_v2_b32(at, [ptx::pack_bf16(out[0], out[1]), ptx::pack_bf16(out[2], out[3])]) };
}

/// Merges the warps. The only chunk of a sequence goes to the output, others to the scratch.
///
/// # Safety
/// The whole block calls it, after [`share`] and a barrier.
#[inline(always)]
pub(super) unsafe fn merge_warps(p: &AttentionDecode, plan: &SharedPlan, item: &Item, rows: u32) {
    let pieces = plan.head_dim / 4;
    let slot = item.slot(p, item.chunk);
    let mut index = ptx::here(ptx::tid_x());
    while index < rows * pieces {
        let piece = Piece { row: index / pieces, dim: index % pieces * 4 };
        // SAFETY: the block's own slot of the scratch.
        unsafe {
            let part = merge(plan, piece);
            if item.chunks == 1 {
                write_out(p, plan, item, piece, &part);
            } else {
                let row = slot * u64::from(plan.rows) + u64::from(piece.row);
                let at = p.partial_out + (row * u64::from(plan.head_dim) + u64::from(piece.dim)) * 4;
                ptx::st_global_v4_b32(at, part.out.map(f32::to_bits));
                if piece.dim == 0 {
                    ptx::st_global_v2_b32(p.partial_sums + row * 8, [part.max.to_bits(), part.sum.to_bits()]);
                }
            }
        }
        index += THREADS;
    }
}

/// Whether the other blocks of the sequence's rows have all been here before this one; the last leaves the counter as it was.
///
/// # Safety
/// The whole block calls it, once, after it has written its scratch.
#[inline(always)]
pub(super) unsafe fn is_last_block(p: &AttentionDecode, plan: &SharedPlan, item: &Item) -> bool {
    let s_is_last = ptx::shared_base() + plan.is_last();
    let counter = (item.launch_seq * p.kv_heads + item.kv_head) * p.row_tiles.max(1) + item.row_tile;
    let g_counter = p.counters + u64::from(counter) * 4;
    // SAFETY: the first barrier lets thread 0 see what the block wrote, and its addition releases that; whoever comes last has
    // then acquired what all released, and the second barrier hands it to the block.
    unsafe {
        ptx::bar_sync();
        if ptx::tid_x() == 0 {
            let before = ptx::atom_add_acq_rel_gpu_u32(g_counter, 1);
            let last = before == item.chunks - 1;
            if last {
                ptx::st_global_b32(g_counter, 0);
            }
            ptx::st_shared_b32(s_is_last, last as u32);
        }
        ptx::bar_sync();
        ptx::ld_shared_b32(s_is_last) != 0
    }
}

/// Joins the chunks that the sequence's blocks left in the scratch, in ascending order, into the output.
///
/// # Safety
/// The whole block calls it, where [`is_last_block`] says so.
#[inline(always)]
pub(super) unsafe fn join_chunks(p: &AttentionDecode, plan: &SharedPlan, item: &Item, rows: u32) {
    // What the rings held has been read: [`is_last_block`] has barriers.
    let s_sums = ptx::shared_base();
    let scratch_row =
        |row: u32, chunk: u32| item.slot(p, item.first_chunk + chunk) * u64::from(plan.rows) + u64::from(row);
    let mut index = ptx::here(ptx::tid_x());
    while index < rows * item.chunks {
        let (row, chunk) = (index / item.chunks.max(1), index % item.chunks.max(1));
        // SAFETY: written by the blocks of these rows. Not by way of the read-only cache: they were written in this launch.
        unsafe {
            let sums = ptx::ld_global_v2_b32(p.partial_sums + scratch_row(row, chunk) * 8);
            ptx::st_shared_v2_b32(s_sums + index * 8, sums);
        }
        index += THREADS;
    }
    // SAFETY: the whole block is here.
    unsafe { ptx::bar_sync() };
    let pieces = plan.head_dim / 4;
    let mut index = ptx::here(ptx::tid_x());
    while index < rows * pieces {
        let piece = Piece { row: index / pieces, dim: index % pieces * 4 };
        let s_row = s_sums + piece.row * item.chunks * 8;
        let mut whole = Part::NOTHING;
        for chunk in 0..item.chunks {
            // SAFETY: written before the barrier.
            let max = unsafe { ptx::ld_shared_b32(s_row + chunk * 8) };
            whole.max = ptx::max(whole.max, f32::from_bits(max));
        }
        let mut first = 0;
        while first < item.chunks {
            let mut outs = [[0u32; 4]; JOIN_AHEAD];
            for i in 0..JOIN_AHEAD as u32 {
                if first + i < item.chunks {
                    let row = scratch_row(piece.row, first + i);
                    let at = p.partial_out + (row * u64::from(plan.head_dim) + u64::from(piece.dim)) * 4;
                    // SAFETY: as for the sums.
                    outs[i as usize] = unsafe { ptx::ld_global_v4_b32(at) };
                }
            }
            for i in 0..JOIN_AHEAD as u32 {
                if first + i < item.chunks {
                    // SAFETY: written before the barrier.
                    let sums = unsafe { ptx::ld_shared_v2_b32(s_row + (first + i) * 8) };
                    let [max, sum] = sums.map(f32::from_bits);
                    whole.add(max, sum, outs[i as usize].map(f32::from_bits));
                }
            }
            first += JOIN_AHEAD as u32;
        }
        // SAFETY: the item's own row.
        unsafe { write_out(p, plan, item, piece, &whole) };
        index += THREADS;
    }
}
