//! The warpgroups that multiply.

use core::f32::consts::{LN_2, LOG2_E};

use super::{
    ITEM_BYTES, LINE_BYTES, Q_STAGES, Tile,
    item::{Item, Ring, key_tiles, mask_of},
    softmax::{Softmax, cap, mask, mask_by_bits},
};
use crate::{
    abi::AttentionPrefillSm90,
    attention_tile::{KeyRange, quad_sum},
    ptx::{self, Wgmma},
};

/// Barrier ids of the consumers' turns: the products of one warpgroup are issued before those of the next.
const FIRST_TURN: u32 = 1;
/// Chunks of the output that a lane stores, at most.
const MAX_CHUNKS: usize = 8;
/// Bytes that 16 keys of a tile of values take.
const V_STEP_BYTES: u32 = 16 * LINE_BYTES;

/// One warpgroup's place in the block.
#[derive(Clone, Copy)]
struct Group {
    plan: Tile,
    /// 0 for the first consumer.
    index: u32,
    base: u32,
    /// Exponents a unit of score.
    factor: f32,
}

impl Group {
    /// Waits for this warpgroup's turn to issue products.
    ///
    /// # Safety
    /// The whole warpgroup calls it, in turn with [`Group::pass_turn`].
    #[inline(always)]
    unsafe fn take_turn(&self) {
        // SAFETY: the caller's promise.
        unsafe { ptx::bar_sync_named(FIRST_TURN + self.index, 256) };
    }

    /// # Safety
    /// As [`Group::take_turn`].
    #[inline(always)]
    unsafe fn pass_turn(&self) {
        let next = if self.index + 1 == self.plan.consumers { 0 } else { self.index + 1 };
        // SAFETY: the caller's promise.
        unsafe { ptx::bar_arrive_named(FIRST_TURN + next, 256) };
    }

    /// One arrival a warp at barrier `barrier` (an offset in the plan) of `stage`.
    ///
    /// # Safety
    /// The whole warp calls it, done with what the barrier guards.
    #[inline(always)]
    unsafe fn release(&self, barrier: u32, stage: u32) {
        if ptx::lane() == 0 {
            // SAFETY: the caller's promise.
            unsafe { ptx::mbarrier_arrive(self.base + barrier + stage * 8) };
        }
    }

    /// # Safety
    /// The phase completes in the end.
    #[inline(always)]
    unsafe fn wait(&self, barrier: u32, ring: Ring, stages: u32) {
        // SAFETY: the caller's promise.
        unsafe { ptx::mbarrier_wait(self.base + barrier + ring.stage(stages) * 8, ring.parity(stages)) };
    }

    /// The warp's 16 queries as operands of the products' steps.
    ///
    /// # Safety
    /// The whole warp calls it; the queries have landed at `s_q`, the warpgroup's rows.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn queries<const K: usize>(&self, s_q: u32) -> [[u32; 4]; K] {
        let thread = ptx::here(ptx::tid_x());
        let (row, chunk) = (thread / 32 % 4 * 16 + thread % 16, thread / 16 % 2);
        let mut q = [[0u32; 4]; K];
        for step in 0..K as u32 {
            let at = step / 4 * self.plan.block_m() + row;
            let chunk = (step % 4 * 2 + chunk) ^ (row % 8);
            // SAFETY: the caller's promise; the copy engine laid the chunks so.
            q[step as usize] = unsafe { ptx::ldmatrix_x4(s_q + at * LINE_BYTES + chunk * 16) };
        }
        q
    }

    /// Issues `S = Q K'` of the tile in `stage`, with the queries in registers or, where `K` is 0, in shared memory.
    ///
    /// # Safety
    /// The whole warpgroup calls it; queries and keys have landed.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn scores<const F16: bool, const S: usize, const K: usize>(
        &self,
        s: &mut [f32; S],
        q: &[[u32; 4]; K],
        s_q: u32,
        stage: u32,
    ) where
        [f32; S]: Wgmma,
    {
        let s_k = self.base + self.plan.s_k() + stage * self.plan.kv_bytes();
        let k = ptx::descriptor(s_k, 0);
        // SAFETY: the caller's promises.
        unsafe {
            ptx::wgmma_fence();
            if K == 0 {
                // Made anew for each tile: kept, the steps' descriptors would take two registers each.
                let q = ptx::descriptor(s_q, 0);
                for step in 0..self.plan.head_dim / 16 {
                    let (q, k) =
                        (q + self.step(step, self.plan.block_m()), k + self.step(step, self.plan.block_n));
                    if step == 0 { s.ss::<F16, false>(q, k) } else { s.ss::<F16, true>(q, k) }
                }
            }
            for step in 0..K {
                let k = k + self.step(step as u32, self.plan.block_n);
                if step == 0 { s.rs::<F16, false>(&q[step], k) } else { s.rs::<F16, true>(&q[step], k) }
            }
            ptx::wgmma_commit();
        }
    }

    /// What a descriptor grows by for step `step` along the head, in a tile of `rows` lines a half.
    #[inline(always)]
    fn step(&self, step: u32, rows: u32) -> u64 {
        u64::from(step / 4 * rows * LINE_BYTES + step % 4 * 32) >> 4
    }

    /// Issues `O += P V` of the tile in `stage`.
    ///
    /// # Safety
    /// As [`Group::scores`].
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn add_values<const F16: bool, const O: usize, const P: usize>(
        &self,
        out: &mut [f32; O],
        weights: &[[u32; 4]; P],
        stage: u32,
    ) where
        [f32; O]: Wgmma,
    {
        let s_v = self.base + self.plan.s_v() + stage * self.plan.kv_bytes();
        let v = ptx::descriptor(s_v, self.plan.block_n * LINE_BYTES);
        // SAFETY: the caller's promises.
        unsafe {
            ptx::wgmma_fence();
            for step in 0..P {
                out.rs_transposed::<F16>(&weights[step], v + u64::from((step as u32 * V_STEP_BYTES) >> 4));
            }
            ptx::wgmma_commit();
        }
    }
}

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

/// Works on every item of the block. The first scores of an item are begun before the output of the one before it is stored.
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
        group.begin::<F16, S, K>(&mut q, &mut s, q_ring, kv_ring);
        loop {
            let mut out = [0.0f32; O];
            let softmax = attend::<F16, S, P, O, K>(p, &group, q_ring, &q, &mut s, &mut kv_ring, &mut out);
            let done = q_ring;
            q_ring = q_ring.next();
            if !group.next_item(q_ring) {
                return store::<F16, O>(p, &group, done, &softmax, &mut out);
            }
            group.begin::<F16, S, K>(&mut q, &mut s, q_ring, kv_ring);
            store::<F16, O>(p, &group, done, &softmax, &mut out);
        }
    }
}

impl Group {
    /// Where the item in `stage` is.
    #[inline(always)]
    fn s_item(&self, ring: Ring) -> u32 {
        self.base + self.plan.s_items() + ring.stage(Q_STAGES) * ITEM_BYTES
    }

    /// Where the warpgroup's rows of its queries are.
    #[inline(always)]
    fn s_q(&self, ring: Ring) -> u32 {
        self.base
            + self.plan.s_q()
            + ring.stage(Q_STAGES) * self.plan.q_bytes()
            + self.index * 64 * LINE_BYTES
    }

    /// Waits for an item; whether there is one.
    ///
    /// # Safety
    /// As [`consume`].
    #[inline(always)]
    unsafe fn next_item(&self, ring: Ring) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            self.wait(self.plan.q_full(), ring, Q_STAGES);
            Item::shared(self.s_item(ring)).rows != 0
        }
    }

    /// Issues the scores of the item's last tile of keys.
    ///
    /// # Safety
    /// As [`consume`], after [`Group::next_item`].
    #[inline(always)]
    unsafe fn begin<const F16: bool, const S: usize, const K: usize>(
        &self,
        q: &mut [[u32; 4]; K],
        s: &mut [f32; S],
        q_ring: Ring,
        kv_ring: Ring,
    ) where
        [f32; S]: Wgmma,
    {
        let s_q = self.s_q(q_ring);
        // SAFETY: the caller's promise.
        unsafe {
            *q = self.queries::<K>(s_q);
            self.wait(self.plan.k_full(), kv_ring, self.plan.stages);
            self.take_turn();
            self.scores::<F16, S, K>(s, q, s_q, kv_ring.stage(self.plan.stages));
            self.pass_turn();
        }
    }
}

/// Walks the item's tiles of keys from the last, whose scores are on their way, to the first.
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
    let (first_tile, end_tile) = key_tiles(item.kv.seen, plan);
    let mut softmax = Softmax::new();
    // The warpgroup's first and last rows bound what all of its rows see.
    let position = item.position + (group.index * 64) as i32;
    let seen_by_all = KeyRange { start: limits.range(position + 63).start, end: limits.range(position).end };

    let finish = |s: &mut [f32; S], tile: u32| {
        if p.shared.softcap != 0.0 {
            cap(s, p.shared.scale, p.shared.softcap);
        }
        let (first, end) = ((tile * plan.block_n) as i32, ((tile + 1) * plan.block_n) as i32);
        if first < seen_by_all.start || end > seen_by_all.end {
            // What an item is, and where, is found out again rather than kept in registers through the products.
            // SAFETY: the item stays until its `q_empty`.
            let item = unsafe { Item::shared(group.s_item(q_ring.again())) };
            let limits = mask_of(p, item.kv.kv_len);
            let thread = ptx::here(ptx::tid_x());
            let row =
                item.position + (thread / 128 * 64 - 64 + thread / 32 % 4 * 16 + thread % 32 / 4) as i32;
            let (first, rows) = (tile * plan.block_n, [limits.range(row), limits.range(row + 8)]);
            // Where queries are in shared memory there are three warpgroups, and not the registers for bits.
            if K == 0 { mask(s, first, rows) } else { mask_by_bits(s, first, rows) }
        }
    };
    let mut weights = [[0u32; 4]; P];
    let mut tile = end_tile - 1;
    // SAFETY: the whole warpgroup takes the same branches. A tile is read after its `full` barrier, and its `empty` barrier told
    // after the products that read it were waited for.
    unsafe {
        s.wait::<0>();
        group.release(plan.k_empty(), ring.stage(plan.stages));
        finish(s, tile);
        // Nothing to rescale yet: the first rescaling multiplies zeros.
        let mut rescale = softmax.update(s, group.factor);
        pack::<F16, S, P>(s, &mut weights);

        while tile > first_tile {
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
        group.release(plan.q_empty(), ring.stage(Q_STAGES));
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
