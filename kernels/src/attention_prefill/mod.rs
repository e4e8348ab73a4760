//! Attention of many queries over a paged cache, on tensor cores.
//!
//! A block owns 64 queries of one head, 16 a warp, and walks the keys that any of them sees in tiles of [`block_n`]. Scores,
//! softmax statistics and the output stay in registers; scores never reach memory.
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
//! Shapes: head dim 64, 96, 128, 192 or 256, bf16 or f16, any page size, any ratio of query to key heads, ragged queries and
//! keys, fewer keys than queries.
//!
//! Source: Dao, "FlashAttention-2", 2023, algorithm 1; Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.

use crate::{abi::KernelSpec, tile::tile_bytes};

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Queries a block.
pub const BLOCK_M: u32 = 64;
/// Keys a tile: fewer where the output of 16 queries takes most of a warp's registers, and two tiles most of a multiprocessor's
/// shared memory.
pub const fn block_n(head_dim: u32) -> u32 {
    if head_dim > 128 { 32 } else { 64 }
}

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
    pub const V: u32 = Self::K + STAGES * tile_bytes(block_n(HEAD_DIM), HEAD_DIM);
    /// All of it.
    pub const BYTES: u32 = Self::V + STAGES * tile_bytes(block_n(HEAD_DIM), HEAD_DIM);
}

/// What queries, caches and output are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    Bf16,
    F16,
}

/// The entry for heads of `head_dim`, if there is one.
pub fn spec(element: Element, head_dim: u32) -> Option<&'static KernelSpec> {
    Some(match (element, head_dim) {
        (Element::Bf16, 64) => &HD64,
        (Element::Bf16, 96) => &HD96,
        (Element::Bf16, 128) => &HD128,
        (Element::Bf16, 192) => &HD192,
        (Element::Bf16, 256) => &HD256,
        (Element::F16, 64) => &HD64_F16,
        (Element::F16, 96) => &HD96_F16,
        (Element::F16, 128) => &HD128_F16,
        (Element::F16, 192) => &HD192_F16,
        (Element::F16, 256) => &HD256_F16,
        _ => return None,
    })
}

macro_rules! specs {
    ($($id:ident $name:literal $head_dim:literal $min_blocks:literal,)*) => {$(
        /// Grid: `(ceil(longest query span / BLOCK_M), q_heads, seqs_of_launch)`.
        pub static $id: KernelSpec = KernelSpec {
            name: $name,
            threads: THREADS,
            min_blocks: $min_blocks,
            shared_bytes: SharedPlan::<$head_dim>::BYTES,
            allowance: None,
    starts_early: false, waits_in_row: false, cooperative: false, spreads: false,
        };
    )*};
}

specs! {
    HD64 "attention_prefill_hd64" 64 2,
    HD96 "attention_prefill_hd96" 96 2,
    HD128 "attention_prefill_hd128" 128 2,
    HD192 "attention_prefill_hd192" 192 2,
    HD256 "attention_prefill_hd256" 256 2,
    HD64_F16 "attention_prefill_hd64_f16" 64 2,
    HD96_F16 "attention_prefill_hd96_f16" 96 2,
    HD128_F16 "attention_prefill_hd128_f16" 128 2,
    HD192_F16 "attention_prefill_hd192_f16" 192 2,
    HD256_F16 "attention_prefill_hd256_f16" 256 2,
}
