//! How a warp brings its keys and values in: which rows of the cache they are, and where they lie in its ring.
//!
//! A stage is a tile of keys, then a tile of values, rows of `CHUNKS` chunks of 16 bytes. Keys are read by lanes, four chunks of
//! a row by the four lanes of a quad, and so two rows side by side in each of the quarters that shared memory serves at a time;
//! values by `ldmatrix`, a chunk of each of eight rows.

use super::{
    STAGES, WARPS,
    item::{Item, Items},
};
use crate::{
    abi::{AttentionDecode, KV_BF16},
    ptx,
    tile::swizzle,
};

/// Tiles between the look-up of a page and the copy from it: the load of a table's entry takes as long as several tiles' products.
pub(super) const LOOKUPS_AHEAD: u32 = 2;

/// Byte offset of a chunk in a tile of keys: rows of 128 bytes or more put their chunks on the same banks, so every other row is
/// turned by half of the banks.
#[inline(always)]
pub(super) const fn swizzle_keys<const CHUNKS: u32>(row: u32, chunk: u32) -> u32 {
    let turn = if CHUNKS == 4 { 0 } else { (row & 1) << 2 };
    (row * CHUNKS + (chunk ^ turn)) * 16
}

/// A warp's share of an item: its tile of each round of the block.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    /// The first key of its first tile.
    pub first_key: u32,
    pub tiles: u32,
}

impl Walk {
    #[inline(always)]
    pub fn new<const TILE_KEYS: u32>(item: &Item) -> Walk {
        let round = WARPS * TILE_KEYS;
        // Rounds count from the chunk's start, wherever a window begins: which warp has a key is the sequence's affair alone.
        let skipped = (item.begin - item.chunk_start) / round * round;
        let first_key = item.chunk_start + skipped + ptx::tid_x_anew() / 32 * TILE_KEYS;
        Walk {
            first_key,
            tiles: if item.end > first_key { (item.end - first_key).div_ceil(round) } else { 0 },
        }
    }
}

/// Where a lane's key of a tile lies, its page still on its way.
#[derive(Clone, Copy)]
struct Place {
    page: u32,
    /// The key's row in the page, its head's rows counted; or [`HIDDEN`], or [`ABSENT`].
    row: u32,
}

/// A key that no query sees: zeros take its place, and its page, which may be dead, isn't read.
const HIDDEN: u32 = u32::MAX;
/// No tile: the block's items have come to their end.
const ABSENT: u32 = u32::MAX - 1;

/// Scales of the lane's key and value of a tile.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    pub k: f32,
    pub v: f32,
}

impl Scales {
    pub const NONE: Scales = Scales { k: 0.0, v: 0.0 };
}

/// What is known of the item whose tiles are being looked up. A lane looks up key `lane % tile keys` of each tile.
#[derive(Clone, Copy)]
struct Lookup {
    /// Tiles left.
    tiles: u32,
    /// The sequence's row of the block table.
    g_pages: u64,
    begin: u32,
    end: u32,
    key: u32,
    /// `key / page_size` and the rest, kept up by addition: a division is twenty instructions.
    page_index: u32,
    offset: u32,
    /// Rows of a page before the item's head.
    head_start: u32,
}

/// Fills a warp's ring with the tiles of all the block's items, one after the other.
pub(super) struct Producer {
    items: Items,
    lookup: Lookup,
    queue: [Place; LOOKUPS_AHEAD as usize],
    page_size: u32,
    /// A round's keys in pages, and the rest.
    round_pages: u32,
    round_offset: u32,
    /// The caches, at this lane's chunk of row 0.
    g_k: u64,
    g_v: u64,
    /// Offset of the stage that the next copy goes to. Nobody reads it, and nothing is on its way to it.
    pub free_stage: u32,
}

impl Producer {
    #[inline(always)]
    pub fn new<const CHUNKS: u32, const TILE_KEYS: u32>(p: &AttentionDecode) -> Producer {
        let page_size = p.page_size.max(1);
        let chunk = u64::from(ptx::lane() % CHUNKS) * 16;
        let nothing = Place { page: 0, row: ABSENT };
        Producer {
            items: Items::new(p),
            lookup: Lookup {
                tiles: 0,
                g_pages: 0,
                begin: 0,
                end: 0,
                key: 0,
                page_index: 0,
                offset: 0,
                head_start: 0,
            },
            queue: [nothing; LOOKUPS_AHEAD as usize],
            page_size,
            round_pages: WARPS * TILE_KEYS / page_size,
            round_offset: WARPS * TILE_KEYS % page_size,
            g_k: p.k_cache + chunk,
            g_v: p.v_cache + chunk,
            // The first steps copy nothing, and the one after them fills stage 0.
            free_stage: (STAGES - LOOKUPS_AHEAD) * 2 * TILE_KEYS * CHUNKS * 16,
        }
    }

    /// Starts to look up the lane's key of the next tile, of the next item that has one for this warp if need be.
    ///
    /// # Safety
    /// The table covers the items' keys.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn look_up<const TILE_KEYS: u32, const ROWS: u32>(&mut self, p: &AttentionDecode) -> Place {
        while self.lookup.tiles == 0 {
            let Some(item) = self.items.next::<ROWS>(p) else { return Place { page: 0, row: ABSENT } };
            let walk = Walk::new::<TILE_KEYS>(&item);
            let key = walk.first_key + ptx::tid_x_anew() % TILE_KEYS;
            self.lookup = Lookup {
                tiles: walk.tiles,
                g_pages: p.block_table + u64::from(item.table_row) * u64::from(p.block_table_stride) * 4,
                begin: item.begin,
                end: item.end,
                key,
                page_index: key / self.page_size,
                offset: key % self.page_size,
                head_start: item.kv_head * self.page_size,
            };
        }
        let lookup = &mut self.lookup;
        let mut place = Place { page: 0, row: HIDDEN };
        if lookup.key >= lookup.begin && lookup.key < lookup.end {
            // SAFETY: the caller's promise.
            let page = unsafe { ptx::ld_global_nc_b32(lookup.g_pages + u64::from(lookup.page_index) * 4) };
            place = Place { page, row: lookup.head_start + lookup.offset };
        }
        lookup.tiles -= 1;
        lookup.key += WARPS * TILE_KEYS;
        lookup.page_index += self.round_pages;
        lookup.offset += self.round_offset;
        if lookup.offset >= self.page_size {
            lookup.offset -= self.page_size;
            lookup.page_index += 1;
        }
        place
    }

    /// Looks a tile up, and starts the copy of the one looked up [`LOOKUPS_AHEAD`] steps ago into the free stage of the ring at
    /// `s_ring`: one group of copies, empty if there is no such tile. The lane's scales of that tile.
    ///
    /// # Safety
    /// Every lane of the warp calls it; the free stage has been read, and the table covers the items' keys.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub unsafe fn step<const FORMAT: u32, const CHUNKS: u32, const TILE_KEYS: u32, const ROWS: u32>(
        &mut self,
        p: &AttentionDecode,
        s_ring: u32,
    ) -> Scales {
        let place = self.queue[0];
        for i in 1..LOOKUPS_AHEAD as usize {
            self.queue[i - 1] = self.queue[i];
        }
        let mut scales = Scales::NONE;
        // SAFETY: the caller's promise.
        unsafe {
            self.queue[LOOKUPS_AHEAD as usize - 1] = self.look_up::<TILE_KEYS, ROWS>(p);
            if place.row != ABSENT {
                scales = self.copy::<FORMAT, CHUNKS, TILE_KEYS>(p, s_ring + self.free_stage, place);
            }
            ptx::cp_async_commit();
        }
        let stage_bytes = 2 * TILE_KEYS * CHUNKS * 16;
        let next = self.free_stage + stage_bytes;
        self.free_stage = if next == STAGES * stage_bytes { 0 } else { next };
        scales
    }

    /// Starts the copy of a tile into the stage at `s_stage`, zeros for hidden keys, and the load of the lane's scales.
    ///
    /// # Safety
    /// As [`Producer::step`].
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn copy<const FORMAT: u32, const CHUNKS: u32, const TILE_KEYS: u32>(
        &self,
        p: &AttentionDecode,
        s_stage: u32,
        place: Place,
    ) -> Scales {
        // Fits: a cache has fewer than 2^32 - 1 rows.
        let row = place.page.wrapping_mul(p.kv_heads * self.page_size).wrapping_add(place.row);
        let own_row = if place.row == HIDDEN { HIDDEN } else { row };
        let s_values = s_stage + TILE_KEYS * CHUNKS * 16;
        let lane = ptx::tid_x_anew() % 32;
        let (lane_key, chunk) = (lane / CHUNKS, lane % CHUNKS);
        for step in 0..TILE_KEYS * CHUNKS / 32 {
            let key = step * (32 / CHUNKS) + lane_key;
            // SAFETY: the warp is whole; a lane below `TILE_KEYS` has that key's row, which is in the cache. Without bytes only
            // the caches' addresses must be valid.
            unsafe {
                let row = ptx::shfl_idx(own_row, key);
                let seen = row != HIDDEN;
                let from = if seen { u64::from(row) * u64::from(CHUNKS * 16) } else { 0 };
                let bytes = if seen { 16 } else { 0 };
                ptx::cp_async_16(s_stage + swizzle_keys::<CHUNKS>(key, chunk), self.g_k + from, bytes);
                ptx::cp_async_16(s_values + swizzle::<CHUNKS>(key, chunk), self.g_v + from, bytes);
            }
        }
        let mut scales = Scales::NONE;
        if FORMAT != KV_BF16 && own_row != HIDDEN {
            let at = u64::from(own_row) * 4;
            // SAFETY: there is a scale for each row of the cache.
            unsafe {
                scales = Scales {
                    k: f32::from_bits(ptx::ld_global_nc_b32(p.k_scales + at)),
                    v: f32::from_bits(ptx::ld_global_nc_b32(p.v_scales + at)),
                };
            }
        }
        scales
    }
}

#[cfg(all(test, not(target_arch = "nvptx64")))]
mod tests {
    use super::*;

    fn check<const CHUNKS: u32>() {
        let rows = 32;
        let mut seen = vec![false; (rows * CHUNKS) as usize];
        for row in 0..rows {
            for chunk in 0..CHUNKS {
                let offset = swizzle_keys::<CHUNKS>(row, chunk);
                assert_eq!(offset / (CHUNKS * 16), row, "a chunk stays in its row");
                assert!(!std::mem::replace(&mut seen[(offset / 16) as usize], true));
            }
        }
        let on_all_banks = |offsets: [u32; 8]| {
            let mut hit = [false; 8];
            offsets.iter().for_each(|o| hit[(o / 16 % 8) as usize] = true);
            hit == [true; 8]
        };
        for row in (0..rows).step_by(2) {
            for quad in 0..CHUNKS / 4 {
                let quarter = std::array::from_fn(|i| {
                    swizzle_keys::<CHUNKS>(row + i as u32 / 4, quad * 4 + i as u32 % 4)
                });
                assert!(on_all_banks(quarter), "lanes read rows {row}.., quad {quad} of {CHUNKS} chunks");
            }
        }
        for first in (0..rows * CHUNKS).step_by(8) {
            let copy = std::array::from_fn(|i| {
                swizzle_keys::<CHUNKS>((first + i as u32) / CHUNKS, (first + i as u32) % CHUNKS)
            });
            assert!(on_all_banks(copy), "copy of chunks {first}.. of {CHUNKS}");
        }
    }

    #[test]
    fn keys_are_a_bijection_without_bank_conflicts() {
        check::<4>();
        check::<8>();
        check::<16>();
    }
}
