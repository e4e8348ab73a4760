//! Which work a block has, and what each of its query rows sees.

use super::split::{self, Rule};
use crate::{
    abi::{AttentionDecode, DecodeSequence},
    ptx,
};

/// A block's share: the rows `first_row..` of one key head of a sequence, over one chunk of its keys.
#[derive(Clone, Copy)]
pub(super) struct Item {
    /// The sequence's index in the launch.
    pub launch_seq: u32,
    pub first_item: u32,
    pub query_start: u32,
    pub queries: u32,
    pub kv_len: u32,
    /// The sequence's row of the block table.
    pub table_row: u32,
    pub kv_head: u32,
    pub row_tile: u32,
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
    /// This block's, or none.
    ///
    /// # Safety
    /// Every lane of the warp calls it.
    #[inline(always)]
    pub unsafe fn of_block(p: &AttentionDecode) -> Option<Item> {
        let (kv_heads, row_tiles) = (p.kv_heads.max(1), p.row_tiles.max(1));
        // Key heads fastest, then row tiles: blocks that run together read the same pages.
        let (rest, kv_head) = (ptx::ctaid_x() / kv_heads, ptx::ctaid_x() % kv_heads);
        let (item, row_tile) = if row_tiles == 1 { (rest, 0) } else { (rest / row_tiles, rest % row_tiles) };
        // SAFETY: the warp is whole.
        let (launch_seq, [first_item, query_start, kv_len, row_and_queries]) = unsafe { find(p, item) };
        if launch_seq >= p.seqs {
            return None;
        }
        let queries = row_and_queries & ((1 << DecodeSequence::QUERY_BITS) - 1);
        let chunk = item - first_item;
        let rule = Rule {
            short_tokens: p.short_tokens,
            short_chunk_tokens: p.short_chunk_tokens,
            middle_tokens: p.middle_tokens,
            chunk_tokens: p.chunk_tokens,
            max_chunks: p.max_chunks,
        };
        let tokens = rule.tokens(kv_len);
        let visible = split::first_visible(kv_len, queries, p.window);
        let first_chunk = visible / tokens;
        if chunk < first_chunk {
            return None;
        }
        let chunk_start = chunk * tokens;
        Some(Item {
            launch_seq,
            first_item,
            query_start,
            queries,
            kv_len,
            table_row: row_and_queries >> DecodeSequence::QUERY_BITS,
            kv_head,
            row_tile,
            chunk,
            first_chunk,
            chunks: rule.chunks(kv_len) - first_chunk,
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

    /// The scratch slot of a chunk of the same rows: the number of the block that computes it.
    #[inline(always)]
    pub fn slot(&self, p: &AttentionDecode, chunk: u32) -> u64 {
        let tile =
            u64::from(self.first_item + chunk) * u64::from(p.row_tiles.max(1)) + u64::from(self.row_tile);
        tile * u64::from(p.kv_heads) + u64::from(self.kv_head)
    }
}

/// Query heads that share a key head.
#[inline(always)]
pub(super) fn group(p: &AttentionDecode) -> u32 {
    // What divides is kept from 0, or the compiler leaves a panic in.
    (p.q_heads / p.kv_heads.max(1)).max(1)
}

/// The sequence of the launch that `item` belongs to, and its record; `seqs` past the last item.
///
/// Each round the lanes look at 32 evenly spaced records and go on between two of them: one load for up to 31 sequences, two up to
/// about a thousand.
///
/// # Safety
/// Every lane of the warp calls it.
#[inline(always)]
unsafe fn find(p: &AttentionDecode, item: u32) -> (u32, [u32; 4]) {
    let records = p.seqs + 1;
    let (mut first, mut stride) = (0, 1);
    while stride * 32 < records {
        stride *= 32;
    }
    loop {
        let index = first + ptx::lane() * stride;
        let there = index < records;
        let mut record = [u32::MAX; 4];
        if there {
            // SAFETY: one of the records.
            record = unsafe { ptx::ld_global_nc_v4_b32(p.sequences + u64::from(index) * 16) };
        }
        // SAFETY: the warp is whole. The first record starts at item 0 or at that of an earlier round, so lane 0 votes yes.
        unsafe {
            let last = ptx::ballot(there && record[0] <= item).count_ones() - 1;
            first += last * stride;
            if stride == 1 {
                let take = |word| ptx::shfl_idx(word, last);
                return (first, [take(record[0]), take(record[1]), take(record[2]), take(record[3])]);
            }
        }
        stride /= 32;
    }
}

/// What a query row sees.
#[derive(Clone, Copy)]
pub(super) struct RowMask {
    /// The first visible key before the drafts.
    start: i32,
    /// Bit `j`: whether draft `j` is visible.
    drafts: u32,
}

impl RowMask {
    /// Of query `token` of the item.
    ///
    /// # Safety
    /// `token` is one of the sequence's queries.
    #[inline(always)]
    pub unsafe fn of(p: &AttentionDecode, item: &Item, token: u32) -> RowMask {
        let drafts_start = item.drafts_start();
        let own = 1u32 << token;
        let mut drafts = own | (own - 1);
        if p.tree_masks != 0 {
            // SAFETY: the caller's promise; one mask a query row.
            let mask =
                unsafe { ptx::ld_global_nc_b32(p.tree_masks + u64::from(item.query_start + token) * 4) };
            drafts = (mask | own) & ((1 << item.queries) - 1);
        }
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

    /// Of a row that is there only to fill the tile.
    #[inline(always)]
    pub fn of_padding() -> RowMask {
        RowMask { start: 0, drafts: u32::MAX }
    }

    /// Whether the row sees `key`, where the drafts start at key `drafts_start`.
    #[inline(always)]
    pub fn sees(&self, key: u32, drafts_start: i32) -> bool {
        let draft = key as i32 - drafts_start;
        if draft < 0 { key as i32 >= self.start } else { draft < 32 && self.drafts >> (draft & 31) & 1 == 1 }
    }
}
