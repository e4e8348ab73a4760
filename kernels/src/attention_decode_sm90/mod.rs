//! [`attention_decode`](crate::attention_decode) for Hopper: the same work, the same bits, fed by the copy engine.
//!
//! Blocks persist: each takes every `gridDim.x`-th item, and its ring runs on from an item to the next, so that neither the start of an
//! item nor its end leaves the memory idle. Only the warps that multiply ever wait for anything but the memory.
//!
//! ```text
//! warp 4     find item, pages | q | K0 V0 | K1 V1 | ...  the next item ...     a ring of tiles of 16 keys, by bulk copies
//! warp w<4   tiles w, w + 4, ... of the item | the warps' parts meet | scratch or output | next item ...
//! warp 5     for each chunk that is in the scratch: release, count, and tell the warps a whole item later whether it was the last
//! warps 0-3  if it was: join the chunks, in ascending order
//! ```
//!
//! Keys of a tile that no query sees come as zeros where a whole tile is unseen, and as whatever the page holds where a part is: its
//! values are zeroed by the warp that reads them. Shapes: as there, with head dim 128 and pages of a multiple of 16 tokens.
//!
//! Source: as there; a ring fed by a warp of its own: Bauer, Cook and Khailany, "CudaDMA", 2011.

use crate::{
    abi::{KV_BF16, KV_FP8, KV_INT8, KernelSpec},
    attention_decode::{Variant, merge_row, row_bytes},
};

#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod consumer;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub mod kernel;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod producer;

/// Warps that multiply.
pub(crate) const WARPS: u32 = 4;
/// Threads a block: those, a warp that copies and one that counts.
pub const THREADS: u32 = (WARPS + 2) * 32;
/// Keys of a tile; pages are multiples of it.
pub const TILE_KEYS: u32 = 16;
/// Elements of a head.
pub const HEAD_DIM: u32 = 128;
/// Blocks a multiprocessor: while one waits for its parts to meet or joins chunks, the other multiplies.
pub const BLOCKS: u32 = 2;
/// Items in shared memory: one in work, others whose tiles are on their way already.
pub(crate) const ITEMS: u32 = 3;
/// Bytes of an item in shared memory.
pub(crate) const ITEM_BYTES: u32 = 64;
/// Bytes that two blocks a multiprocessor may have each: 228 KiB less 1 KiB a block.
const BLOCK_BYTES: u32 = 113 << 10;

/// What a block keeps in shared memory, in bytes from its start.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// [`KV_BF16`], [`KV_INT8`] or [`KV_FP8`].
    pub format: u32,
    /// Query rows of a block.
    pub rows: u32,
}

impl Plan {
    /// Tiles of the ring: as many as fit.
    pub const fn stages(&self) -> u32 {
        if self.format == KV_BF16 { 11 } else { 21 }
    }
    /// Bytes of a tile of keys, and of one of values: lines of 128 bytes, swizzled.
    pub const fn tile_bytes(&self) -> u32 {
        TILE_KEYS * row_bytes(self.format, HEAD_DIM)
    }
    /// Bytes of a stage.
    pub const fn stage_bytes(&self) -> u32 {
        2 * self.tile_bytes()
    }
    /// bf16 `[ITEMS, rows, HEAD_DIM]`: queries.
    pub const fn s_q(&self) -> u32 {
        self.stages() * self.stage_bytes()
    }
    /// Bytes of an item's queries.
    pub const fn q_bytes(&self) -> u32 {
        self.rows * HEAD_DIM * 2
    }
    /// f32 `[WARPS, rows, merge_row]`: the warps' outputs.
    pub const fn s_outs(&self) -> u32 {
        self.s_q() + ITEMS * self.q_bytes()
    }
    /// From one warp's output to the next.
    pub const fn outs_stride(&self) -> u32 {
        self.rows * merge_row(HEAD_DIM) * 4
    }
    /// f32 `[WARPS, rows, 2]`: the warps' maxima and sums.
    pub const fn s_sums(&self) -> u32 {
        self.s_outs() + WARPS * self.outs_stride()
    }
    /// f32 `[stages, 2, TILE_KEYS]` where the cache is quantised: scales of keys, of values.
    pub const fn s_scales(&self) -> u32 {
        self.s_sums() + WARPS * self.rows * 8
    }
    /// Bytes of a stage's scales.
    pub const fn scales_bytes(&self) -> u32 {
        if self.format == KV_BF16 { 0 } else { TILE_KEYS * 8 }
    }
    /// [`ITEMS`] items.
    pub const fn s_items(&self) -> u32 {
        self.s_scales() + self.stages() * self.scales_bytes()
    }
    /// `full[stages]`: the tile has landed.
    pub const fn full(&self) -> u32 {
        self.s_items() + ITEMS * ITEM_BYTES
    }
    /// `empty[stages]`: its warp has read it.
    pub const fn empty(&self) -> u32 {
        self.full() + self.stages() * 8
    }
    /// `item_full[ITEMS]`: the item and its queries have landed.
    pub const fn item_full(&self) -> u32 {
        self.empty() + self.stages() * 8
    }
    /// `item_empty[ITEMS]`: everybody has it in registers.
    pub const fn item_empty(&self) -> u32 {
        self.item_full() + ITEMS * 8
    }
    /// All warps have left a chunk in the scratch.
    pub const fn written(&self) -> u32 {
        self.item_empty() + ITEMS * 8
    }
    /// `is_last` says whether that chunk was the last of its rows to be written.
    pub const fn counted(&self) -> u32 {
        self.written() + 8
    }
    /// u32.
    pub const fn is_last(&self) -> u32 {
        self.counted() + 8
    }
    /// All of it.
    pub const fn bytes(&self) -> u32 {
        self.is_last() + 16
    }
    /// Where the warps' parts meet.
    #[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
    pub(crate) const fn parts(&self) -> crate::attention_decode::join::Parts {
        crate::attention_decode::join::Parts {
            outs: self.s_outs(),
            stride: self.outs_stride(),
            sums: self.s_sums(),
            rows: self.rows,
            head_dim: HEAD_DIM,
        }
    }
}

/// Query rows of a block.
const ROWS: u32 = 8;

const fn variant(name: &'static str, format: u32) -> Variant {
    let plan = Plan { format, rows: ROWS };
    assert!(plan.bytes() <= BLOCK_BYTES && plan.tile_bytes().is_multiple_of(1024));
    // The chunks' maxima and sums of the join.
    assert!(ROWS * crate::attention_decode::split::MAX_CHUNKS * 8 <= WARPS * plan.outs_stride());
    let spec = KernelSpec {
        name,
        threads: THREADS,
        min_blocks: BLOCKS,
        shared_bytes: plan.bytes(),
        allowance: None,
    };
    Variant { spec, format, head_dim: HEAD_DIM, rows: ROWS }
}

/// Every entry.
pub static VARIANTS: [Variant; 3] = [
    variant("attention_decode_sm90_bf16", KV_BF16),
    variant("attention_decode_sm90_int8", KV_INT8),
    variant("attention_decode_sm90_fp8", KV_FP8),
];

/// What the launcher decides.
#[cfg(not(target_arch = "nvptx64"))]
pub mod launch {
    use super::{BLOCKS, HEAD_DIM, TILE_KEYS, VARIANTS};
    use crate::{
        abi::KV_BF16,
        attention_decode::{Variant, row_bytes},
        attention_prefill_sm90::{LINE_BYTES, launch::MapShape},
    };

    /// The entry for a cache of `format`, `head_dim` and `page_size` and spans of at most `rows` query rows a key head, if one serves
    /// it: others are for `attention_decode`, whose bits are the same.
    pub fn select(format: u32, head_dim: u32, page_size: u32, rows: u32) -> Option<&'static Variant> {
        let fits = |v: &&Variant| v.format == format && rows <= v.rows;
        (head_dim == HEAD_DIM && page_size > 0 && page_size.is_multiple_of(TILE_KEYS))
            .then(|| VARIANTS.iter().find(fits))?
    }

    /// Blocks of a launch of `items` items, counted by key head and row tile.
    pub fn grid(items: u32, multiprocessors: u32) -> u32 {
        items.min(multiprocessors * BLOCKS)
    }

    /// The map of keys or values, `[pages, kv_heads, page_size, HEAD_DIM]`: a box is a tile, all lines of it.
    pub fn kv_map(format: u32, pages: u64, kv_heads: u32, page_size: u32) -> MapShape<5, 4> {
        let element_bytes = if format == KV_BF16 { 2 } else { 1 };
        let row_bytes = row_bytes(format, HEAD_DIM);
        let (line, lines) = (LINE_BYTES / element_bytes, row_bytes / LINE_BYTES);
        let head_bytes = u64::from(row_bytes) * u64::from(page_size);
        MapShape {
            element_bytes,
            dims: [u64::from(line), u64::from(page_size), u64::from(lines), u64::from(kv_heads), pages],
            strides_bytes: [
                u64::from(row_bytes),
                u64::from(LINE_BYTES),
                head_bytes,
                head_bytes * u64::from(kv_heads),
            ],
            box_dims: [line, TILE_KEYS, lines, 1, 1],
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::abi::{KV_FP8, KV_INT8};

        #[test]
        fn pages_of_whole_tiles_are_served() {
            let name = |format, head_dim, page_size, rows| {
                select(format, head_dim, page_size, rows).map(|v| v.spec.name)
            };
            assert_eq!(name(KV_BF16, 128, 16, 4), Some("attention_decode_sm90_bf16"));
            assert_eq!(name(KV_INT8, 128, 48, 8), Some("attention_decode_sm90_int8"));
            assert_eq!(name(KV_FP8, 128, 128, 1), Some("attention_decode_sm90_fp8"));
            assert_eq!(name(KV_FP8, 128, 16, 9), None);
            assert_eq!(name(KV_BF16, 64, 16, 4), None);
            assert_eq!([0, 8, 24].map(|page_size| name(KV_BF16, 128, page_size, 4)), [None; 3]);
            assert_eq!(name(3, 128, 16, 4), None);
        }

        #[test]
        fn blocks_are_no_more_than_items() {
            assert_eq!((grid(0, 132), grid(5, 132), grid(10_000, 132)), (0, 5, 264));
        }
    }
}
