//! One warpgroup's place in the block: its turns, its barriers, and the products it issues.

use super::{
    ITEM_BYTES, LINE_BYTES, Tile,
    item::{Item, Ring, key_tiles, mask_of},
};
use crate::{
    abi::AttentionPrefillSm90,
    ptx::{self, Wgmma},
};

/// Barrier ids of the consumers' turns: the products of one warpgroup are issued before those of the next.
const FIRST_TURN: u32 = 1;
/// Bytes that 16 keys of a tile of values take.
const V_STEP_BYTES: u32 = 16 * LINE_BYTES;

/// One warpgroup's place in the block.
#[derive(Clone, Copy)]
pub(super) struct Group {
    pub plan: Tile,
    /// 0 for the first consumer.
    pub index: u32,
    pub base: u32,
    /// Exponents a unit of score.
    pub factor: f32,
}

impl Group {
    /// Waits for this warpgroup's turn to issue products.
    ///
    /// # Safety
    /// The whole warpgroup calls it, in turn with [`Group::pass_turn`].
    #[inline(always)]
    pub unsafe fn take_turn(&self) {
        // SAFETY: the caller's promise.
        unsafe { ptx::bar_sync_named(FIRST_TURN + self.index, 256) };
    }

    /// # Safety
    /// As [`Group::take_turn`].
    #[inline(always)]
    pub unsafe fn pass_turn(&self) {
        let next = if self.index + 1 == self.plan.consumers { 0 } else { self.index + 1 };
        // SAFETY: the caller's promise.
        unsafe { ptx::bar_arrive_named(FIRST_TURN + next, 256) };
    }

    /// One arrival a warp at barrier `barrier` (an offset in the plan) of `stage`.
    ///
    /// # Safety
    /// The whole warp calls it, done with what the barrier guards.
    #[inline(always)]
    pub unsafe fn release(&self, barrier: u32, stage: u32) {
        if ptx::lane() == 0 {
            // SAFETY: the caller's promise.
            unsafe { ptx::mbarrier_arrive(self.base + barrier + stage * 8) };
        }
    }

    /// # Safety
    /// The phase completes in the end.
    #[inline(always)]
    pub unsafe fn wait(&self, barrier: u32, ring: Ring, stages: u32) {
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
    pub unsafe fn scores<const F16: bool, const S: usize, const K: usize>(
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
                // Of a ring it is by itself: where it lies changes with the item.
                let s_q = if self.plan.q_stages == 1 { ptx::here(s_q) } else { s_q };
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
    pub unsafe fn add_values<const F16: bool, const O: usize, const P: usize>(
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

    /// Where the item in `stage` is.
    #[inline(always)]
    pub fn s_item(&self, ring: Ring) -> u32 {
        self.base + self.plan.s_items() + ring.stage(self.plan.q_stages) * ITEM_BYTES
    }

    /// Where the warpgroup's rows of its queries are.
    #[inline(always)]
    pub fn s_q(&self, ring: Ring) -> u32 {
        self.base
            + self.plan.s_q()
            + ring.stage(self.plan.q_stages) * self.plan.q_bytes()
            + self.index * 64 * LINE_BYTES
    }

    /// Waits for an item; whether there is one.
    ///
    /// # Safety
    /// As [`consume`].
    #[inline(always)]
    pub unsafe fn next_item(&self, ring: Ring) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            self.wait(self.plan.q_full(), ring, self.plan.q_stages);
            Item::shared(self.s_item(ring)).rows != 0
        }
    }

    /// Issues the scores of the last tile of keys that the warpgroup sees, and passes those by that only others see.
    ///
    /// # Safety
    /// As [`consume`], after [`Group::next_item`].
    #[inline(always)]
    pub unsafe fn begin<const F16: bool, const S: usize, const K: usize>(
        &self,
        p: &AttentionPrefillSm90,
        q: &mut [[u32; 4]; K],
        s: &mut [f32; S],
        q_ring: Ring,
        kv_ring: &mut Ring,
    ) where
        [f32; S]: Wgmma,
    {
        let (s_q, stages) = (self.s_q(q_ring), self.plan.stages);
        // SAFETY: the caller's promise.
        unsafe {
            let (mut tile, last) = self.last_tiles(p, q_ring);
            while tile > last {
                self.pass_by(kv_ring.again());
                *kv_ring = kv_ring.next();
                tile -= 1;
            }
            *q = self.queries::<K>(s_q);
            self.wait(self.plan.k_full(), *kv_ring, stages);
            self.take_turn();
            self.scores::<F16, S, K>(s, q, s_q, kv_ring.stage(stages));
            self.pass_turn();
        }
    }

    /// The item's last tile of keys, and the last that the warpgroup's own rows see; the item's first where they see none, so that
    /// every item takes the same steps. What a row doesn't see of a tile leaves no trace, so nor does a tile that isn't walked.
    ///
    /// # Safety
    /// As [`Group::begin`].
    #[inline(always)]
    pub unsafe fn last_tiles(&self, p: &AttentionPrefillSm90, ring: Ring) -> (u32, u32) {
        // SAFETY: the caller's promise.
        let item = unsafe { Item::shared(self.s_item(ring)) };
        let (first_tile, end_tile) = key_tiles(item.kv.seen, self.plan);
        // Not kept over the items.
        let first_row = ptx::here(ptx::tid_x()) / 128 * 64 - 64;
        let mut last = first_tile;
        if item.rows > first_row {
            let row = item.rows.min(first_row + 64) - 1;
            let end = mask_of(p, item.kv.kv_len).range(item.position + row as i32).end;
            if end > 0 {
                last = last.max((end as u32 - 1) / self.plan.block_n);
            }
        }
        (end_tile - 1, last)
    }

    /// Takes the steps of a tile without its products.
    ///
    /// # Safety
    /// As [`Group::begin`].
    #[inline(always)]
    pub unsafe fn pass_by(&self, ring: Ring) {
        let (plan, stage) = (self.plan, ring.stage(self.plan.stages));
        // SAFETY: the caller's promise. A stage is released in the phase in which it has landed, once every lane has seen that: a lane
        // that came later would find the next phase over too, and wait for ever. After products their waiting sees to that.
        unsafe {
            self.take_turn();
            self.pass_turn();
            self.wait(plan.k_full(), ring, plan.stages);
            ptx::bar_warp_sync();
            self.release(plan.k_empty(), stage);
            self.wait(plan.v_full(), ring, plan.stages);
            ptx::bar_warp_sync();
            self.release(plan.v_empty(), stage);
        }
    }
}
