//! Device code of the entries that [`super::spec`] names.

use core::f32::consts::LN_2;

use super::{BLOCK_M, STAGES, SharedPlan, THREADS, block_n};
use crate::{
    abi::AttentionPrefill,
    attention_tile::{KeyRange, Mask, PagedKv, Scale, Softmax, mask, quad_sum, scores},
    element::{Bf16, Element, F16},
    entry::kernel,
    ptx,
    tile::{fragment::load_a, swizzle, tile_bytes},
};

/// Where a block's queries are.
struct Queries {
    /// The sequence's first query row.
    first_token: u64,
    /// The block's first query within the sequence.
    first: u32,
    /// Queries of the sequence.
    len: u32,
}

impl Queries {
    /// Byte offset of query `row` of the block, head `head`.
    #[inline(always)]
    fn offset(&self, p: &AttentionPrefill, row: u32, head: u32, head_dim: u32) -> u64 {
        let token = self.first_token + u64::from(self.first + row);
        (token * u64::from(p.q_heads) + u64::from(head)) * u64::from(head_dim) * 2
    }

    #[inline(always)]
    fn has(&self, row: u32) -> bool {
        self.first + row < self.len
    }
}

/// Starts the copy of the block's queries; zeros past the sequence's last.
///
/// # Safety
/// `s_q` must be free.
#[inline(always)]
unsafe fn copy_queries<const CHUNKS: u32>(p: &AttentionPrefill, queries: &Queries, head: u32, s_q: u32) {
    for step in 0..BLOCK_M * CHUNKS / THREADS {
        let index = step * THREADS + ptx::tid_x();
        let (row, chunk) = (index / CHUNKS, index % CHUNKS);
        let inside = queries.has(row);
        let from = if inside { queries.offset(p, row, head, CHUNKS * 8) + u64::from(chunk) * 16 } else { 0 };
        // SAFETY: `inside` bounds the address.
        unsafe { ptx::cp_async_16(s_q + swizzle::<CHUNKS>(row, chunk), p.q + from, 16 * inside as u32) };
    }
}

/// Whether a warp keeps its queries in registers. Those of a larger head would leave too few for the scores: they are read from
/// shared memory at each tile.
const fn held<const HEAD_DIM: u32>() -> bool {
    HEAD_DIM <= 128
}

/// Walks the tiles of keys that the block sees.
///
/// # Safety
/// As the entries.
#[inline(always)]
unsafe fn attend<
    E: Element,
    const HEAD_DIM: u32,
    const CHUNKS: u32,
    const BLOCK_N: u32,
    const K_STEPS: usize,
    const D_TILES: usize,
    const N_TILES: usize,
>(
    p: &AttentionPrefill,
    queries: &Queries,
    kv: &PagedKv,
    limits: &Mask,
) -> Softmax<D_TILES> {
    const {
        assert!(
            HEAD_DIM == CHUNKS * 8 && HEAD_DIM as usize == K_STEPS * 16 && HEAD_DIM as usize == D_TILES * 8
        );
        assert!(BLOCK_N == block_n(HEAD_DIM) && BLOCK_N as usize == N_TILES * 8);
    }
    let base = ptx::shared_base();
    let s_q = base + SharedPlan::<HEAD_DIM>::Q;
    let s_k = base + SharedPlan::<HEAD_DIM>::K;
    let s_v = base + SharedPlan::<HEAD_DIM>::V;

    // Positions, and with them the ranges, ascend with the row: the first row's start and the last one's end bound the block.
    let first_position = limits.kv_len - queries.len as i32 + queries.first as i32;
    let last_row = (queries.len - queries.first).min(BLOCK_M) - 1;
    let first_range = limits.range(first_position);
    let last_range = limits.range(first_position + last_row as i32);
    let block = KeyRange { start: first_range.start, end: last_range.end };
    let row = ptx::warp() * 16 + ptx::lane() / 4;
    let ranges = [limits.range(first_position + row as i32), limits.range(first_position + row as i32 + 8)];

    let mut softmax = Softmax::new();
    if block.end <= block.start {
        return softmax;
    }
    let scale = Scale { scale: p.scale, softcap: p.softcap };
    let last_tile = (block.end as u32).div_ceil(BLOCK_N);
    let mut tile = block.start as u32 / BLOCK_N;
    // SAFETY: the whole block is here. A tile is read after each thread has waited for its copies and the barrier has told
    // the others; a stage is written after the barrier that follows its last reading.
    unsafe {
        let copy = |stage: u32, tile: u32| {
            let at = stage * tile_bytes(BLOCK_N, HEAD_DIM);
            kv.copy::<BLOCK_N, CHUNKS, THREADS>(s_k + at, s_v + at, tile * BLOCK_N, block);
            ptx::cp_async_commit();
        };
        copy_queries::<CHUNKS>(p, queries, ptx::ctaid_y(), s_q);
        let mut stage = 0;
        copy(stage, tile);
        ptx::cp_async_wait::<0>();
        ptx::bar_sync();
        let query = |k: usize| load_a::<CHUNKS>(s_q, ptx::warp() * 16, k as u32 * 2);
        let mut q = [[0u32; 4]; K_STEPS];
        if held::<HEAD_DIM>() {
            for k in 0..K_STEPS {
                q[k] = query(k);
            }
        }
        loop {
            if tile + 1 < last_tile {
                copy((stage + 1) % STAGES, tile + 1);
            }
            let at = stage * tile_bytes(BLOCK_N, HEAD_DIM);
            let step = |k: usize| if held::<HEAD_DIM>() { q[k] } else { query(k) };
            let mut s = scores::<E, CHUNKS, K_STEPS, N_TILES>(step, s_k + at, 0);
            scale.apply(&mut s);
            let (first_key, end_key) = ((tile * BLOCK_N) as i32, ((tile + 1) * BLOCK_N) as i32);
            if first_key < last_range.start || end_key > first_range.end {
                mask(&mut s, tile * BLOCK_N, ranges);
            }
            softmax.update(&mut s);
            softmax.add_values::<E, CHUNKS, N_TILES>(&s, s_v + at, 0);
            tile += 1;
            if tile >= last_tile {
                break;
            }
            stage = (stage + 1) % STAGES;
            // The next tile has landed for all, and all are done with the stage that the one after it goes to.
            ptx::cp_async_wait::<0>();
            ptx::bar_sync();
        }
    }
    softmax
}

/// Writes the outputs of a lane's two rows, and where asked their log-sum-exp.
///
/// # Safety
/// The whole warp calls it; the queries are the block's.
#[inline(always)]
unsafe fn store<E: Element, const HEAD_DIM: u32, const D_TILES: usize>(
    p: &AttentionPrefill,
    queries: &Queries,
    head: u32,
    softmax: &Softmax<D_TILES>,
) {
    for r in 0..2 {
        // SAFETY: the whole warp is here.
        let sum = unsafe { quad_sum(softmax.sum[r]) };
        let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        let row = ptx::warp() * 16 + ptx::lane() / 4 + r as u32 * 8;
        if !queries.has(row) {
            continue;
        }
        let g_row = p.out + queries.offset(p, row, head, HEAD_DIM) + u64::from(ptx::lane() % 4) * 4;
        for d in 0..D_TILES {
            let out = &softmax.out[d];
            let pair = E::pack(out[2 * r] * inverse, out[2 * r + 1] * inverse);
            // SAFETY: the row exists; the pair is within the head.
            unsafe { ptx::st_global_b32(g_row + d as u64 * 16, pair) };
        }
        if p.lse != 0 && ptx::lane().is_multiple_of(4) {
            // -inf for a row that saw nothing: its maximum is, and so is the logarithm of its sum.
            let lse = (softmax.max[r] + ptx::lg2(sum)) * LN_2;
            // SAFETY: a word for each head of each row.
            unsafe { ptx::st_global_b32(p.lse + queries.offset(p, row, head, 2), lse.to_bits()) };
        }
    }
}

/// # Safety
/// As the entries.
#[inline(always)]
unsafe fn prefill<
    E: Element,
    const HEAD_DIM: u32,
    const CHUNKS: u32,
    const BLOCK_N: u32,
    const K_STEPS: usize,
    const D_TILES: usize,
    const N_TILES: usize,
>(
    p: &AttentionPrefill,
) {
    let (block, head) = (ptx::ctaid_x(), ptx::ctaid_y());
    // SAFETY: the launch's own indices, into arrays of the documented lengths.
    let (seq, first_token, end_token, kv_len, first_row) = unsafe {
        let seq = u64::from(ptx::ld_global_nc_b32(p.seq_ids + u64::from(ptx::ctaid_z()) * 4));
        (
            seq,
            ptx::ld_global_nc_b32(p.q_starts + seq * 4),
            ptx::ld_global_nc_b32(p.q_starts + seq * 4 + 4),
            ptx::ld_global_nc_b32(p.kv_lens + seq * 4),
            if p.kv_row_starts == 0 { 0 } else { ptx::ld_global_nc_b32(p.kv_row_starts + seq * 4) },
        )
    };
    let queries =
        Queries { first_token: u64::from(first_token), first: block * BLOCK_M, len: end_token - first_token };
    if queries.first >= queries.len {
        return;
    }
    let kv = PagedKv {
        k_cache: p.k_cache,
        v_cache: p.v_cache,
        g_pages: p.block_table + seq * u64::from(p.block_table_stride) * 4,
        page_size: p.page_size,
        kv_heads: p.kv_heads,
        kv_head: head / (p.q_heads / p.kv_heads.max(1)).max(1),
        first_row,
    };
    let limits = Mask::new(kv_len, p.window, p.causal != 0);
    // SAFETY: the whole block is here.
    unsafe {
        let softmax =
            attend::<E, HEAD_DIM, CHUNKS, BLOCK_N, K_STEPS, D_TILES, N_TILES>(p, &queries, &kv, &limits);
        store::<E, HEAD_DIM, D_TILES>(p, &queries, head, &softmax);
    }
}

macro_rules! entries {
    ($($name:ident: $element:ident, $head_dim:literal;)*) => {$(
        kernel! {
            /// See [`AttentionPrefill`].
            pub fn $name(p: AttentionPrefill) {
                prefill::<
                    $element,
                    $head_dim,
                    { $head_dim / 8 },
                    { block_n($head_dim) },
                    { $head_dim / 16 },
                    { $head_dim / 8 },
                    { block_n($head_dim) as usize / 8 },
                >(&p);
            }
        }
    )*};
}

entries! {
    attention_prefill_hd64: Bf16, 64;
    attention_prefill_hd96: Bf16, 96;
    attention_prefill_hd128: Bf16, 128;
    attention_prefill_hd192: Bf16, 192;
    attention_prefill_hd256: Bf16, 256;
    attention_prefill_hd64_f16: F16, 64;
    attention_prefill_hd96_f16: F16, 96;
    attention_prefill_hd128_f16: F16, 128;
    attention_prefill_hd192_f16: F16, 192;
    attention_prefill_hd256_f16: F16, 256;
}
