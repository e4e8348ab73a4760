//! How a warp brings its keys and values in: which rows of the cache they are, and where they lie in its ring.
//!
//! A stage is a tile of keys, then a tile of values, rows of `CHUNKS` chunks of 16 bytes. Keys are read by lanes, four chunks of
//! a row by the four lanes of a quad, and so two rows side by side in each of the quarters that shared memory serves at a time;
//! values by `ldmatrix`, a chunk of each of eight rows.

use super::item::Item;
use crate::{
    abi::{AttentionDecode, KV_BF16},
    ptx,
    tile::swizzle,
};

/// No row: the key isn't visible.
const NONE: u32 = u32::MAX;

/// Byte offset of a chunk in a tile of keys: rows of 128 bytes or more put their chunks on the same banks, so every other row is
/// turned by half of the banks.
#[inline(always)]
pub(super) const fn swizzle_keys<const CHUNKS: u32>(row: u32, chunk: u32) -> u32 {
    let turn = if CHUNKS == 4 { 0 } else { (row & 1) << 2 };
    (row * CHUNKS + (chunk ^ turn)) * 16
}

/// Where a key lies, its page still on its way.
#[derive(Clone, Copy)]
pub(super) struct Place {
    page: u32,
    /// In the page; [`NONE`] for a key that no query sees.
    offset: u32,
}

/// Looks up the places of a lane's keys: key `lane % tile keys` of each of the warp's tiles, one tile a call.
#[derive(Clone, Copy)]
pub(super) struct Lookup {
    g_pages: u64,
    begin: u32,
    end: u32,
    key: u32,
    /// `key / page_size` and the rest, kept up by addition: a division is twenty instructions.
    page_index: u32,
    offset: u32,
    page_size: u32,
    /// A round's keys, likewise.
    round: u32,
    round_pages: u32,
    round_offset: u32,
    kv_heads: u32,
    kv_head: u32,
}

impl Lookup {
    /// From the tile at `first_key` on, every `round` keys.
    #[inline(always)]
    pub fn new(p: &AttentionDecode, item: &Item, first_key: u32, tile_keys: u32, round: u32) -> Lookup {
        let page_size = p.page_size.max(1);
        let key = first_key + ptx::lane() % tile_keys;
        Lookup {
            g_pages: p.block_table + u64::from(item.table_row) * u64::from(p.block_table_stride) * 4,
            begin: item.begin,
            end: item.end,
            key,
            page_index: key / page_size,
            offset: key % page_size,
            page_size,
            round,
            round_pages: round / page_size,
            round_offset: round % page_size,
            kv_heads: p.kv_heads,
            kv_head: item.kv_head,
        }
    }

    /// Starts to look up the lane's key of the next tile. Keys that no query sees are not looked up: their pages may be dead.
    ///
    /// # Safety
    /// The table covers the item's keys.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub unsafe fn next(&mut self) -> Place {
        let mut place = Place { page: 0, offset: NONE };
        if self.key >= self.begin && self.key < self.end {
            // SAFETY: the caller's promise.
            let page = unsafe { ptx::ld_global_nc_b32(self.g_pages + u64::from(self.page_index) * 4) };
            place = Place { page, offset: self.offset };
        }
        self.key += self.round;
        self.page_index += self.round_pages;
        self.offset += self.round_offset;
        if self.offset >= self.page_size {
            self.offset -= self.page_size;
            self.page_index += 1;
        }
        place
    }

    /// The row of the cache, or [`NONE`].
    #[inline(always)]
    fn row(&self, place: Place) -> u32 {
        // Wraps for what isn't there only: a cache has fewer than 2^32 - 1 rows.
        let row = place.page.wrapping_mul(self.kv_heads).wrapping_add(self.kv_head);
        if place.offset == NONE { NONE } else { row.wrapping_mul(self.page_size).wrapping_add(place.offset) }
    }
}

/// Scales of the lane's key and value of a tile.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    pub k: f32,
    pub v: f32,
}

impl Scales {
    pub const NONE: Scales = Scales { k: 0.0, v: 0.0 };
}

/// Copies into a warp's ring.
#[derive(Clone, Copy)]
pub(super) struct Copier {
    /// The caches, at this lane's chunk of row 0.
    g_k: u64,
    g_v: u64,
    g_k_scales: u64,
    g_v_scales: u64,
}

impl Copier {
    #[inline(always)]
    pub fn new<const CHUNKS: u32>(p: &AttentionDecode) -> Copier {
        let chunk = u64::from(ptx::lane() % CHUNKS) * 16;
        Copier {
            g_k: p.k_cache + chunk,
            g_v: p.v_cache + chunk,
            g_k_scales: p.k_scales,
            g_v_scales: p.v_scales,
        }
    }

    /// Starts the copy of a tile into the stage at `s_stage`, zeros for keys that no query sees, and the load of the lane's scales.
    ///
    /// # Safety
    /// Every lane of the warp calls it; nobody reads the stage.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub unsafe fn start<const FORMAT: u32, const CHUNKS: u32, const TILE_KEYS: u32>(
        &self,
        s_stage: u32,
        lookup: &Lookup,
        place: Place,
    ) -> Scales {
        let own_row = lookup.row(place);
        let s_values = s_stage + TILE_KEYS * CHUNKS * 16;
        for step in 0..TILE_KEYS * CHUNKS / 32 {
            let (key, chunk) = (step * (32 / CHUNKS) + ptx::lane() / CHUNKS, ptx::lane() % CHUNKS);
            // SAFETY: the warp is whole; a lane below `TILE_KEYS` has that key's row, which is in the cache. Without bytes only
            // the caches' addresses must be valid.
            unsafe {
                let row = ptx::shfl_idx(own_row, key);
                let seen = row != NONE;
                let from = if seen { u64::from(row) * u64::from(CHUNKS * 16) } else { 0 };
                let bytes = if seen { 16 } else { 0 };
                ptx::cp_async_16_evict_first(
                    s_stage + swizzle_keys::<CHUNKS>(key, chunk),
                    self.g_k + from,
                    bytes,
                );
                ptx::cp_async_16_evict_first(
                    s_values + swizzle::<CHUNKS>(key, chunk),
                    self.g_v + from,
                    bytes,
                );
            }
        }
        let mut scales = Scales::NONE;
        if FORMAT != KV_BF16 && own_row != NONE {
            let at = u64::from(own_row) * 4;
            // SAFETY: there is a scale for each row of the cache.
            unsafe {
                scales = Scales {
                    k: f32::from_bits(ptx::ld_global_nc_b32(self.g_k_scales + at)),
                    v: f32::from_bits(ptx::ld_global_nc_b32(self.g_v_scales + at)),
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
