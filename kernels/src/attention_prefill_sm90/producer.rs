//! Two warps that keep the rings full: one has items, queries and keys, the other values, since a lane issues a box after the other
//! and a tile of small pages is many boxes.

use super::{
    ITEM_BYTES, LINE, LINE_BYTES, Tile,
    item::{Item, ItemKeys, Ring, key_tiles},
};
use crate::{
    abi::AttentionPrefillSm90,
    attention_tile::KeyRange,
    ptx::{self, MapRef},
    tile::queue,
};

/// The launch's maps.
#[derive(Clone, Copy)]
pub(super) struct Maps {
    pub q: MapRef,
    pub k: MapRef,
    pub v: MapRef,
}

/// Where a lane's box of a tile comes from: a row of one page.
#[derive(Clone, Copy)]
struct From {
    row: u32,
    page: u32,
}

impl From {
    /// Of part `part` of tile `tile`. A part that no query of the item sees is out of the tensor: zeros.
    ///
    /// # Safety
    /// The block table covers the item's keys.
    #[inline(always)]
    unsafe fn new(p: &AttentionPrefillSm90, keys: &ItemKeys, tile: u32, plan: Tile, part: u32) -> From {
        let (page_size, box_rows) = (ptx::here(p.shared.page_size).max(1), p.box_rows.max(1));
        let first = tile * plan.block_n + part * box_rows;
        let seen = (first as i32) < keys.seen.end && (first + box_rows) as i32 > keys.seen.start;
        if !seen {
            return From { row: page_size, page: 0 };
        }
        let at = keys.row_start + first;
        let entry = u64::from(keys.seq) * u64::from(p.shared.block_table_stride) + u64::from(at / page_size);
        // SAFETY: a part that is seen has a key below `kv_len`, whose page the table names.
        let page = unsafe { ptx::ld_global_nc_b32(p.shared.block_table + entry * 4) };
        From { row: at % page_size, page }
    }
}

/// A producing warp.
struct Producer<'a> {
    p: &'a AttentionPrefillSm90,
    map: MapRef,
    plan: Tile,
    base: u32,
    /// Of keys or of values, whose mark is the parity of `tail_full`.
    ring: Ring,
}

impl<'a> Producer<'a> {
    #[inline(always)]
    fn new(p: &'a AttentionPrefillSm90, map: MapRef, plan: Tile) -> Self {
        Self { p, map, plan, base: ptx::shared_base(), ring: Ring::new() }
    }

    /// Brings a tile of keys once its stage is empty.
    ///
    /// # Safety
    /// The whole warp calls it; `s_item` holds the item.
    #[inline(always)]
    unsafe fn keys(&mut self, s_item: u32, from: From) {
        let (plan, ring) = (self.plan, self.ring);
        let s_stage = self.base + ring.stage(plan.stages) * 8;
        // SAFETY: the stage is free once the phase of its `empty` barrier before this one has completed; `full` expects the copy.
        unsafe {
            ptx::mbarrier_wait(s_stage + plan.k_empty(), ring.parity(plan.stages) ^ 1);
            let s_tile = self.base + plan.s_k() + ring.stage(plan.stages) * plan.kv_bytes();
            self.copy(s_item, from, s_tile, s_stage + plan.k_full());
        }
        self.ring = ring.next();
    }

    /// Brings tile `tile` of values once its stage is empty. Rows that no query of the sequence sees become zeros.
    ///
    /// # Safety
    /// As [`Producer::keys`].
    #[inline(always)]
    unsafe fn values(&mut self, s_item: u32, from: From, tile: u32) {
        let (plan, ring) = (self.plan, self.ring);
        let s_stage = self.base + ring.stage(plan.stages) * 8;
        let s_tile = self.base + plan.s_v() + ring.stage(plan.stages) * plan.kv_bytes();
        // SAFETY: as for keys. Where rows are dead, the copy completes a barrier of the producer's own first.
        unsafe {
            ptx::mbarrier_wait(s_stage + plan.v_empty(), ring.parity(plan.stages) ^ 1);
            // Read twice rather than kept: the producer has few registers.
            let first = ptx::here(tile) * plan.block_n;
            let keys = ItemKeys::shared(s_item);
            let has_dead = first < keys.first_live || first + plan.block_n > keys.kv_len;
            let s_tail = self.base + plan.tail_full();
            self.copy(s_item, from, s_tile, if has_dead { s_tail } else { s_stage + plan.v_full() });
            if has_dead {
                ptx::mbarrier_wait(s_tail, self.ring.mark());
                self.ring = self.ring.turn_mark();
                let first = ptx::here(tile) * plan.block_n;
                let keys = ItemKeys::shared(s_item);
                let live = KeyRange {
                    start: keys.first_live.saturating_sub(first) as i32,
                    end: keys.kv_len.saturating_sub(first).min(plan.block_n) as i32,
                };
                zero_dead(s_tile, live, plan);
                ptx::fence_proxy_async();
                ptx::bar_warp_sync();
                if ptx::lane() == 0 {
                    ptx::mbarrier_arrive(s_stage + plan.v_full());
                }
            }
        }
        self.ring = self.ring.next();
    }

    /// Starts the copy of each lane's box to the tile `s_tile`, of which `bar` is told.
    ///
    /// # Safety
    /// As [`Producer::keys`]; the tile is free.
    #[inline(always)]
    unsafe fn copy(&self, s_item: u32, from: From, s_tile: u32, bar: u32) {
        let (plan, lane) = (self.plan, ptx::here(ptx::lane()));
        let (half, part) = (lane % plan.halves(), lane / plan.halves());
        let s_box = s_tile + (half * plan.block_n + part * self.p.box_rows) * LINE_BYTES;
        // SAFETY: the caller's promises; the boxes of all lanes make up the tile.
        unsafe {
            if lane == 0 {
                ptx::mbarrier_arrive_expect_tx(bar, plan.kv_bytes());
            }
            ptx::bar_warp_sync();
            if part * self.p.box_rows < plan.block_n {
                let kv_head = ItemKeys::shared(s_item).kv_head;
                let coords = [(half * LINE) as i32, from.row as i32, kv_head as i32, from.page as i32];
                ptx::bulk_tensor_load_4d(s_box, self.map, coords, bar);
            }
        }
    }
}

/// Takes items, loads their queries and tiles of keys, then tells the others that there are no more.
///
/// # Safety
/// One whole warp calls it; the barriers are initialised.
#[inline(always)]
pub(super) unsafe fn produce(p: &AttentionPrefillSm90, maps: Maps, plan: Tile) {
    let base = ptx::shared_base();
    let mut producer = Producer::new(p, maps.k, plan);
    let mut q_ring = Ring::new();
    let mut index = ptx::ctaid_x();
    // SAFETY: the whole warp takes the same branches; indices below the number of items are the launch's.
    unsafe {
        loop {
            let s_stage = base + q_ring.stage(plan.q_stages) * 8;
            let s_item = base + plan.s_items() + q_ring.stage(plan.q_stages) * ITEM_BYTES;
            let is_item = index < p.tiles * p.shared.q_heads;
            let item = if is_item { Item::load(p, index, plan.block_m()) } else { Item::NONE };
            ptx::mbarrier_wait(s_stage + plan.q_empty(), q_ring.parity(plan.q_stages) ^ 1);
            // Of one stage, this warp's own lanes have read the item before in the same place.
            ptx::bar_warp_sync();
            if ptx::lane() == 0 {
                item.share(s_item);
                let bytes = if is_item { plan.q_bytes() } else { 0 };
                ptx::mbarrier_arrive_expect_tx(s_stage + plan.q_full(), bytes);
            }
            ptx::bar_warp_sync();
            if !is_item {
                break;
            }
            let lane = ptx::here(ptx::lane());
            if lane < plan.halves() {
                let s_q = base
                    + plan.s_q()
                    + q_ring.stage(plan.q_stages) * plan.q_bytes()
                    + lane * plan.block_m() * LINE_BYTES;
                let coords = [(lane * LINE) as i32, item.head as i32, item.token as i32];
                ptx::bulk_tensor_load_3d(s_q, maps.q, coords, s_stage + plan.q_full());
            }
            q_ring = q_ring.next();
            // Its answer is needed an item later.
            index = queue::ask(p.counters).index();
            produce_tiles::<true>(&mut producer, s_item);
        }
        queue::leave(p.counters);
    }
}

/// Loads the tiles of values of the items that [`produce`] takes.
///
/// # Safety
/// As [`produce`], by another warp of its warpgroup.
#[inline(always)]
pub(super) unsafe fn produce_values(p: &AttentionPrefillSm90, maps: Maps, plan: Tile) {
    let base = ptx::shared_base();
    let mut producer = Producer::new(p, maps.v, plan);
    let mut q_ring = Ring::new();
    // SAFETY: the whole warp takes the same branches. Items come in the order of `produce`, and stay until this warp has arrived.
    unsafe {
        loop {
            let s_stage = base + q_ring.stage(plan.q_stages) * 8;
            let s_item = base + plan.s_items() + q_ring.stage(plan.q_stages) * ITEM_BYTES;
            ptx::mbarrier_wait(s_stage + plan.q_full(), q_ring.parity(plan.q_stages));
            if Item::shared(s_item).rows == 0 {
                return;
            }
            produce_tiles::<false>(&mut producer, s_item);
            ptx::bar_warp_sync();
            if ptx::lane() == 0 {
                ptx::mbarrier_arrive(s_stage + plan.q_empty());
            }
            q_ring = q_ring.next();
        }
    }
}

/// Loads the item's tiles, of keys or of values, from the last to the first.
///
/// # Safety
/// As [`produce`]; `s_item` holds the item.
#[inline(always)]
unsafe fn produce_tiles<const KEYS: bool>(producer: &mut Producer<'_>, s_item: u32) {
    let plan = producer.plan;
    // SAFETY: the caller's promises.
    unsafe {
        let keys = ItemKeys::shared(s_item);
        let (first_tile, mut tile) = key_tiles(keys.seen, plan);
        while tile > first_tile {
            tile -= 1;
            // From shared memory, not kept: the producer has few registers.
            let part = ptx::here(ptx::lane()) / plan.halves();
            let from = From::new(producer.p, &ItemKeys::shared(s_item), tile, plan, part);
            if KEYS { producer.keys(s_item, from) } else { producer.values(s_item, from, tile) }
        }
    }
}

/// Zeros in the rows of a tile of values outside `live`.
///
/// # Safety
/// The whole warp calls it; the tile has landed and nobody else uses it.
#[inline(always)]
unsafe fn zero_dead(s_tile: u32, live: KeyRange, plan: Tile) {
    let chunks = LINE_BYTES / 16;
    // A line of a lane's row at a time: rows of all halves.
    let mut line = ptx::lane();
    while line < plan.block_n * plan.halves() {
        let row = (line % plan.block_n) as i32;
        if row < live.start || row >= live.end {
            for chunk in 0..chunks {
                // Neighbouring lanes begin with different banks.
                let at = (chunk + line) % chunks * 16;
                // SAFETY: within the tile; swizzling stays within a line, so whole lines need none.
                unsafe { ptx::st_shared_v4_b32(s_tile + line * LINE_BYTES + at, [0; 4]) };
            }
        }
        line += 32;
    }
}
