//! Which work a block has, and what each of its query rows sees.

use super::split;
use crate::{
    abi::{AttentionDecode, DecodeItem},
    ptx,
};

/// A unit of work: a tile of query rows of one key head of a sequence, over one chunk of its keys.
#[derive(Clone, Copy)]
pub(super) struct Item {
    /// The unit of the same rows' first chunk in the launch, and the distance from chunk to chunk. A unit has a slot of the scratch.
    first_unit: u32,
    unit_stride: u32,
    pub query_start: u32,
    pub queries: u32,
    pub kv_len: u32,
    /// The sequence's row of the block table.
    pub table_row: u32,
    pub kv_head: u32,
    /// The first of the tile's rows in the sequence, and how many there are.
    pub first_row: u32,
    pub rows: u32,
    pub chunk: u32,
    /// The first chunk that holds a visible key.
    pub first_chunk: u32,
    /// Chunks from there on.
    pub chunks: u32,
    /// Keys of the chunk that some query may see: `begin..end`, within the chunk that starts at `chunk_start`.
    pub chunk_start: u32,
    pub begin: u32,
    pub end: u32,
}

impl Item {
    /// Unit `unit`, whose record is `record`; none if it asks for nothing.
    #[inline(always)]
    fn of<const ROWS: u32>(p: &AttentionDecode, unit: u32, record: [u32; 4]) -> Option<Item> {
        let [first_item, query_start, kv_len, row_and_queries] = record;
        let queries = row_and_queries & ((1 << DecodeItem::QUERY_BITS) - 1);
        let Split { item, row_tile, kv_head } = Split::of(p, unit);
        let (all_rows, first_row) = (queries * group(p), row_tile * ROWS);
        let tokens = split::chunk_tokens(kv_len);
        let visible = split::first_visible(kv_len, queries, p.window);
        let (chunk, first_chunk) = (item - first_item, if visible == 0 { 0 } else { visible / tokens });
        if first_row >= all_rows || chunk < first_chunk {
            return None;
        }
        let chunk_start = chunk * tokens;
        Some(Item {
            first_unit: unit - chunk * p.row_tiles * p.kv_heads,
            unit_stride: p.row_tiles * p.kv_heads,
            query_start,
            queries,
            kv_len,
            table_row: row_and_queries >> DecodeItem::QUERY_BITS,
            kv_head,
            first_row,
            rows: if all_rows - first_row < ROWS { all_rows - first_row } else { ROWS },
            chunk,
            first_chunk,
            chunks: split::chunks(kv_len) - first_chunk,
            chunk_start,
            begin: if visible > chunk_start { visible } else { chunk_start },
            end: if kv_len - chunk_start < tokens { kv_len } else { chunk_start + tokens },
        })
    }

    /// The first draft's key; negative if the sequence holds fewer keys than queries.
    #[inline(always)]
    pub fn drafts_start(&self) -> i32 {
        self.kv_len as i32 - self.queries as i32
    }

    /// The scratch slot of a chunk of the same rows; the first chunk's is also that of the counter.
    #[inline(always)]
    pub fn slot(&self, chunk: u32) -> u64 {
        u64::from(self.first_unit + chunk * self.unit_stride)
    }

    /// The row of `q` and `out`, counted in heads, of row `row` of the tile.
    #[inline(always)]
    pub fn head(&self, p: &AttentionDecode, row: u32) -> u64 {
        let (query, head) = ((self.first_row + row) / group(p), (self.first_row + row) % group(p));
        u64::from(self.query_start + query) * u64::from(p.q_heads) + u64::from(self.kv_head * group(p) + head)
    }
}

/// What a unit is of.
struct Split {
    item: u32,
    row_tile: u32,
    kv_head: u32,
}

impl Split {
    /// Key heads fastest, then row tiles: blocks that run together read the same pages.
    #[inline(always)]
    fn of(p: &AttentionDecode, unit: u32) -> Split {
        let (kv_heads, row_tiles) = (p.kv_heads.max(1), p.row_tiles.max(1));
        let (rest, kv_head) = (unit / kv_heads, unit % kv_heads);
        let (item, row_tile) = if row_tiles == 1 { (rest, 0) } else { (rest / row_tiles, rest % row_tiles) };
        Split { item, row_tile, kv_head }
    }
}

/// The units of a launch.
#[inline(always)]
fn units(p: &AttentionDecode) -> u32 {
    p.item_count * p.row_tiles * p.kv_heads
}

/// Starts to load a unit's record; nothing past the last.
#[inline(always)]
fn load_record(p: &AttentionDecode, unit: u32) -> [u32; 4] {
    let mut record = [0; 4];
    if unit < units(p) {
        let item = u64::from(Split::of(p, unit).item);
        // SAFETY: a unit of an item that is there.
        record = unsafe { ptx::ld_global_nc_v4_b32(p.items + item * 16) };
    }
    record
}

/// A block's units in ascending order, the record of the next one on its way.
#[derive(Clone, Copy)]
pub(super) struct Items {
    next: u32,
    record: [u32; 4],
}

impl Items {
    #[inline(always)]
    pub fn new(p: &AttentionDecode) -> Items {
        Items { next: ptx::ctaid_x(), record: load_record(p, ptx::ctaid_x()) }
    }

    /// The next unit of the block that asks for anything.
    #[inline(always)]
    pub fn next<const ROWS: u32>(&mut self, p: &AttentionDecode) -> Option<Item> {
        while self.next < units(p) {
            let (unit, record) = (self.next, self.record);
            self.next = unit + ptx::nctaid_x();
            self.record = load_record(p, self.next);
            let item = Item::of::<ROWS>(p, unit, record);
            if item.is_some() {
                return item;
            }
        }
        None
    }
}

/// The same units in the same order, some time after [`Items`]: the records are in a cache by then, and aren't held in registers.
#[derive(Clone, Copy)]
pub(super) struct LateItems {
    next: u32,
}

impl LateItems {
    #[inline(always)]
    pub fn new() -> LateItems {
        LateItems { next: ptx::ctaid_x() }
    }

    /// The next unit of the block that asks for anything, and its number.
    #[inline(always)]
    pub fn next<const ROWS: u32>(&mut self, p: &AttentionDecode) -> Option<(u32, Item)> {
        while self.next < units(p) {
            let unit = self.next;
            self.next = unit + ptx::nctaid_x();
            if let Some(item) = Self::again::<ROWS>(p, unit) {
                return Some((unit, item));
            }
        }
        None
    }

    /// A unit that [`LateItems::next`] has given before.
    #[inline(always)]
    pub fn again<const ROWS: u32>(p: &AttentionDecode, unit: u32) -> Option<Item> {
        Item::of::<ROWS>(p, unit, load_record(p, unit))
    }
}

/// Query heads that share a key head.
#[inline(always)]
pub(super) fn group(p: &AttentionDecode) -> u32 {
    // What divides is kept from 0, or the compiler leaves a panic in.
    (p.q_heads / p.kv_heads.max(1)).max(1)
}

/// What a query row sees of its sequence.
#[derive(Clone, Copy)]
pub(super) struct RowMask {
    /// The first visible key before the drafts.
    start: i32,
    /// Bit `j`: whether draft `j` is visible.
    drafts: u32,
}

impl RowMask {
    /// Of a row that is there only to fill the tile.
    pub const OF_PADDING: RowMask = RowMask { start: 0, drafts: u32::MAX };

    /// Of query `token` of the item.
    ///
    /// # Safety
    /// `token` is one of the sequence's queries.
    #[inline(always)]
    pub unsafe fn of(p: &AttentionDecode, item: &Item, token: u32) -> RowMask {
        let own = 1u32 << token;
        let mut drafts = own | (own - 1);
        if p.tree_masks != 0 {
            // SAFETY: the caller's promise; one mask a query row.
            let mask =
                unsafe { ptx::ld_global_nc_b32(p.tree_masks + u64::from(item.query_start + token) * 4) };
            drafts = (mask | own) & ((1 << item.queries) - 1);
        }
        let drafts_start = item.drafts_start();
        if drafts_start < 0 {
            // Drafts that would stand before the first key aren't there. At most 16.
            drafts = drafts >> -drafts_start << -drafts_start;
        }
        let mut start = 0;
        if p.window != 0 {
            while drafts.count_ones() > p.window {
                drafts &= drafts - 1;
            }
            let before = p.window.min(1 << 30) as i32 - drafts.count_ones() as i32;
            start = if drafts_start > before { drafts_start - before } else { 0 };
        }
        RowMask { start, drafts }
    }

    /// Whether the row sees `key`, where the drafts start at key `drafts_start`.
    #[inline(always)]
    pub fn sees(&self, key: u32, drafts_start: i32) -> bool {
        let draft = key as i32 - drafts_start;
        if draft < 0 { key as i32 >= self.start } else { draft < 32 && self.drafts >> (draft & 31) & 1 == 1 }
    }
}
