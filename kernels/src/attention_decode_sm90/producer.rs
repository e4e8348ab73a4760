//! The warp that takes items, looks up their pages and keeps the ring full.

use super::{
    BOX_ROWS, ITEM_BYTES, ITEMS, Plan, STAGE_BYTES, TILE_BYTES,
    work::{Place, Tiles, Work},
};
use crate::{
    abi::AttentionDecodeSm90,
    attention_decode::item::Item,
    ptx::{self, MapRef},
    tile::{Ring, queue},
};

/// The launch's maps.
#[derive(Clone, Copy)]
pub(super) struct Maps {
    pub k: MapRef,
    pub v: MapRef,
}

/// The row of a box that is out of the tensor, all of it: zeros.
const NONE: u32 = BOX_ROWS.wrapping_neg();

/// Brings all items of the block, then tells the four warps that there are no more.
///
/// # Safety
/// One whole warp calls it; the barriers are initialised.
#[inline(always)]
pub(super) unsafe fn produce(p: &AttentionDecodeSm90, maps: Maps, plan: Plan) {
    let base = ptx::shared_base();
    let (mut ring, mut place) = (Ring::new(), Place(0));
    let mut index = ptx::ctaid_x();
    // SAFETY: the whole warp takes the same branches; the sequences say which indices are the launch's. They are no launch's work; what
    // launches leave each other are the counters, keys and values: all after the wait.
    unsafe {
        let mut work = Work::new(&p.shared, plan, index);
        ptx::start_after_previous();
        while index < p.items {
            // Its answer is needed when this item's tiles are on their way.
            let asked = queue::ask(p.queue);
            if let Some(work) = work {
                let stage = ring.stage(ITEMS);
                let rows = box_rows(p, plan, &work.item, Tiles::new(&work.item, plan).first);
                ptx::mbarrier_wait(base + plan.item_empty() + stage * 8, ring.parity(ITEMS) ^ 1);
                if ptx::lane() == 0 {
                    work.share(base + plan.s_items() + stage * ITEM_BYTES);
                    ptx::mbarrier_arrive(base + plan.item_full() + stage * 8);
                }
                place = bring(p, maps, plan, &work.item, rows, place);
                ring = ring.next();
            }
            index = asked.index();
            work = Work::new(&p.shared, plan, index);
        }
        let stage = ring.stage(ITEMS);
        ptx::mbarrier_wait(base + plan.item_empty() + stage * 8, ring.parity(ITEMS) ^ 1);
        if ptx::lane() == 0 {
            Work::share_end(base + plan.s_items() + stage * ITEM_BYTES);
            ptx::mbarrier_arrive(base + plan.item_full() + stage * 8);
        }
        queue::leave(p.queue);
    }
}

/// Brings an item's tiles, from place `place` of the ring on, each when its stage is empty; `rows` are those of its first ones. The place after them.
///
/// # Safety
/// The whole warp calls it; the block table covers the item's keys.
#[inline(always)]
unsafe fn bring(
    p: &AttentionDecodeSm90,
    maps: Maps,
    plan: Plan,
    item: &Item,
    mut rows: u32,
    mut place: Place,
) -> Place {
    let base = ptx::shared_base();
    let tiles = Tiles::new(item, plan);
    let mut first = tiles.first;
    // SAFETY: a stage is free once the phase of its `empty` barrier before this one has completed; `full` expects the copies.
    unsafe {
        while first < tiles.end {
            // Looked up while these are brought.
            let next = first + 32 / plan.boxes();
            let next_rows = box_rows(p, plan, item, next);
            let mut tile = first;
            while tile < next && tile < tiles.end {
                let stage = place.stage(plan);
                let (full, s_tile) = (base + plan.full() + stage * 8, base + stage * STAGE_BYTES);
                ptx::mbarrier_wait(base + plan.empty() + stage * 8, place.parity(plan) ^ 1);
                if ptx::lane() == 0 {
                    ptx::mbarrier_arrive_expect_tx(full, STAGE_BYTES);
                }
                for part in 0..plan.boxes() {
                    let row = ptx::shfl_idx(rows, (tile - first) * plan.boxes() + part);
                    if ptx::lane() == 0 {
                        let s_box = s_tile + part * (TILE_BYTES / plan.boxes());
                        let coords = [0, row as i32, 0];
                        ptx::bulk_tensor_load_3d(s_box, maps.k, coords, full);
                        ptx::bulk_tensor_load_3d(s_box + TILE_BYTES, maps.v, coords, full);
                    }
                }
                place = Place(place.0.wrapping_add(1));
                tile += 1;
            }
            (first, rows) = (next, next_rows);
        }
    }
    place
}

/// Starts to look up the first row of the lane's box of the tiles from `tile` on: as many tiles as the warp has lanes for.
///
/// # Safety
/// The block table covers the item's keys.
#[inline(always)]
unsafe fn box_rows(p: &AttentionDecodeSm90, plan: Plan, item: &Item, tile: u32) -> u32 {
    let (p, page_size) = (&p.shared, p.shared.page_size.max(1));
    let key = item.chunk_start + tile * plan.tile_keys() + ptx::lane() * BOX_ROWS;
    // The pages of what no query sees may be dead.
    if key + BOX_ROWS <= item.begin || key >= item.end {
        return NONE;
    }
    let entry = u64::from(item.table_row) * u64::from(p.block_table_stride) + u64::from(key / page_size);
    // SAFETY: a box that is seen has a key below `kv_len`, whose page the table names.
    let page = unsafe { ptx::ld_global_nc_b32(p.block_table + entry * 4) };
    (page * p.kv_heads + item.kv_head) * page_size + key % page_size
}
