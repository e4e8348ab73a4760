//! Attention of many queries over a paged cache, on tensor cores.
//!
//! A block owns 64 queries of one head, 16 a warp, and walks the keys that any of them sees in tiles of 64. Scores, softmax
//! statistics and the output stay in registers; scores never reach memory.
//!
//! ```text
//! copies   K0 V0 | K1 V1 | K2 V2 | ...        two stages, one group of cp.async a tile
//! compute        | S=QK' softmax O+=PV | ...   on the tile that has landed
//!                ^ wait for the tile, one barrier (it also frees the other stage), start the next copies
//! ```
//!
//! Tiles outside the causal or window range of the block are never visited; rows of a visited tile that no query of the block
//! sees are filled with zeros, not read, so what a dead page holds cannot reach `0 * V`. Tiles that every query sees in full
//! skip the mask.
//!
//! Shapes: head dim 64 or 128, any page size, any ratio of query to key heads, ragged queries and keys, fewer keys than queries.
//!
//! Source: Dao, "FlashAttention-2", 2023, algorithm 1; Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.

use crate::{abi::KernelSpec, tile::tile_bytes};

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Queries a block.
pub const BLOCK_M: u32 = 64;
/// Keys a tile.
pub const BLOCK_N: u32 = 64;
/// Threads a block: a warp owns 16 queries.
pub const THREADS: u32 = BLOCK_M / 16 * 32;
/// Tiles of keys and values in shared memory.
pub const STAGES: u32 = 2;

/// What a block keeps in shared memory.
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
}

/// Grid: `(ceil(longest query span / BLOCK_M), q_heads, seqs_of_launch)`.
pub static HD64: KernelSpec = KernelSpec {
    name: "attention_prefill_hd64",
    threads: THREADS,
    min_blocks: 2,
    shared_bytes: SharedPlan::<64>::BYTES,
    allowance: None,
};

/// Grid: as [`HD64`].
pub static HD128: KernelSpec = KernelSpec {
    name: "attention_prefill_hd128",
    threads: THREADS,
    min_blocks: 2,
    shared_bytes: SharedPlan::<128>::BYTES,
    allowance: None,
};
