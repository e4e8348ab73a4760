//! [`attention_decode`](crate::attention_decode) of bf16 caches for Hopper: tiles by the copy engine, blocks that go on from item to item.
//!
//! The same chunks, the same keys for each of four warps, the same order of sums, so the same bits. What differs is how keys come in.
//!
//! ```text
//! producer   item 0, pages | tiles 0 1 2 ...  | item 1, pages | tiles ...    one ring for the block, which runs on across items
//! warp w           queries | tiles w, w + 4 ... | parts meet, join | queries | ...
//! ```
//!
//! A block of four warps and chunk has its queries, its first keys and its fence to wait for, one after the other, and other blocks of the
//! multiprocessor hide that in part: a wave costs a microsecond more than its bytes. Here the ring is full of the next item's tiles
//! meanwhile. Items are counted out, so that no block waits for a slower one.
//!
//! A tile is 8 KiB, a box of [`BOX_ROWS`] rows of one key head at a time. In shared memory a box is lines of 128 bytes, first halves of heads before
//! second ones, each line's chunks turned by its row. Rows that no query sees come along: their scores are masked, and the warp makes zeros of their
//! values. A box that no query sees at all is not looked up.
//!
//! [`HD128_LANES`] has its tiles by `cp.async` of the producer's lanes instead, laid out as [`attention_decode`](crate::attention_decode) has them.
//!
//! Shapes: as there, pages of a multiple of [`BOX_ROWS`] tokens, fewer than 2^31 rows of the cache.

#[cfg(not(target_arch = "nvptx64"))]
use crate::abi::TensorMapSpec;
use crate::{
    abi::KernelSpec,
    attention_decode::{
        MergePlan, THREADS as CONSUMER_THREADS, WARPS, part_bytes,
        split::{MOST_CHUNKS, ROUND_TOKENS},
    },
};

#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod boxes;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod consumer;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub mod kernel;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod lanes;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod producer;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod work;

/// Threads a block: the four warps that multiply, and the one that brings tiles.
pub const THREADS: u32 = CONSUMER_THREADS + 32;
/// Rows of a box; a box lies in one page.
pub const BOX_ROWS: u32 = 16;
/// Bytes of a tile of keys, and of one of values.
pub const TILE_BYTES: u32 = 4096;
/// Bytes of a stage: a tile of keys, then one of values.
pub const STAGE_BYTES: u32 = 2 * TILE_BYTES;
/// Bytes of a line of a box.
pub const LINE_BYTES: u32 = 128;
/// Bytes of an item in shared memory: sixteen words.
pub const ITEM_BYTES: u32 = 64;
/// Items in shared memory: one in work, the next one's tiles on their way.
pub const ITEMS: u32 = 2;

/// How tiles come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feeding {
    /// By the copy engine, boxes of a map.
    Boxes,
    /// By `cp.async` of the producer's lanes.
    Lanes,
    /// By those, and the L2 lets go of what they read first.
    LanesOnce,
}

impl Feeding {
    /// Arrivals at a stage's `full`: of the lane that expects the boxes, or of each lane's copies.
    pub const fn arrivals(self) -> u32 {
        match self {
            Feeding::Boxes => 1,
            Feeding::Lanes | Feeding::LanesOnce => 32,
        }
    }
}

/// Sizes of one of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// 64 or 128.
    pub head_dim: u32,
    /// Query rows of an item.
    pub rows: u32,
    /// Stages of the ring.
    pub stages: u32,
    /// How they are filled.
    pub feeding: Feeding,
}

/// What a block keeps in shared memory, in bytes from its start: the ring, then what follows.
impl Plan {
    /// Keys of a tile.
    pub const fn tile_keys(self) -> u32 {
        TILE_BYTES / (self.head_dim * 2)
    }
    /// Boxes of a tile.
    pub const fn boxes(self) -> u32 {
        self.tile_keys() / BOX_ROWS
    }
    /// Where the warps' parts meet: not in the ring, where the next item's tiles are.
    pub const fn merge(self) -> MergePlan {
        let parts = self.stages * STAGE_BYTES;
        let part_stride = part_bytes(self.rows, self.head_dim).next_multiple_of(256);
        let sums = parts + WARPS * part_stride;
        MergePlan {
            rows: self.rows,
            head_dim: self.head_dim,
            parts,
            part_stride,
            sums,
            is_last: sums + WARPS * self.rows * 8,
            barrier: 1,
        }
    }
    /// [`ITEMS`] items.
    pub const fn s_items(self) -> u32 {
        self.merge().is_last + 16
    }
    /// `full[stages]`: the tile has landed.
    pub const fn full(self) -> u32 {
        self.s_items() + ITEMS * ITEM_BYTES
    }
    /// `empty[stages]`: the warp whose tile it was has used it.
    pub const fn empty(self) -> u32 {
        self.full() + self.stages * 8
    }
    /// `item_full[ITEMS]`: the item is there.
    pub const fn item_full(self) -> u32 {
        self.empty() + self.stages * 8
    }
    /// `item_empty[ITEMS]`: the four warps have read it.
    pub const fn item_empty(self) -> u32 {
        self.item_full() + ITEMS * 8
    }
    /// All of it.
    pub const fn shared_bytes(self) -> u32 {
        self.item_empty() + ITEMS * 8
    }
    /// The map of a layer's keys or values at `base`, of `rows` rows in all: lines of half a head or a whole one, by row, by half.
    #[cfg(not(target_arch = "nvptx64"))]
    pub const fn map(self, rows: u64) -> Map {
        let (row_bytes, halves) = (self.head_dim as u64 * 2, self.head_dim / 64);
        Map {
            dims: [64, rows, halves as u64],
            strides_bytes: [row_bytes, LINE_BYTES as u64],
            box_dims: [64, BOX_ROWS, halves],
        }
    }
}

/// Dimensions, strides and box of a map.
#[cfg(not(target_arch = "nvptx64"))]
#[derive(Debug, Clone, Copy)]
pub struct Map {
    dims: [u64; 3],
    strides_bytes: [u64; 2],
    box_dims: [u32; 3],
}

#[cfg(not(target_arch = "nvptx64"))]
impl Map {
    /// The map of a tensor that starts at `base`.
    pub fn at(&self, base: u64) -> TensorMapSpec<'_> {
        TensorMapSpec {
            base,
            element_bytes: 2,
            dims: &self.dims,
            strides_bytes: &self.strides_bytes,
            box_dims: &self.box_dims,
        }
    }
}

/// One entry of the family.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    /// How it is launched.
    pub spec: KernelSpec,
    /// What its block keeps in shared memory.
    pub plan: Plan,
}

/// Shared memory of a multiprocessor, and what each of its blocks takes of it for the system (compute capability 9.0).
const MULTIPROCESSOR_BYTES: u32 = 228 << 10;
const RESERVED_BYTES: u32 = 1 << 10;

/// The plan of `blocks` blocks a multiprocessor: as many stages as fit.
const fn plan(head_dim: u32, rows: u32, blocks: u32, feeding: Feeding) -> Plan {
    let room = MULTIPROCESSOR_BYTES / blocks - RESERVED_BYTES;
    let mut plan = Plan { head_dim, rows, stages: 1, feeding };
    while (Plan { stages: plan.stages + 1, ..plan }).shared_bytes() <= room {
        plan.stages += 1;
    }
    plan
}

const fn variant(name: &'static str, head_dim: u32, rows: u32, blocks: u32, feeding: Feeding) -> Variant {
    let plan = plan(head_dim, rows, blocks, feeding);
    assert!(rows * MOST_CHUNKS * 8 <= WARPS * plan.merge().part_stride);
    assert!(WARPS * plan.tile_keys() <= ROUND_TOKENS && plan.tile_keys().is_multiple_of(BOX_ROWS));
    let spec = KernelSpec {
        name,
        threads: THREADS,
        min_blocks: blocks,
        shared_bytes: plan.shared_bytes(),
        allowance: None,
        starts_early: true,
        waits_in_row: false,
        cooperative: false,
    };
    Variant { spec, plan }
}

/// Every entry that a launcher takes. Rows of a batch have the same bits in each, and in those of
/// [`attention_decode`](crate::attention_decode).
pub static VARIANTS: [Variant; 3] = [
    variant("attention_decode_sm90_hd64_rows8", 64, 8, 2, Feeding::Boxes),
    variant("attention_decode_sm90_hd64_rows16", 64, 16, 2, Feeding::Boxes),
    variant("attention_decode_sm90_hd128_rows8", 128, 8, 2, Feeding::Boxes),
];
/// Of three blocks a multiprocessor, to be timed beside that of two.
pub static HD128_BY3: Variant = variant("attention_decode_sm90_hd128_rows8_by3", 128, 8, 3, Feeding::Boxes);
/// Without the copy engine, to be timed beside it.
pub static HD128_LANES: Variant =
    variant("attention_decode_sm90_hd128_rows8_lanes", 128, 8, 2, Feeding::Lanes);
/// That, with keys and values that the L2 lets go first.
pub static HD128_LANES_ONCE: Variant =
    variant("attention_decode_sm90_hd128_rows8_lanes_once", 128, 8, 2, Feeding::LanesOnce);

/// The entry for a head dim and spans of at most `rows` query rows (query heads of a key head times tokens): the narrowest that holds
/// them. `None` where [`attention_decode`](crate::attention_decode) serves: another head dim, more rows, or pages that can't be cut
/// into boxes.
pub fn select(head_dim: u32, rows: u32, page_size: u32) -> Option<&'static Variant> {
    let fits = |v: &&Variant| v.plan.head_dim == head_dim && v.plan.rows >= rows;
    VARIANTS.iter().filter(fits).min_by_key(|v| v.plan.rows).filter(|_| page_size.is_multiple_of(BOX_ROWS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_entry_is_selected() {
        let rows = |head_dim, rows, page_size| select(head_dim, rows, page_size).map(|v| v.plan.rows);
        assert_eq!(rows(128, 1, 16), Some(8));
        assert_eq!(rows(64, 9, 64), Some(16));
        assert_eq!(rows(64, 17, 64), None);
        assert_eq!(rows(128, 9, 64), None);
        assert_eq!(rows(64, 1, 8), None);
        assert_eq!(rows(96, 1, 16), None);
    }

    #[test]
    fn blocks_fit_a_multiprocessor_and_boxes_their_atoms() {
        for Variant { spec, plan } in VARIANTS.iter().chain([&HD128_BY3, &HD128_LANES, &HD128_LANES_ONCE]) {
            assert!(
                spec.min_blocks * (spec.shared_bytes + RESERVED_BYTES) <= MULTIPROCESSOR_BYTES,
                "{}",
                spec.name
            );
            assert!(plan.stages >= WARPS, "{}: a warp without a tile on its way", spec.name);
            assert_eq!(plan.boxes() * BOX_ROWS * plan.head_dim * 2, TILE_BYTES);
            // Eight lines turn together, from a multiple of their bytes on.
            assert!((TILE_BYTES / plan.boxes()).is_multiple_of(8 * LINE_BYTES));
            assert!(plan.s_items().is_multiple_of(16) && plan.merge().sums.is_multiple_of(16));
            assert!(plan.full().is_multiple_of(8));
        }
    }
}
