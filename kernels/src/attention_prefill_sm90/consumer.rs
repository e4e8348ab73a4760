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
/// there are two tiles of queries. Where items run into each other (`ON`, which takes two tiles of queries), they are begun before the last values of the
/// one before it are added, which then are under the new item's first softmax, as all others are under one of their own item's.
///
/// # Safety
/// One consumer warpgroup calls it, the `index`-th; the barriers are initialised.
#[inline(always)]
pub(super) unsafe fn consume<
    const F16: bool,
    const ON: bool,
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
    let (mut q_ring, mut ring) = (Ring::new(), Ring::new());
    let (mut q, mut s) = ([[0u32; 4]; K], [0.0f32; S]);
    // SAFETY: the whole warpgroup takes the same branches. Items come in the producer's order. A tile is read after its `full` barrier, and its
    // `empty` barrier told after the products that read it were waited for.
    unsafe {
        if index + 1 == plan.consumers {
            group.pass_turn();
        }
        if !group.next_item(q_ring) {
            return;
        }
        group.begin::<F16, S, K>(p, &mut q, &mut s, q_ring, &mut ring);
        loop {
            // The scores of the item's first tile are on their way, and nothing else.
            let mut walk = Walk::new(p, &group, q_ring);
            let (mut softmax, mut out) = (Softmax::new(), [0.0f32; O]);
            let mut weights = [[0u32; 4]; P];
            s.wait::<0>();
            group.release(plan.k_empty(), ring.stage(plan.stages));
            walk.finish::<S, K>(p, &group, &mut s);
            // Nothing to rescale yet: the first rescaling multiplies zeros.
            let mut rescale = softmax.update(&mut s, group.factor);
            pack::<F16, S, P>(&s, &mut weights);

            loop {
                let is_last = walk.is_last::<K>(&group);
                let mut inverse = [0.0; 2];
                if !is_last {
                    walk.tile -= 1;
                } else if ON && group.runs_on_to(p, q_ring.again().next()) {
                    let item = Item::shared(group.s_item(q_ring));
                    inverse = [0, 1].map(|r| inverse_of(p, &group, &item, &softmax, r));
                    q_ring = q_ring.next();
                    (walk, softmax) = (Walk::new(p, &group, q_ring), Softmax::new());
                    q = group.queries::<K>(group.s_q(q_ring));
                } else {
                    break;
                }
                ring = ring.next();
                multiply::<F16, S, P, O, K>(&group, q_ring, &q, ring, &mut s, &mut out, &weights, rescale);
                walk.finish::<S, K>(p, &group, &mut s);
                rescale = softmax.update(&mut s, group.factor);
                out.wait::<0>();
                group.release(plan.v_empty(), ring.again().previous().stage(plan.stages));
                if ON && is_last {
                    store::<F16, O>(p, &group, q_ring.again().previous(), |_, r| inverse[r], &mut out);
                    out = [0.0; O];
                }
                pack::<F16, S, P>(&s, &mut weights);
            }
            scale_rows(&mut out, rescale);
            group.wait(plan.v_full(), ring, plan.stages);
            group.add_values::<F16, O, P>(&mut out, &weights, ring.stage(plan.stages));
            out.wait::<0>();
            group.release(plan.v_empty(), ring.stage(plan.stages));
            ring = ring.next();

            let done = q_ring;
            q_ring = q_ring.next();
            // The only tile of queries is the next item's once the output has left it.
            let first_store = plan.q_stages == 1;
            let inverse = |item: &Item, r| inverse_of(p, &group, item, &softmax, r);
            if first_store {
                store::<F16, O>(p, &group, done, inverse, &mut out);
            }
            if !group.next_item(q_ring) {
                if !first_store {
                    store::<F16, O>(p, &group, done, inverse, &mut out);
                }
                return;
            }
            group.begin::<F16, S, K>(p, &mut q, &mut s, q_ring, &mut ring);
            if !first_store {
                store::<F16, O>(p, &group, done, inverse, &mut out);
            }
        }
    }
}

/// Issues the scores of the tile of keys in `ring`, then adds the values of the tile before it, which are on their way when the scores are there.
///
/// # Safety
/// As [`consume`], with nothing in flight; `weights` are those of the tile before.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn multiply<const F16: bool, const S: usize, const P: usize, const O: usize, const K: usize>(
    group: &Group,
    q_ring: Ring,
    q: &[[u32; 4]; K],
    ring: Ring,
    s: &mut [f32; S],
    out: &mut [f32; O],
    weights: &[[u32; 4]; P],
    rescale: [f32; 2],
) where
    [f32; S]: Wgmma,
    [f32; O]: Wgmma,
{
    let plan = group.plan;
    // SAFETY: the caller's promise. A tile is read after its `full` barrier, and keys are given back after the products that read them.
    unsafe {
        group.wait(plan.k_full(), ring, plan.stages);
        group.take_turn();
        group.scores::<F16, S, K>(s, q, group.s_q(q_ring.again()), ring.stage(plan.stages));
        scale_rows(out, rescale);
        let values = ring.again().previous();
        group.wait(plan.v_full(), values, plan.stages);
        group.add_values::<F16, O, P>(out, weights, values.stage(plan.stages));
        group.pass_turn();
        s.wait::<1>();
        group.release(plan.k_empty(), ring.stage(plan.stages));
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

/// A warpgroup's walk over the tiles of keys of an item, from the last that it sees to the first.
struct Walk {
    q_ring: Ring,
    tile: u32,
    /// The item's first tile; read again where there are few registers.
    first_tile: u32,
    plain_tiles: PlainTiles,
}

impl Walk {
    /// # Safety
    /// As [`consume`]; the item in `q_ring` has landed, and stays until its `q_empty`.
    #[inline(always)]
    unsafe fn new(p: &AttentionPrefillSm90, group: &Group, q_ring: Ring) -> Walk {
        let plan = group.plan;
        // SAFETY: the caller's promise.
        let item = unsafe { Item::shared(group.s_item(q_ring)) };
        let limits = mask_of(p, item.kv.kv_len);
        // Found out again: kept from `begin`, it would be a register more while the item before is stored.
        // SAFETY: as above.
        let (_, last) = unsafe { group.last_tiles(p, q_ring.again()) };
        // The warpgroup's first and last rows bound what all of its rows see.
        let position = item.position + (group.index * 64) as i32;
        let plain_tiles = PlainTiles::of(
            KeyRange { start: limits.range(position + 63).start, end: limits.range(position).end },
            plan.block_n,
        );
        let first_tile = key_tiles(item.kv.seen, plan).0;
        Walk { q_ring, tile: ptx::here(last), first_tile, plain_tiles }
    }

    /// Whether the tile is the item's first, where the walk ends.
    ///
    /// # Safety
    /// As [`Walk::new`].
    #[inline(always)]
    unsafe fn is_last<const K: usize>(&self, group: &Group) -> bool {
        let first_tile = match K {
            // Where queries are in shared memory there are few registers: read again for each tile rather than kept.
            // SAFETY: the caller's promise.
            0 => unsafe { key_tiles(Item::shared(group.s_item(self.q_ring.again())).kv.seen, group.plan).0 },
            _ => self.first_tile,
        };
        self.tile <= first_tile
    }

    /// Makes scores of the tile's products: capped, and masked where not all rows see all keys.
    ///
    /// # Safety
    /// As [`Walk::new`].
    #[inline(always)]
    unsafe fn finish<const S: usize, const K: usize>(
        &self,
        p: &AttentionPrefillSm90,
        group: &Group,
        s: &mut [f32; S],
    ) {
        if p.shared.softcap != 0.0 {
            cap(s, p.shared.scale, p.shared.softcap);
        }
        if !self.plain_tiles.have(self.tile) {
            // What an item is, and where, is found out again rather than kept in registers through the products.
            // SAFETY: the caller's promise.
            let item = unsafe { Item::shared(group.s_item(self.q_ring.again())) };
            let limits = mask_of(p, item.kv.kv_len);
            let thread = ptx::here(ptx::tid_x());
            let row =
                item.position + (thread / 128 * 64 - 64 + thread / 32 % 4 * 16 + thread % 32 / 4) as i32;
            let (first, rows) = (self.tile * group.plan.block_n, [limits.range(row), limits.range(row + 8)]);
            // Where queries are in shared memory there are three warpgroups or wide outputs, and not the registers for bits.
            if K == 0 { mask(s, first, rows) } else { mask_by_bits(s, first, rows) }
        }
    }
}

/// One over the sum of the lane's row `r`, whose log-sum-exp is stored if it is asked for.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
unsafe fn inverse_of(
    p: &AttentionPrefillSm90,
    group: &Group,
    item: &Item,
    softmax: &Softmax,
    r: usize,
) -> f32 {
    let thread = ptx::here(ptx::tid_x());
    let (warp_row, lane) = (thread / 32 % 4 * 16, thread % 32);
    // SAFETY: the caller's promise; a row's log-sum-exp is stored where the row exists.
    unsafe {
        let sum = quad_sum(softmax.sum[r]);
        if p.shared.lse != 0 && lane % 4 == 0 {
            let tile_row = group.index * 64 + warp_row + lane / 4 + 8 * r as u32;
            if tile_row < item.rows {
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
        if sum == 0.0 { 0.0 } else { 1.0 / sum }
    }
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
    inverse: impl Fn(&Item, usize) -> f32,
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
            let (row, inverse) = (g + 8 * r as u32, inverse(&item, r));
            for j in 0..O / 4 {
                let (lo, hi) = (out[4 * j + 2 * r] * inverse, out[4 * j + 2 * r + 1] * inverse);
                let pair = if F16 { ptx::pack_f16(lo, hi) } else { ptx::pack_bf16(lo, hi) };
                ptx::st_shared_b32(s_warp + chunk_at(row, j as u32) + t * 4, pair);
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
