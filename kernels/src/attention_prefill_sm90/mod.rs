//! Attention of many queries over a paged cache for Hopper: copy engine, warpgroup products, persistent blocks.
//!
//! A block owns `BLOCK_M` queries of one head, 64 a consumer warpgroup, and walks the keys that any of them sees in tiles of
//! `BLOCK_N`, from the last to the first, so that the tiles that need a mask come first.
//!
//! ```text
//! producers   Q' | K3 | K2 | K1 ...            a warp for queries and keys, a warp for values, each with a ring of tiles;
//!                | V3 | V2 | V1 ...            they wait for `empty`, the copies complete `full`
//! consumer 0  S3 | S2 O+=P3V3 | softmax 2 ....... | S1 O+=P2V2 | softmax 1 ...
//! consumer 1     ............ | S2 O+=P3V3 | softmax 2 ....... | S1 ...
//!                products of one under the softmax of the other; within one, P3V3 runs under softmax 2
//! end         O / sum through the block's own query tile in shared memory to `out`, while the next item's Q and keys land
//! ```
//!
//! The exponentials stay in registers as the second product's operand. Rows of the last tile past the sequence's end are zeroed
//! by the producer once they have landed, since `0 * NaN` of a dead row would be NaN; pages that no query of the block sees are
//! filled with zeros by the copy engine and not read.
//!
//! Shapes: as `abi::AttentionPrefillSm90`. Source: Shah et al., "FlashAttention-3", 2024, section 3.

use crate::abi::KernelSpec;

#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod consumer;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod group;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod item;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub mod kernel;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod producer;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod softmax;

/// Elements of a line of a tile.
pub const LINE: u32 = 64;
/// Bytes of a line.
pub const LINE_BYTES: u32 = LINE * 2;

/// Sizes of one of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Elements a head.
    pub head_dim: u32,
    /// Consumer warpgroups, 64 queries each.
    pub consumers: u32,
    /// Keys a tile.
    pub block_n: u32,
    /// Tiles of keys, and of values, in shared memory.
    pub stages: u32,
    /// Tiles of queries in shared memory. Of two, one lands while the other is in work.
    pub q_stages: u32,
}

/// Head dim 64.
pub const TILE_HD64: Tile = Tile { head_dim: 64, consumers: 3, block_n: 128, stages: 4, q_stages: 2 };
/// Head dim 64 where tiles of 128 queries waste less than those of 192.
pub const TILE_HD64_SHORT: Tile = Tile { head_dim: 64, consumers: 2, block_n: 128, stages: 4, q_stages: 2 };
/// Head dim 96: the second half of a line is zeros, which the copy engine fills in and no product takes.
pub const TILE_HD96: Tile = Tile { head_dim: 96, consumers: 2, block_n: 128, stages: 2, q_stages: 2 };
/// Head dim 128.
pub const TILE_HD128: Tile = Tile { head_dim: 128, consumers: 2, block_n: 128, stages: 2, q_stages: 2 };
/// Head dim 192. Two tiles of keys and two of values are worth more than a second one of queries, and don't leave the room for it.
pub const TILE_HD192: Tile = Tile { head_dim: 192, consumers: 2, block_n: 96, stages: 2, q_stages: 1 };
/// Head dim 256. What FlashAttention-3 takes: 128 f32 of output and 40 of scores a thread are what the registers hold.
pub const TILE_HD256: Tile = Tile { head_dim: 256, consumers: 2, block_n: 80, stages: 2, q_stages: 1 };

/// What a block keeps in shared memory, in bytes from its start.
impl Tile {
    /// Queries a block.
    pub const fn block_m(self) -> u32 {
        self.consumers * 64
    }
    /// Threads a block: the producer's warpgroup and the consumers'.
    pub const fn threads(self) -> u32 {
        (self.consumers + 1) * 128
    }
    /// Lines across a head.
    pub const fn halves(self) -> u32 {
        self.head_dim.div_ceil(LINE)
    }
    /// Bytes of a query tile: `[halves][block_m]` lines.
    pub const fn q_bytes(self) -> u32 {
        self.block_m() * self.halves() * LINE_BYTES
    }
    /// Bytes of a tile of keys or of values: `[halves][block_n]` lines.
    pub const fn kv_bytes(self) -> u32 {
        self.block_n * self.halves() * LINE_BYTES
    }
    /// `q_stages` query tiles; each becomes its item's output tile.
    pub const fn s_q(self) -> u32 {
        0
    }
    /// `stages` tiles of keys.
    pub const fn s_k(self) -> u32 {
        self.q_stages * self.q_bytes()
    }
    /// `stages` tiles of values.
    pub const fn s_v(self) -> u32 {
        self.s_k() + self.stages * self.kv_bytes()
    }
    /// `q_stages` items of work, [`ITEM_BYTES`] each.
    pub const fn s_items(self) -> u32 {
        self.s_v() + self.stages * self.kv_bytes()
    }
    /// `q_full[q_stages]`: the item and its queries have landed.
    pub const fn q_full(self) -> u32 {
        self.s_items() + self.q_stages * ITEM_BYTES
    }
    /// `q_empty[q_stages]`: all consumers have stored the item's output, and its values are all on their way.
    pub const fn q_empty(self) -> u32 {
        self.q_full() + self.q_stages * 8
    }
    /// `k_full[stages]`: the keys have landed.
    pub const fn k_full(self) -> u32 {
        self.q_empty() + self.q_stages * 8
    }
    /// `k_empty[stages]`: all consumers have used the keys.
    pub const fn k_empty(self) -> u32 {
        self.k_full() + self.stages * 8
    }
    /// `v_full[stages]`: the values have landed, and rows past the sequence's end are zeros.
    pub const fn v_full(self) -> u32 {
        self.k_empty() + self.stages * 8
    }
    /// `v_empty[stages]`: all consumers have used the values.
    pub const fn v_empty(self) -> u32 {
        self.v_full() + self.stages * 8
    }
    /// Values whose last rows the producer has to zero have landed.
    pub const fn tail_full(self) -> u32 {
        self.v_empty() + self.stages * 8
    }
    /// All of it.
    pub const fn shared_bytes(self) -> u32 {
        self.tail_full() + 8
    }
}

/// Bytes of an item in shared memory: twelve words.
pub const ITEM_BYTES: u32 = 48;

/// Head dim 64, bf16. Grid: see `abi::AttentionPrefillSm90`.
pub static HD64: KernelSpec = spec("attention_prefill_sm90_hd64", TILE_HD64);
/// Head dim 64 in tiles of 128 queries, bf16.
pub static HD64_SHORT: KernelSpec = spec("attention_prefill_sm90_hd64_short", TILE_HD64_SHORT);
/// Head dim 96, bf16.
pub static HD96: KernelSpec = spec("attention_prefill_sm90_hd96", TILE_HD96);
/// Head dim 128, bf16.
pub static HD128: KernelSpec = spec("attention_prefill_sm90_hd128", TILE_HD128);
/// Head dim 192, bf16.
pub static HD192: KernelSpec = spec("attention_prefill_sm90_hd192", TILE_HD192);
/// Head dim 256, bf16.
pub static HD256: KernelSpec = spec("attention_prefill_sm90_hd256", TILE_HD256);
/// [`HD64`] of IEEE half precision.
pub static HD64_F16: KernelSpec = spec("attention_prefill_sm90_hd64_f16", TILE_HD64);
/// [`HD64_SHORT`] of IEEE half precision.
pub static HD64_SHORT_F16: KernelSpec = spec("attention_prefill_sm90_hd64_short_f16", TILE_HD64_SHORT);
/// [`HD96`] of IEEE half precision.
pub static HD96_F16: KernelSpec = spec("attention_prefill_sm90_hd96_f16", TILE_HD96);
/// [`HD128`] of IEEE half precision.
pub static HD128_F16: KernelSpec = spec("attention_prefill_sm90_hd128_f16", TILE_HD128);
/// [`HD192`] of IEEE half precision.
pub static HD192_F16: KernelSpec = spec("attention_prefill_sm90_hd192_f16", TILE_HD192);
/// [`HD256`] of IEEE half precision.
pub static HD256_F16: KernelSpec = spec("attention_prefill_sm90_hd256_f16", TILE_HD256);

const fn spec(name: &'static str, tile: Tile) -> KernelSpec {
    KernelSpec {
        name,
        threads: tile.threads(),
        min_blocks: 1,
        shared_bytes: tile.shared_bytes(),
        allowance: None,
        starts_early: false,
        waits_in_row: false,
        cooperative: false,
        spreads: false,
    }
}

/// What the launcher decides.
#[cfg(not(target_arch = "nvptx64"))]
pub mod launch;
