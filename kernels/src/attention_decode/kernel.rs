//! Device code of [`super::HD64`] and [`super::HD128`].

use super::{BLOCK_M, BLOCK_N, STAGES, SharedPlan, THREADS};
use crate::{
    abi::AttentionDecode,
    attention_tile::{Bf16, KeyRange, Mask, PagedKv, Scale, Softmax, mask, quad_sum, scores},
    entry::kernel,
    ptx,
    tile::{fragment::load_a, swizzle, tile_bytes},
};

const WARPS: u32 = THREADS / 32;

/// Up to [`BLOCK_M`] query heads that share a key head.
struct Heads {
    first: u32,
    count: u32,
}

/// Starts the copy of the heads' queries; zeros in the rows past the last.
///
/// # Safety
/// `s_q` must be free; `token` is the sequence's query row.
#[inline(always)]
unsafe fn copy_queries<const CHUNKS: u32>(p: &AttentionDecode, token: u64, heads: &Heads, s_q: u32) {
    let mut index = ptx::tid_x();
    while index < BLOCK_M * CHUNKS {
        let (row, chunk) = (index / CHUNKS, index % CHUNKS);
        let inside = row < heads.count;
        let head = token * u64::from(p.q_heads) + u64::from(heads.first + row);
        let from = if inside { (head * u64::from(CHUNKS) + u64::from(chunk)) * 16 } else { 0 };
        // SAFETY: `inside` bounds the address.
        unsafe { ptx::cp_async_16(s_q + swizzle::<CHUNKS>(row, chunk), p.q + from, 16 * inside as u32) };
        index += THREADS;
    }
}

/// Walks the tiles of `range`, which isn't empty. Each warp answers for its 16 keys of each tile.
///
/// # Safety
/// The whole block calls it; nobody reads the shared memory.
#[inline(always)]
unsafe fn attend<const HEAD_DIM: u32, const CHUNKS: u32, const K_STEPS: usize, const D_TILES: usize>(
    p: &AttentionDecode,
    token: u64,
    heads: &Heads,
    kv: &PagedKv,
    range: KeyRange,
) -> Softmax<D_TILES> {
    const {
        assert!(
            HEAD_DIM == CHUNKS * 8 && HEAD_DIM as usize == K_STEPS * 16 && HEAD_DIM as usize == D_TILES * 8
        );
    }
    let base = ptx::shared_base();
    let s_q = base + SharedPlan::<HEAD_DIM>::Q;
    let s_k = base + SharedPlan::<HEAD_DIM>::K;
    let s_v = base + SharedPlan::<HEAD_DIM>::V;
    let scale = Scale { scale: p.scale, softcap: p.softcap };
    let first_row = ptx::warp() * (BLOCK_N / WARPS);
    let last_tile = (range.end as u32).div_ceil(BLOCK_N);
    let mut tile = range.start as u32 / BLOCK_N;
    let mut softmax = Softmax::new();
    // SAFETY: the whole block is here. A tile is read after each thread has waited for its copies and the barrier has told
    // the others; a stage is written after the barrier that follows its last reading.
    unsafe {
        let copy = |stage: u32, tile: u32| {
            let at = stage * tile_bytes(BLOCK_N, HEAD_DIM);
            kv.copy::<BLOCK_N, CHUNKS, THREADS>(s_k + at, s_v + at, tile * BLOCK_N, range);
            ptx::cp_async_commit();
        };
        copy_queries::<CHUNKS>(p, token, heads, s_q);
        let mut stage = 0;
        copy(stage, tile);
        ptx::cp_async_wait::<0>();
        ptx::bar_sync();
        let mut q = [[0u32; 4]; K_STEPS];
        for k in 0..K_STEPS {
            q[k] = load_a::<CHUNKS>(s_q, 0, k as u32 * 2);
        }
        loop {
            if tile + 1 < last_tile {
                copy((stage + 1) % STAGES, tile + 1);
            }
            let at = stage * tile_bytes(BLOCK_N, HEAD_DIM);
            let mut s = scores::<Bf16, CHUNKS, K_STEPS, 2>(|k| q[k], s_k + at, first_row);
            scale.apply(&mut s);
            let first_key = tile * BLOCK_N;
            if (first_key as i32) < range.start || (first_key + BLOCK_N) as i32 > range.end {
                mask(&mut s, first_key + first_row, [range; 2]);
            }
            softmax.update(&mut s);
            softmax.add_values::<Bf16, CHUNKS, 2>(&s, s_v + at, first_row);
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

/// Leaves a warp's maxima, sums and outputs in shared memory.
///
/// # Safety
/// The whole block calls it, when nobody reads the tiles any more.
#[inline(always)]
unsafe fn share<const HEAD_DIM: u32, const D_TILES: usize>(softmax: &Softmax<D_TILES>) {
    let base = ptx::shared_base();
    for r in 0..2 {
        let row = ptx::warp() * BLOCK_M + ptx::lane() / 4 + r as u32 * 8;
        // SAFETY: each lane writes its own words of the warp's rows.
        unsafe {
            let sum = quad_sum(softmax.sum[r]);
            if ptx::lane() & 3 == 0 {
                ptx::st_shared_b32(
                    base + SharedPlan::<HEAD_DIM>::MERGE_MAX + row * 4,
                    softmax.max[r].to_bits(),
                );
                ptx::st_shared_b32(base + SharedPlan::<HEAD_DIM>::MERGE_SUM + row * 4, sum.to_bits());
            }
            let s_row = base
                + SharedPlan::<HEAD_DIM>::MERGE_OUT
                + (row * SharedPlan::<HEAD_DIM>::MERGE_ROW + ptx::lane() % 4 * 2) * 4;
            for d in 0..D_TILES {
                let out = &softmax.out[d];
                ptx::st_shared_v2_b32(
                    s_row + d as u32 * 32,
                    [out[2 * r].to_bits(), out[2 * r + 1].to_bits()],
                );
            }
        }
    }
}

/// Two elements of a head, normalised over all warps, and the head's base-2 log-sum-exp.
struct Merged {
    out: [f32; 2],
    lse: f32,
}

/// Joins the warps' parts of elements `element` and `element + 1` of row `row`, in ascending order of warp.
///
/// # Safety
/// After [`share`] and a barrier.
#[inline(always)]
unsafe fn merge<const HEAD_DIM: u32>(row: u32, element: u32) -> Merged {
    let base = ptx::shared_base();
    let mut max = f32::NEG_INFINITY;
    let mut warp_max = [0.0f32; WARPS as usize];
    for w in 0..WARPS {
        // SAFETY: written by `share`.
        let bits =
            unsafe { ptx::ld_shared_b32(base + SharedPlan::<HEAD_DIM>::MERGE_MAX + (w * BLOCK_M + row) * 4) };
        warp_max[w as usize] = f32::from_bits(bits);
        max = ptx::max(max, warp_max[w as usize]);
    }
    let (mut sum, mut out) = (0.0, [0.0; 2]);
    for w in 0..WARPS {
        let at = w * BLOCK_M + row;
        // SAFETY: written by `share`.
        let (warp_sum, part) = unsafe {
            (
                ptx::ld_shared_b32(base + SharedPlan::<HEAD_DIM>::MERGE_SUM + at * 4),
                ptx::ld_shared_v2_b32(
                    base + SharedPlan::<HEAD_DIM>::MERGE_OUT
                        + (at * SharedPlan::<HEAD_DIM>::MERGE_ROW + element) * 4,
                ),
            )
        };
        // A warp that saw no key has zeros; -inf less -inf would be NaN.
        let m = warp_max[w as usize];
        let weight = if m == f32::NEG_INFINITY { 0.0 } else { ptx::ex2(m - max) };
        sum = ptx::fma(weight, f32::from_bits(warp_sum), sum);
        out[0] = ptx::fma(weight, f32::from_bits(part[0]), out[0]);
        out[1] = ptx::fma(weight, f32::from_bits(part[1]), out[1]);
    }
    let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    let lse = if sum == 0.0 { f32::NEG_INFINITY } else { max + ptx::lg2(sum) };
    Merged { out: [out[0] * inverse, out[1] * inverse], lse }
}

/// # Safety
/// As the entries.
#[inline(always)]
unsafe fn decode<const HEAD_DIM: u32, const CHUNKS: u32, const K_STEPS: usize, const D_TILES: usize>(
    p: &AttentionDecode,
) {
    let (split, kv_head, launch_seq) = (ptx::ctaid_x(), ptx::ctaid_y(), u64::from(ptx::ctaid_z()));
    // SAFETY: the launch's own indices, into arrays of the documented lengths.
    let (seq, token, kv_len) = unsafe {
        let seq = u64::from(ptx::ld_global_nc_b32(p.seq_ids + launch_seq * 4));
        (
            seq,
            u64::from(ptx::ld_global_nc_b32(p.q_starts + seq * 4)),
            ptx::ld_global_nc_b32(p.kv_lens + seq * 4),
        )
    };
    let chunks = kv_len.div_ceil(p.split_tokens.max(1));
    if split >= chunks.max(1) {
        return;
    }
    // The query is the last token, so the causal mask hides nothing.
    let visible = Mask::new(kv_len, p.window, true).range(kv_len as i32 - 1);
    let first_key = split * p.split_tokens;
    let range = KeyRange {
        start: visible.start.max(first_key as i32),
        end: visible.end.min(first_key.saturating_add(p.split_tokens).min(i32::MAX as u32) as i32),
    };
    let kv = PagedKv {
        k_cache: p.k_cache,
        v_cache: p.v_cache,
        g_pages: p.block_table + seq * u64::from(p.block_table_stride) * 4,
        page_size: p.page_size,
        kv_heads: p.kv_heads,
        kv_head,
        first_row: 0,
    };
    let group = p.q_heads / p.kv_heads.max(1);
    let mut done = 0;
    while done < group {
        let heads = Heads { first: kv_head * group + done, count: (group - done).min(BLOCK_M) };
        let mut softmax = Softmax::new();
        // SAFETY: the whole block takes the same branches. The barriers stand between the tiles' last reading and the merge's
        // writing, between that and its reading, and between that and the next pass's copies.
        unsafe {
            if range.end > range.start {
                softmax = attend::<HEAD_DIM, CHUNKS, K_STEPS, D_TILES>(p, token, &heads, &kv, range);
            }
            ptx::bar_sync();
            share::<HEAD_DIM, D_TILES>(&softmax);
            ptx::bar_sync();
            let mut index = ptx::tid_x();
            while index < heads.count * (HEAD_DIM / 2) {
                let (row, element) = (index / (HEAD_DIM / 2), index % (HEAD_DIM / 2) * 2);
                let merged = merge::<HEAD_DIM>(row, element);
                let head = u64::from(heads.first + row);
                if chunks <= 1 {
                    let to = (token * u64::from(p.q_heads) + head) * u64::from(HEAD_DIM) + u64::from(element);
                    ptx::st_global_b32(p.out + to * 2, ptx::pack_bf16(merged.out[0], merged.out[1]));
                } else {
                    let to = (launch_seq * u64::from(p.q_heads) + head) * u64::from(p.max_splits)
                        + u64::from(split);
                    let at = to * u64::from(HEAD_DIM) + u64::from(element);
                    ptx::st_global_v2_b32(
                        p.partial_out + at * 4,
                        [merged.out[0].to_bits(), merged.out[1].to_bits()],
                    );
                    if element == 0 {
                        ptx::st_global_b32(p.partial_lse + to * 4, merged.lse.to_bits());
                    }
                }
                index += THREADS;
            }
            ptx::bar_sync();
        }
        done += BLOCK_M;
    }
}

kernel! {
    /// See [`AttentionDecode`].
    pub fn attention_decode_hd64(p: AttentionDecode) {
        decode::<64, 8, 4, 8>(&p);
    }
}

kernel! {
    /// See [`AttentionDecode`].
    pub fn attention_decode_hd128(p: AttentionDecode) {
        decode::<128, 16, 8, 16>(&p);
    }
}
