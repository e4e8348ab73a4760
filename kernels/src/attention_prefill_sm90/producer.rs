//! One warp that keeps the rings full.

use super::{
    ITEM_BYTES, LINE, LINE_BYTES, Q_STAGES, Tile,
    item::{Item, ItemKeys, Ring, Schedule, key_tiles},
};
use crate::{
    abi::AttentionPrefillSm90,
    ptx::{self, MapRef},
};

/// The launch's maps.
#[derive(Clone, Copy)]
pub(super) struct Maps {
    pub q: MapRef,
    pub k: MapRef,
    pub v: MapRef,
}

/// Where a lane's box of a tile comes from: one page (or part of one) and 64 elements of the head.
#[derive(Clone, Copy)]
struct KvBox {
    /// Coordinates: element, row in page, key head, page.
    coords: [i32; 4],
    /// Bytes from the start of the tile in shared memory.
    s_offset: u32,
}

impl KvBox {
    /// The box that `lane` brings of tile `tile`. One that no query of the item sees is out of the tensor: zeros.
    ///
    /// # Safety
    /// The block table covers the item's keys.
    #[inline(always)]
    unsafe fn new(p: &AttentionPrefillSm90, keys: &ItemKeys, tile: u32, plan: Tile, lane: u32) -> KvBox {
        let (half, part) = (lane % plan.halves(), lane / plan.halves());
        let (page_size, box_rows) = (ptx::here(p.shared.page_size).max(1), p.box_rows.max(1));
        let first = tile * plan.block_n + part * box_rows;
        let seen = (first as i32) < keys.seen.end && (first + box_rows) as i32 > keys.seen.start;
        // A row past the page is out of the tensor.
        let (mut row, mut page) = (page_size, 0);
        if seen {
            let at = keys.row_start + first;
            let entry =
                u64::from(keys.seq) * u64::from(p.shared.block_table_stride) + u64::from(at / page_size);
            // SAFETY: a box that is seen has a key below `kv_len`, whose page the table names.
            page = unsafe { ptx::ld_global_nc_b32(p.shared.block_table + entry * 4) };
            row = at % page_size;
        }
        KvBox {
            coords: [(half * LINE) as i32, row as i32, keys.kv_head as i32, page as i32],
            s_offset: (half * plan.block_n + part * box_rows) * LINE_BYTES,
        }
    }
}

/// Loads every item's queries and tiles of keys and values.
///
/// # Safety
/// One whole warp calls it; the barriers are initialised.
#[inline(always)]
pub(super) unsafe fn produce(p: &AttentionPrefillSm90, maps: Maps, plan: Tile) {
    let base = ptx::shared_base();
    let lane = ptx::lane();
    let (mut q_ring, mut kv_ring, mut tail_parity) = (Ring::new(), Ring::new(), 0);
    let mut schedule = Schedule::new(p);
    loop {
        let index = schedule.next();
        if index == u32::MAX {
            break;
        }
        // SAFETY: the index is the launch's. A stage is written once the phase of its `empty` barrier before this one has
        // completed, and its `full` barrier expects what is copied.
        unsafe {
            let item = Item::load(p, index, plan.block_m());
            let (first_tile, end_tile) = key_tiles(item.kv.seen, plan);
            let s_item = base + plan.s_items() + q_ring.stage * ITEM_BYTES;

            let s_stage = base + q_ring.stage * 8;
            ptx::mbarrier_wait(s_stage + plan.q_empty(), q_ring.parity ^ 1);
            if lane == 0 {
                item.share(s_item);
                ptx::mbarrier_arrive_expect_tx(s_stage + plan.q_full(), plan.q_bytes());
            }
            ptx::bar_warp_sync();
            let lane = ptx::here(lane);
            if lane < plan.halves() {
                let s_q =
                    base + plan.s_q() + q_ring.stage * plan.q_bytes() + lane * plan.block_m() * LINE_BYTES;
                let coords = [(lane * LINE) as i32, item.head as i32, item.token as i32];
                ptx::bulk_tensor_load_3d(s_q, maps.q, coords, s_stage + plan.q_full());
            }
            q_ring.advance(Q_STAGES);

            let mut tile = end_tile;
            while tile > first_tile {
                tile -= 1;
                // From shared memory, not kept: the producer has few registers.
                let boxes = plan.block_n / ptx::here(p.box_rows).max(1) * plan.halves();
                let keys = ItemKeys::shared(s_item);
                let from = KvBox::new(p, &keys, tile, plan, ptx::here(lane.min(boxes - 1)));
                let s_stage = base + kv_ring.stage * 8;
                let s_tile = base + kv_ring.stage * plan.kv_bytes();
                let dead_rows = ((tile + 1) * plan.block_n).saturating_sub(keys.kv_len);

                ptx::mbarrier_wait(s_stage + plan.k_empty(), kv_ring.parity ^ 1);
                if lane == 0 {
                    ptx::mbarrier_arrive_expect_tx(s_stage + plan.k_full(), plan.kv_bytes());
                }
                ptx::bar_warp_sync();
                if lane < boxes {
                    let s_box = s_tile + plan.s_k() + from.s_offset;
                    ptx::bulk_tensor_load_4d(s_box, maps.k, from.coords, s_stage + plan.k_full());
                }

                ptx::mbarrier_wait(s_stage + plan.v_empty(), kv_ring.parity ^ 1);
                let full = if dead_rows > 0 { base + plan.tail_full() } else { s_stage + plan.v_full() };
                if lane == 0 {
                    ptx::mbarrier_arrive_expect_tx(full, plan.kv_bytes());
                }
                ptx::bar_warp_sync();
                if lane < boxes {
                    let s_box = s_tile + plan.s_v() + from.s_offset;
                    ptx::bulk_tensor_load_4d(s_box, maps.v, from.coords, full);
                }
                if dead_rows > 0 {
                    ptx::mbarrier_wait(full, tail_parity);
                    tail_parity ^= 1;
                    zero_tail(s_tile + plan.s_v(), dead_rows, plan);
                    ptx::fence_proxy_async();
                    ptx::bar_warp_sync();
                    if lane == 0 {
                        ptx::mbarrier_arrive(s_stage + plan.v_full());
                    }
                }
                kv_ring.advance(plan.stages);
            }
        }
    }
}

/// Zeros in the last `rows` rows of a tile of values.
///
/// # Safety
/// The whole warp calls it; the tile has landed and nobody else uses it.
#[inline(always)]
unsafe fn zero_tail(s_tile: u32, rows: u32, plan: Tile) {
    let chunks = rows * (LINE_BYTES / 16);
    for half in 0..plan.halves() {
        let s_rows = s_tile + ((half + 1) * plan.block_n - rows) * LINE_BYTES;
        let mut chunk = ptx::lane();
        while chunk < chunks {
            // SAFETY: within the tile; swizzling stays within a line, so whole lines need none.
            unsafe { ptx::st_shared_v4_b32(s_rows + chunk * 16, [0; 4]) };
            chunk += 32;
        }
    }
}
