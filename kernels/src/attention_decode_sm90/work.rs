//! What a block has in hand: an item, and which tiles of keys it is.

use super::Plan;
use crate::{
    abi::AttentionDecode,
    attention_decode::{
        WARPS,
        item::{Item, group},
    },
    ptx,
};

/// An item and its query rows.
#[derive(Clone, Copy)]
pub(super) struct Work {
    pub item: Item,
    /// Rows of its tile that are there; 0 after the last item.
    pub rows: u32,
}

impl Work {
    /// Item `index` of the launch, or none if there is nothing to do for it.
    ///
    /// # Safety
    /// Every lane of the warp calls it.
    #[inline(always)]
    pub unsafe fn new(p: &AttentionDecode, plan: Plan, index: u32) -> Option<Work> {
        // SAFETY: the caller's promise.
        let item = unsafe { Item::new(p, index) }?;
        let all_rows = item.queries * group(p);
        let rows = all_rows.saturating_sub(item.row_tile * plan.rows).min(plan.rows);
        (rows > 0).then_some(Work { item, rows })
    }

    /// Leaves the item for the four warps.
    ///
    /// # Safety
    /// `s_item` is free; one lane calls it.
    #[inline(always)]
    pub unsafe fn share(&self, s_item: u32) {
        let i = &self.item;
        // SAFETY: the caller's promise.
        unsafe {
            ptx::st_shared_v4_b32(s_item, [self.rows, i.launch_seq, i.first_item, i.query_start]);
            ptx::st_shared_v4_b32(s_item + 16, [i.queries, i.kv_len, i.table_row, i.kv_head]);
            ptx::st_shared_v4_b32(s_item + 32, [i.row_tile, i.chunk, i.first_chunk, i.chunks]);
            ptx::st_shared_v4_b32(s_item + 48, [i.chunk_start, i.begin, i.end, 0]);
        }
    }

    /// Tells the four warps that there are no more.
    ///
    /// # Safety
    /// As [`Work::share`].
    #[inline(always)]
    pub unsafe fn share_end(s_item: u32) {
        // SAFETY: the caller's promise.
        unsafe { ptx::st_shared_v4_b32(s_item, [0; 4]) };
    }

    /// What was shared, or none after the last.
    ///
    /// # Safety
    /// After the barrier that its sharer has arrived at.
    #[inline(always)]
    pub unsafe fn shared(s_item: u32) -> Option<Work> {
        // SAFETY: the caller's promise.
        unsafe {
            let [rows, launch_seq, first_item, query_start] = ptx::ld_shared_v4_b32(s_item);
            if rows == 0 {
                return None;
            }
            let [queries, kv_len, table_row, kv_head] = ptx::ld_shared_v4_b32(s_item + 16);
            let [row_tile, chunk, first_chunk, chunks] = ptx::ld_shared_v4_b32(s_item + 32);
            let [chunk_start, begin, end, _] = ptx::ld_shared_v4_b32(s_item + 48);
            let item = Item {
                launch_seq,
                first_item,
                query_start,
                queries,
                kv_len,
                table_row,
                kv_head,
                row_tile,
                chunk,
                first_chunk,
                chunks,
                chunk_start,
                begin,
                end,
            };
            Some(Work { item, rows })
        }
    }
}

/// The tiles of an item with a key that some query sees, counted from the chunk's start: tile `t` is warp `t % 4`'s, wherever a window begins.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub first: u32,
    /// One past the last.
    pub end: u32,
}

impl Tiles {
    #[inline(always)]
    pub fn new(item: &Item, plan: Plan) -> Tiles {
        Tiles {
            first: (item.begin - item.chunk_start) / plan.tile_keys(),
            end: (item.end - item.chunk_start).div_ceil(plan.tile_keys()),
        }
    }

    /// The first of warp `warp`, which may be past the last.
    #[inline(always)]
    pub fn first_of(&self, warp: u32) -> u32 {
        self.first + warp.wrapping_sub(self.first) % WARPS
    }

    /// How many there are.
    #[inline(always)]
    pub fn count(&self) -> u32 {
        self.end.saturating_sub(self.first)
    }
}

/// A place in the ring: how many tiles the block has had before.
#[derive(Clone, Copy)]
pub(super) struct Place(pub u32);

impl Place {
    /// Its stage.
    #[inline(always)]
    pub fn stage(self, plan: Plan) -> u32 {
        self.0 % plan.stages
    }

    /// Parity of the phase of the stage's barriers.
    #[inline(always)]
    pub fn parity(self, plan: Plan) -> u32 {
        self.0 / plan.stages % 2
    }
}
