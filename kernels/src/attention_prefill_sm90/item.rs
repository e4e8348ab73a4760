//! The items of work and the order in which a block takes them.

use super::Tile;
pub(super) use crate::tile::Ring;
use crate::{
    abi::AttentionPrefillSm90,
    attention_tile::{KeyRange, Mask},
    ptx,
};

/// One tile of queries of one head.
#[derive(Clone, Copy)]
pub(super) struct Item {
    pub head: u32,
    /// Its first query's row of `q` and `out`.
    pub token: u32,
    /// Its queries that exist, at most `block_m`.
    pub rows: u32,
    /// Position of its first query.
    pub position: i32,
    pub kv: ItemKeys,
}

/// The keys of an item.
#[derive(Clone, Copy)]
pub(super) struct ItemKeys {
    /// Keys of the sequence.
    pub kv_len: u32,
    pub seq: u32,
    /// What any of the item's queries sees.
    pub seen: KeyRange,
    pub kv_head: u32,
    /// The row of the sequence's first key among the rows of its pages.
    pub row_start: u32,
    /// The first key that any query of the sequence sees: what comes before may be anything.
    pub first_live: u32,
}

impl Item {
    /// What follows the last one.
    pub(super) const NONE: Item = Item {
        head: 0,
        token: 0,
        rows: 0,
        position: 0,
        kv: ItemKeys {
            kv_len: 0,
            seq: 0,
            seen: KeyRange { start: 0, end: 0 },
            kv_head: 0,
            row_start: 0,
            first_live: 0,
        },
    };

    /// Item `index` of the launch: sections of heads, in each the work list, of each tile of queries every head.
    ///
    /// # Safety
    /// `index` is below `tiles * q_heads`; the launch's arrays are as documented.
    #[inline(always)]
    pub(super) unsafe fn load(p: &AttentionPrefillSm90, index: u32, block_m: u32) -> Item {
        // Divisors are taken anew each time: what the compiler would keep of them costs registers.
        let section_heads = ptx::here(p.section_heads).max(1);
        let section_items = (ptx::here(p.tiles) * section_heads).max(1);
        let (section, within) = (index / section_items, index % section_items);
        let (tile, head) = (within / section_heads, within % section_heads);
        // SAFETY: the caller's promise.
        unsafe {
            let [seq, block] = ptx::ld_global_nc_v2_b32(p.work + u64::from(tile) * 8);
            let g_start = p.shared.q_starts + u64::from(seq) * 4;
            let (start, end) = (ptx::ld_global_nc_b32(g_start), ptx::ld_global_nc_b32(g_start + 4));
            let kv_len = ptx::ld_global_nc_b32(p.shared.kv_lens + u64::from(seq) * 4);
            let first = block * block_m;
            let row_start = match p.shared.kv_row_starts {
                0 => 0,
                g_starts => ptx::ld_global_nc_b32(g_starts + u64::from(seq) * 4),
            };
            let group = (ptx::here(p.shared.q_heads) / ptx::here(p.shared.kv_heads).max(1)).max(1);
            let head = section * p.section_heads + head;
            let rows = (end - start - first).min(block_m);
            let position = kv_len as i32 - (end - start) as i32 + first as i32;
            let mask = mask_of(p, kv_len);
            // Positions, and with them ranges, ascend with the row.
            let seen = KeyRange {
                start: mask.range(position).start,
                end: mask.range(position + rows as i32 - 1).end,
            };
            let first_live = mask.range(kv_len as i32 - (end - start) as i32).start as u32;
            let kv = ItemKeys { kv_len, seq, seen, kv_head: head / group, row_start, first_live };
            Item { head, token: start + first, rows, position, kv }
        }
    }

    /// Leaves the item for the consumers.
    ///
    /// # Safety
    /// `s_item` is free; one lane calls it.
    #[inline(always)]
    pub(super) unsafe fn share(&self, s_item: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            let ItemKeys { kv_len, seq, seen, kv_head, row_start, first_live } = self.kv;
            ptx::st_shared_v4_b32(s_item, [kv_len, seq, seen.start as u32, seen.end as u32]);
            ptx::st_shared_v4_b32(s_item + 16, [kv_head, row_start, first_live, 0]);
            ptx::st_shared_v4_b32(s_item + 32, [self.head, self.token, self.rows, self.position as u32]);
        }
    }

    /// What [`Item::share`] left.
    ///
    /// # Safety
    /// After the barrier that its sharer has arrived at.
    #[inline(always)]
    pub(super) unsafe fn shared(s_item: u32) -> Item {
        // SAFETY: the caller's promise.
        let ([head, token, rows, position], kv) =
            unsafe { (ptx::ld_shared_v4_b32(s_item + 32), ItemKeys::shared(s_item)) };
        Item { head, token, rows, position: position as i32, kv }
    }
}

impl ItemKeys {
    /// The part of [`Item::shared`].
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn shared(s_item: u32) -> ItemKeys {
        // SAFETY: the caller's promise.
        let ([kv_len, seq, start, end], [kv_head, row_start, first_live, _]) =
            unsafe { (ptx::ld_shared_v4_b32(s_item), ptx::ld_shared_v4_b32(s_item + 16)) };
        let seen = KeyRange { start: start as i32, end: end as i32 };
        ItemKeys { kv_len, seq, seen, kv_head, row_start, first_live }
    }
}

#[inline(always)]
pub(super) fn mask_of(p: &AttentionPrefillSm90, kv_len: u32) -> Mask {
    Mask::new(kv_len, ptx::here(p.shared.window), ptx::here(p.shared.causal) != 0)
}

/// Tiles of keys of a range: first and one past the last. Never none, so that every item takes the same steps: where nothing is seen
/// the tile is all zeros and all masked.
#[inline(always)]
pub(super) fn key_tiles(keys: KeyRange, tile: Tile) -> (u32, u32) {
    if keys.end <= keys.start {
        return (0, 1);
    }
    (keys.start as u32 / tile.block_n, (keys.end as u32).div_ceil(tile.block_n))
}
