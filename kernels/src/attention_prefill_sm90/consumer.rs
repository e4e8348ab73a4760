//! The warpgroups that multiply.

use core::f32::consts::{LN_2, LOG2_E};

use super::{
    LINE_BYTES, Tile,
    group::Group,
    item::{Item, Ring, key_tiles, mask_of},
    softmax::{Softmax, cap, mask, mask_by_bits},
};
use crate::{
    abi::AttentionPrefillSm90,
    attention_tile::{KeyRange, quad_sum},
    ptx::{self, Wgmma},
};

/// Chunks of the output that a lane stores, at most.
const MAX_CHUNKS: usize = 16;

/// Exponentials as the next product's operand: two groups of eight columns are one of its fragments.
#[inline(always)]
fn pack<const F16: bool, const S: usize, const P: usize>(s: &[f32; S], weights: &mut [[u32; 4]; P]) {
    for step in 0..P {
        for i in 0..4 {
            let (lo, hi) = (s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
            weights[step][i] = if F16 { ptx::pack_f16(lo, hi) } else { ptx::pack_bf16(lo, hi) };
        }
    }
}

/// Multiplies a lane's two rows.
#[inline(always)]
fn scale_rows<const O: usize>(out: &mut [f32; O], by: [f32; 2]) {
    for j in 0..O / 4 {
        for i in 0..4 {
            out[4 * j + i] *= by[i / 2];
        }
    }
}

/// Works on every item of the block. The first scores of an item are begun before the output of the one before it is stored, where
/// there are two tiles of queries.
///
/// # Safety
/// One consumer warpgroup calls it, the `index`-th; the barriers are initialised.
#[inline(always)]
pub(super) unsafe fn consume<
    const F16: bool,
    const S: usize,
    const P: usize,
    const O: usize,
    const K: usize,
>(
    p: &AttentionPrefillSm90,
    plan: Tile,
    index: u32,
) where
    [f32; S]: Wgmma,
    [f32; O]: Wgmma,
{
    // Capped scores are exponents already.
    let factor = if p.shared.softcap == 0.0 { p.shared.scale * LOG2_E } else { 1.0 };
    let group = Group { plan, index, base: ptx::shared_base(), factor };
    let (mut q_ring, mut kv_ring) = (Ring::new(), Ring::new());
    let (mut q, mut s) = ([[0u32; 4]; K], [0.0f32; S]);
    // SAFETY: the whole warpgroup takes the same branches. Items come in the producer's order.
    unsafe {
        if index + 1 == plan.consumers {
            group.pass_turn();
        }
        if !group.next_item(q_ring) {
            return;
        }
        group.begin::<F16, S, K>(p, &mut q, &mut s, q_ring, &mut kv_ring);
        loop {
            let mut out = [0.0f32; O];
            let softmax = attend::<F16, S, P, O, K>(p, &group, q_ring, &q, &mut s, &mut kv_ring, &mut out);
            let done = q_ring;
            q_ring = q_ring.next();
            // The only tile of queries is the next item's once the output has left it.
            let first_store = plan.q_stages == 1;
            if first_store {
                store::<F16, O>(p, &group, done, &softmax, &mut out);
            }
            if !group.next_item(q_ring) {
                if !first_store {
                    store::<F16, O>(p, &group, done, &softmax, &mut out);
                }
                return;
            }
            group.begin::<F16, S, K>(p, &mut q, &mut s, q_ring, &mut kv_ring);
            if !first_store {
                store::<F16, O>(p, &group, done, &softmax, &mut out);
            }
        }
    }
}

/// Tiles whose keys are all seen by all rows: they need no mask. In one register; past what its halves hold they get one all the same.
#[derive(Clone, Copy)]
struct PlainTiles(u32);

impl PlainTiles {
    #[inline(always)]
    fn of(seen: KeyRange, block_n: u32) -> PlainTiles {
        let start = (seen.start.max(0) as u32).div_ceil(block_n).min(0xffff);
        let end = (seen.end.max(0) as u32 / block_n).min(0xffff);
        PlainTiles(start << 16 | end)
    }

    #[inline(always)]
    fn have(self, tile: u32) -> bool {
        tile >= self.0 >> 16 && tile < self.0 & 0xffff
    }
}

/// Walks the item's tiles of keys from the last that the warpgroup sees, whose scores are on their way, to the first.
///
/// # Safety
/// As [`consume`]; after [`Group::begin`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn attend<const F16: bool, const S: usize, const P: usize, const O: usize, const K: usize>(
    p: &AttentionPrefillSm90,
    group: &Group,
    q_ring: Ring,
    q: &[[u32; 4]; K],
    s: &mut [f32; S],
    ring: &mut Ring,
    out: &mut [f32; O],
) -> Softmax
where
    [f32; S]: Wgmma,
    [f32; O]: Wgmma,
{
    let plan = group.plan;
    // SAFETY: the caller's promise.
    let item = unsafe { Item::shared(group.s_item(q_ring)) };
    let limits = mask_of(p, item.kv.kv_len);
    // Where queries are in shared memory there are few registers: read again for each tile rather than kept.
    // SAFETY: the item stays until its `q_empty`.
    let read_first_tile = || unsafe { key_tiles(Item::shared(group.s_item(q_ring.again())).kv.seen, plan).0 };
    let kept_first_tile = key_tiles(item.kv.seen, plan).0;
    let first_tile = || if K == 0 { read_first_tile() } else { kept_first_tile };
    // Found out again: kept from `begin`, it would be a register more while the item before is stored.
    // SAFETY: as above.
    let (_, last) = unsafe { group.last_tiles(p, q_ring.again()) };
    let mut tile = ptx::here(last);
    let mut softmax = Softmax::new();
    // The warpgroup's first and last rows bound what all of its rows see.
    let position = item.position + (group.index * 64) as i32;
    let plain_tiles = PlainTiles::of(
        KeyRange { start: limits.range(position + 63).start, end: limits.range(position).end },
        plan.block_n,
    );

    let finish = |s: &mut [f32; S], tile: u32| {
        if p.shared.softcap != 0.0 {
            cap(s, p.shared.scale, p.shared.softcap);
        }
        if !plain_tiles.have(tile) {
            // What an item is, and where, is found out again rather than kept in registers through the products.
            // SAFETY: the item stays until its `q_empty`.
            let item = unsafe { Item::shared(group.s_item(q_ring.again())) };
            let limits = mask_of(p, item.kv.kv_len);
            let thread = ptx::here(ptx::tid_x());
            let row =
                item.position + (thread / 128 * 64 - 64 + thread / 32 % 4 * 16 + thread % 32 / 4) as i32;
            let (first, rows) = (tile * plan.block_n, [limits.range(row), limits.range(row + 8)]);
            // Where queries are in shared memory there are three warpgroups or wide outputs, and not the registers for bits.
            if K == 0 { mask(s, first, rows) } else { mask_by_bits(s, first, rows) }
        }
    };
    let mut weights = [[0u32; 4]; P];
    // SAFETY: the whole warpgroup takes the same branches. A tile is read after its `full` barrier, and its `empty` barrier told
    // after the products that read it were waited for.
    unsafe {
        s.wait::<0>();
        group.release(plan.k_empty(), ring.stage(plan.stages));
        finish(s, tile);
        // Nothing to rescale yet: the first rescaling multiplies zeros.
        let mut rescale = softmax.update(s, group.factor);
        pack::<F16, S, P>(s, &mut weights);

        while tile > first_tile() {
            tile -= 1;
            *ring = ring.next();
            group.wait(plan.k_full(), *ring, plan.stages);
            group.take_turn();
            group.scores::<F16, S, K>(s, q, group.s_q(q_ring.again()), ring.stage(plan.stages));
            scale_rows(out, rescale);
            let values = ring.again().previous();
            group.wait(plan.v_full(), values, plan.stages);
            group.add_values::<F16, O, P>(out, &weights, values.stage(plan.stages));
            group.pass_turn();
            s.wait::<1>();
            group.release(plan.k_empty(), ring.stage(plan.stages));
            finish(s, tile);
            rescale = softmax.update(s, group.factor);
            out.wait::<0>();
            group.release(plan.v_empty(), ring.again().previous().stage(plan.stages));
            pack::<F16, S, P>(s, &mut weights);
        }
        scale_rows(out, rescale);
        group.wait(plan.v_full(), *ring, plan.stages);
        group.add_values::<F16, O, P>(out, &weights, ring.stage(plan.stages));
        out.wait::<0>();
        group.release(plan.v_empty(), ring.stage(plan.stages));
        *ring = ring.next();
    }
    softmax
}

/// Normalises the output, brings it through the warpgroup's own rows of the query tile so that lines leave whole, and stores it.
///
/// # Safety
/// As [`consume`]; the products with the queries in `ring`'s stage are done.
#[inline(always)]
unsafe fn store<const F16: bool, const O: usize>(
    p: &AttentionPrefillSm90,
    group: &Group,
    ring: Ring,
    softmax: &Softmax,
    out: &mut [f32; O],
) {
    // Addresses are computed here, not kept in registers through the products.
    let thread = ptx::here(ptx::tid_x());
    let (plan, lane) = (group.plan, thread % 32);
    let warp_row = thread / 32 % 4 * 16;
    let (g, t) = (lane / 4, lane % 4);
    let s_warp = group.s_q(ring) + warp_row * LINE_BYTES;
    // A chunk of 16 bytes lies as the copy engine would lay it: both sides hit all banks.
    let chunk_at = |row: u32, chunk: u32| {
        (chunk / 8 * plan.block_m() + row) * LINE_BYTES + ((chunk % 8) ^ (row % 8)) * 16
    };
    // SAFETY: the whole warp is here; each row exists, and each warp uses its own 16 rows of the tile.
    unsafe {
        let item = Item::shared(group.s_item(ring));
        for r in 0..2 {
            let sum = quad_sum(softmax.sum[r]);
            let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            let row = g + 8 * r as u32;
            for j in 0..O / 4 {
                let (lo, hi) = (out[4 * j + 2 * r] * inverse, out[4 * j + 2 * r + 1] * inverse);
                let pair = if F16 { ptx::pack_f16(lo, hi) } else { ptx::pack_bf16(lo, hi) };
                ptx::st_shared_b32(s_warp + chunk_at(row, j as u32) + t * 4, pair);
            }
            let tile_row = group.index * 64 + warp_row + row;
            if p.shared.lse != 0 && t == 0 && tile_row < item.rows {
                let lse = if sum == 0.0 {
                    f32::NEG_INFINITY
                } else {
                    ptx::fma(softmax.max[r], group.factor, ptx::lg2(sum)) * LN_2
                };
                let token = u64::from(item.token + tile_row);
                let at = token * u64::from(p.shared.q_heads) + u64::from(item.head);
                ptx::st_global_b32(p.shared.lse + at * 4, lse.to_bits());
            }
        }
        ptx::bar_warp_sync();
        let chunks = plan.head_dim / 8;
        let mut words = [[0u32; 4]; MAX_CHUNKS];
        for step in 0..16 * chunks / 32 {
            let index = step * 32 + lane;
            words[step as usize] = ptx::ld_shared_v4_b32(s_warp + chunk_at(index / chunks, index % chunks));
        }
        // The copy engine writes the tile next. Before the stores to global memory, for which the fence would wait.
        ptx::fence_proxy_async();
        ptx::bar_warp_sync();
        group.release(plan.q_empty(), ring.stage(plan.q_stages));
        for step in 0..16 * chunks / 32 {
            let index = step * 32 + lane;
            let tile_row = group.index * 64 + warp_row + index / chunks;
            if tile_row < item.rows {
                let token = u64::from(item.token + tile_row);
                let at = (token * u64::from(p.shared.q_heads) + u64::from(item.head))
                    * u64::from(plan.head_dim * 2);
                let g_chunk = p.shared.out + at + u64::from(index % chunks) * 16;
                ptx::st_global_v4_b32(g_chunk, words[step as usize]);
            }
        }
    }
}
