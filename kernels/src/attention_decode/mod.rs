//! Attention of one query a sequence over a paged cache, split over the keys.
//!
//! A block owns one chunk of `split_tokens` keys of one key head, and all the query heads that share it: up to 16 of them are
//! the rows of one matrix product, so each key and value is read once for the whole group (a larger group takes several passes).
//!
//! ```text
//! copies   K0 V0 | K1 V1 | ...                 two stages of 64 keys, one group of cp.async a tile
//! compute        | warp w: keys 16w..16w+15 of the tile, all heads, its own running maximum and sum
//! end      the four warps' sums meet in shared memory, in ascending order of warp
//! ```
//!
//! Chunks are counted from the sequence's first key, so that the result doesn't depend on what else is in the batch. Shapes:
//! head dim 64 or 128, any page size, any group.
//!
//! Source: Dao et al., "Flash-Decoding for long-context inference", 2023.

use crate::{abi::KernelSpec, tile::tile_bytes};

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Query heads a pass.
pub const BLOCK_M: u32 = 16;
/// Keys a tile; `split_tokens` is a multiple of it.
pub const BLOCK_N: u32 = 64;
/// Threads a block: a warp owns 16 keys of each tile.
pub const THREADS: u32 = 128;
/// Tiles of keys and values in shared memory.
pub const STAGES: u32 = 2;

/// What a block keeps in shared memory. The merge of the warps reuses the tiles of keys and values.
#[derive(Debug, Clone, Copy)]
pub struct SharedPlan<const HEAD_DIM: u32>;

impl<const HEAD_DIM: u32> SharedPlan<HEAD_DIM> {
    /// One tile of queries.
    pub const Q: u32 = 0;
    /// [`STAGES`] tiles of keys.
    pub const K: u32 = Self::Q + tile_bytes(BLOCK_M, HEAD_DIM);
    /// [`STAGES`] tiles of values.
    pub const V: u32 = Self::K + STAGES * tile_bytes(BLOCK_N, HEAD_DIM);
    /// All of it.
    pub const BYTES: u32 = Self::V + STAGES * tile_bytes(BLOCK_N, HEAD_DIM);

    /// f32 a row of a warp's output; eight more than the head, so that the rows of a fragment fall on different banks.
    pub const MERGE_ROW: u32 = HEAD_DIM + 8;
    /// f32 `[warps, 16, MERGE_ROW]`: each warp's unnormalised output.
    pub const MERGE_OUT: u32 = Self::K;
    /// f32 `[warps, 16]`: each warp's maxima.
    pub const MERGE_MAX: u32 = Self::MERGE_OUT + THREADS / 32 * BLOCK_M * Self::MERGE_ROW * 4;
    /// f32 `[warps, 16]`: each warp's sums.
    pub const MERGE_SUM: u32 = Self::MERGE_MAX + THREADS / 32 * BLOCK_M * 4;
}

// The merge must fit in what it reuses.
const _: () = assert!(SharedPlan::<64>::MERGE_SUM + THREADS / 32 * BLOCK_M * 4 <= SharedPlan::<64>::BYTES);
const _: () = assert!(SharedPlan::<128>::MERGE_SUM + THREADS / 32 * BLOCK_M * 4 <= SharedPlan::<128>::BYTES);

/// Grid: `(max_splits, kv_heads, seqs_of_launch)`.
pub static HD64: KernelSpec = KernelSpec {
    name: "attention_decode_hd64",
    threads: THREADS,
    min_blocks: 2,
    shared_bytes: SharedPlan::<64>::BYTES,
    allowance: None,
};

/// Grid: as [`HD64`].
pub static HD128: KernelSpec = KernelSpec {
    name: "attention_decode_hd128",
    threads: THREADS,
    min_blocks: 2,
    shared_bytes: SharedPlan::<128>::BYTES,
    allowance: None,
};
