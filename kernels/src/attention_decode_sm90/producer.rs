//! The warp that finds items and keeps the ring full.

use super::{HEAD_DIM, ITEM_BYTES, ITEMS, Plan, TILE_KEYS, WARPS};
use crate::{
    abi::{AttentionDecode, KV_BF16},
    attention_decode::{
        item::{Found, Item, group},
        products::query_address,
    },
    ptx::{self, MapRef},
};

/// The launch's maps.
#[derive(Clone, Copy)]
pub(super) struct Maps {
    pub k: MapRef,
    pub v: MapRef,
}

/// A place in a ring of `stages`: the stage, and the parity of the phase that `filled` earlier ones lead to.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub stage: u32,
    pub parity: u32,
}

impl Place {
    #[inline(always)]
    pub fn after(filled: u32, stages: u32) -> Place {
        Place { stage: filled % stages, parity: filled / stages % 2 }
    }
}

/// What a lane knows of a tile: where its keys are.
#[derive(Clone, Copy)]
struct From {
    page: u32,
    /// In the page, whose end stands for a tile that no query sees: zeros.
    row: u32,
}

impl From {
    /// Of the tile that begins at `key`.
    ///
    /// # Safety
    /// The block table covers the item's keys.
    #[inline(always)]
    unsafe fn new(p: &AttentionDecode, item: &Item, key: u32) -> From {
        let page_size = p.page_size.max(1);
        // Tiles that no query sees are not looked up: their pages may be dead.
        if key >= item.end || key + TILE_KEYS <= item.begin {
            return From { page: 0, row: page_size };
        }
        let entry = u64::from(item.table_row) * u64::from(p.block_table_stride) + u64::from(key / page_size);
        // SAFETY: the caller's promise.
        let page = unsafe { ptx::ld_global_nc_b32(p.block_table + entry * 4) };
        From { page, row: key % page_size }
    }
}

/// Shares every item of the block, brings its queries and tiles, then tells the others that there are no more.
///
/// # Safety
/// One whole warp calls it; the barriers are initialised.
#[inline(always)]
pub(super) unsafe fn produce(p: &AttentionDecode, maps: Maps, plan: Plan) {
    let base = ptx::shared_base();
    let (mut index, mut items, mut tiles) = (ptx::ctaid_x(), 0u32, 0u32);
    // SAFETY: the whole warp takes the same branches. An item's place is free once everybody has had the one before it there.
    unsafe {
        loop {
            let (item, is_end) = match Item::at(p, index, plan.rows) {
                Found::Work(item) => (item, false),
                Found::Nothing => {
                    index += ptx::nctaid_x();
                    continue;
                }
                Found::End => (Item::NONE, true),
            };
            let place = Place::after(items, ITEMS);
            let s_item = base + plan.s_items() + place.stage * ITEM_BYTES;
            let full = base + plan.item_full() + place.stage * 8;
            ptx::mbarrier_wait(base + plan.item_empty() + place.stage * 8, place.parity ^ 1);
            if ptx::lane() == 0 {
                item.share(s_item);
                ptx::mbarrier_arrive_expect_tx(full, item.rows * HEAD_DIM * 2);
            }
            ptx::bar_warp_sync();
            if is_end {
                return;
            }
            copy_queries(p, &item, base + plan.s_q() + place.stage * plan.q_bytes(), full);
            items += 1;
            copy_tiles(p, &item, maps, plan, &mut tiles);
            index += ptx::nctaid_x();
        }
    }
}

/// Starts the copy of the item's query rows, a lane each, of which `bar` is told.
///
/// # Safety
/// The whole warp calls it; `s_q` is free.
#[inline(always)]
unsafe fn copy_queries(p: &AttentionDecode, item: &Item, s_q: u32, bar: u32) {
    let (lane, group) = (ptx::lane(), group(p));
    if lane < item.rows {
        let row = item.row_tile * super::ROWS + lane;
        let (query, head) = (item.query_start + row / group, item.kv_head * group + row % group);
        // SAFETY: one of the sequence's queries.
        unsafe {
            ptx::bulk_load(
                s_q + lane * HEAD_DIM * 2,
                query_address(p, query, head, HEAD_DIM),
                HEAD_DIM * 2,
                bar,
            );
        }
    }
}

/// Brings the item's tiles, each once its stage is empty; `filled` counts them.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
unsafe fn copy_tiles(p: &AttentionDecode, item: &Item, maps: Maps, plan: Plan, filled: &mut u32) {
    let (base, lane) = (ptx::shared_base(), ptx::lane());
    let mut key = item.first_round(WARPS * TILE_KEYS);
    let mut own = From { page: 0, row: 0 };
    let mut tile = 0;
    // SAFETY: the warp is whole. The stage is free once the phase of its `empty` barrier before this one has completed; `full`
    // expects the copies.
    unsafe {
        while key < item.end {
            if tile % 32 == 0 {
                own = From::new(p, item, key + lane * TILE_KEYS);
            }
            let from =
                From { page: ptx::shfl_idx(own.page, tile % 32), row: ptx::shfl_idx(own.row, tile % 32) };
            let place = Place::after(*filled, plan.stages());
            let full = base + plan.full() + place.stage * 8;
            ptx::mbarrier_wait(base + plan.empty() + place.stage * 8, place.parity ^ 1);
            let has_scales = plan.format != KV_BF16 && from.row < p.page_size;
            if lane == 0 {
                let scales_bytes = if has_scales { plan.scales_bytes() } else { 0 };
                ptx::mbarrier_arrive_expect_tx(full, plan.stage_bytes() + scales_bytes);
            }
            ptx::bar_warp_sync();
            if lane < 2 {
                let map = if lane == 0 { maps.k } else { maps.v };
                let s_tile = base + place.stage * plan.stage_bytes() + lane * plan.tile_bytes();
                let coords = [0, from.row as i32, 0, item.kv_head as i32, from.page as i32];
                ptx::bulk_tensor_load_5d(s_tile, map, coords, full);
            } else if lane < 4 && has_scales {
                let g_scales = if lane == 2 { p.k_scales } else { p.v_scales };
                let head = u64::from(from.page) * u64::from(p.kv_heads) + u64::from(item.kv_head);
                let row = head * u64::from(p.page_size) + u64::from(from.row);
                let s_scales =
                    base + plan.s_scales() + place.stage * plan.scales_bytes() + (lane - 2) * TILE_KEYS * 4;
                ptx::bulk_load(s_scales, g_scales + row * 4, TILE_KEYS * 4, full);
            }
            *filled += 1;
            tile += 1;
            key += TILE_KEYS;
        }
    }
}
