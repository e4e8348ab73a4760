//! `out = a * w^T (+ bias) (SiLU of a fused gate, times up) (+ residual)` for Hopper, for few rows: bound by reading `w`, which is bf16,
//! bytes, or groups of 4 bits that bf16 or f16 is multiplied by.
//!
//! A block owns [`ROWS`] rows of `w` (columns of `out`), 64 a consumer warpgroup, `TOKENS` rows of `a`, and one of the splits of `k`; of 4 bits and many tokens several, of one tile after the other, or two side by side. The
//! product is computed transposed: `w` is the operand of 64 rows, so that a handful of tokens wastes little, and 4-bit weights are
//! converted in registers on their way to being it.
//!
//! ```text
//! producer    w: k0 k1 k2 k3 | wait for the launch before | a: k0 k1 k2 k3 | w, a: k4 | k5 | ...     a ring of stages
//! consumers   k0 | k1 | ...           4 bits: to 16 bits less the zero point (exact), products of a group, times its scale in f32
//! end         sums of a split, or of a pair, to the tile's other blocks | each of these, or some, join a part of the tile: splits in pairs, pairs in ascending order, then bias,
//!             SiLU, residual, store
//! ```
//!
//! Sums of few tokens go by mail, as rows do in a chain of [`crate::gemm_whole`]: memory of zeros, to which they are stored with inverted bits, none of whose words is zero. Whoever
//! joins them reads words until none is zero, and leaves zeros: a store and a load are the whole way, where a counter of blocks needs a fence and two trips more. Of many
//! tokens, whose sums are too much to be read more than once, blocks wait at a counter.
//!
//! 4-bit weights of few tokens go through the warps' own products (`mma.sync`): what a warpgroup's product has to be given, converted in
//! registers, is the same for 8 tokens as for 128. Where a block has room for the tokens' rows, [`crate::gemm_whole`] takes the place of these and of bf16's.
//!
//! `w` depends on no launch before, so its first stages are on their way while that launch still runs. Splits depend on the shape
//! of `w` alone ([`layout::splits`]), and a product adds the same steps of `k` and the same pairs of splits in the same order whatever `TOKENS` is, so that a row has
//! the same bits in any batch. Shapes: any `m`, `n` a multiple of 8 (of 16 with SiLU), `k` of 16 bytes.

use crate::abi::KernelSpec;

#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod dense;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub(crate) mod exchange;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub(crate) mod finish;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub(crate) mod int4;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub(crate) mod int4_warp;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod item;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub mod kernel;
pub mod layout;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub(crate) mod nibbles;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod producer;

/// Rows of `w` that lie together, and of most blocks.
pub const ROWS: u32 = 256;
/// Bytes of a line of a tile in shared memory.
pub const LINE_BYTES: u32 = 128;
/// What a block may have.
const MOST_SHARED_BYTES: u32 = 227 << 10;
/// Eights of tokens whose sums are in shared memory at a time on their way to the output.
const STASHED: usize = 4;

/// What a stage holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Rows of `w` a block, 64 a consumer warpgroup: 256, or half of them.
    pub rows: u32,
    /// Rows of `a` a block: columns of the warpgroups' products.
    pub tokens: u32,
    /// Lines of each row of `a`.
    pub lines: u32,
    /// Bytes of `w`.
    pub w_bytes: u32,
    /// Stages of the ring, a power of two.
    pub stages: u32,
    /// Threads that come after the consumers: a warp, or a warpgroup that leaves its registers to them. A lane of each warp brings the stages.
    pub producers: u32,
    /// Splits of `k` that a block's warps take side by side: one, or all of a product that has two.
    pub abreast: u32,
}

/// Dense `w`: a line of each row.
pub const fn dense_tile(tokens: u32) -> Tile {
    Tile { rows: ROWS, tokens, lines: 1, w_bytes: ROWS * LINE_BYTES, stages: 4, producers: 32, abreast: 1 }
}

/// 4 bits in groups of `128 / groups`: two lines of `a`.
pub const fn int4_tile(tokens: u32, groups: u32) -> Tile {
    // Accumulators of many tokens leave registers for half as many threads.
    let rows = if tokens > 64 { ROWS / 2 } else { ROWS };
    // So much that a multiprocessor has room for one block: two of a launch beside each other, while other multiprocessors have none,
    // would take twice as long.
    let stages = if tokens <= 16 { 8 } else { 4 };
    let w_bytes = rows / layout::PIECE_ROWS * piece_stride(groups);
    // A warpgroup: four lanes share the copies of the pieces, and products of a warpgroup want more registers than an even share.
    let producers = 128;
    Tile { rows, tokens, lines: 2, w_bytes, stages, producers, abreast: 1 }
}

/// The same, of half as many rows and two splits.
pub const fn int4_pair_tile(tokens: u32, groups: u32) -> Tile {
    let tile = int4_tile(tokens, groups);
    Tile { rows: tile.rows / 2, abreast: 2, ..tile }
}

/// Bytes from a piece of 4-bit weights to the next in shared memory: room for zero points, whether there are any or not.
pub const fn piece_stride(groups: u32) -> u32 {
    layout::piece_bytes(groups, true)
}

/// What a block keeps in shared memory, in bytes from its start.
impl Tile {
    /// Whether a block takes its part of one tile after the other: of 4 bits and many tokens. Others take one: more of them fit a
    /// multiprocessor, or the sums leave no registers to go on with.
    pub const fn is_persistent(self) -> bool {
        self.tokens > 64 && self.rows < ROWS
    }
    /// Lanes that bring the stages: of each warp behind the consumers one.
    pub const fn producing_lanes(self) -> u32 {
        self.producers / 32
    }
    /// Stages whose weights are asked for before the launch before is done. `a` comes behind them, and the first products wait for it: where it is no small part,
    /// of 4 bits and many tokens, half of the ring. H200, 2026-11-30: 64 rows of 4096 x 4096 10.8 us, 11.4 with all of it; of bf16 1.5% to 2.5% slower.
    pub const fn stages_ahead(self) -> u32 {
        if 2 * self.a_bytes() > self.w_bytes { self.stages / 2 } else { self.stages }
    }
    /// Whether sums of splits go by mail: of few tokens. Many are more than memory can be asked for again and again, and than are worth being written once more.
    pub const fn is_mailed(self) -> bool {
        self.tokens <= 16
    }
    /// Warps of 16 rows each.
    pub const fn row_warps(self) -> u32 {
        self.rows / 16
    }
    /// Consumer warps, those of the first split in front; the producer's follows them.
    pub const fn consumers(self) -> u32 {
        self.row_warps() * self.abreast
    }
    /// Consumer threads.
    pub const fn consumer_threads(self) -> u32 {
        self.consumers() * 32
    }
    /// Threads of a split.
    pub const fn split_threads(self) -> u32 {
        self.row_warps() * 32
    }
    /// Which of the splits side by side a consumer works on.
    #[inline(always)]
    pub const fn side(self, thread: u32) -> u32 {
        if self.abreast == 1 { 0 } else { thread / self.split_threads() }
    }
    /// Bytes of the boxes of `a` of a stage, of one split: whole atoms of eight lines.
    pub const fn split_a_bytes(self) -> u32 {
        self.lines * self.tokens * LINE_BYTES
    }
    /// The same of all splits side by side.
    pub const fn a_bytes(self) -> u32 {
        self.split_a_bytes() * self.abreast
    }
    /// Bytes of a stage: `lines` boxes of `a`, of each split side by side, then `w`. Whole atoms of eight lines.
    pub const fn stage_bytes(self) -> u32 {
        self.a_bytes() + self.w_bytes.next_multiple_of(8 * LINE_BYTES)
    }
    /// `full[stages]`: the stage has landed.
    pub const fn full(self) -> u32 {
        self.stages * self.stage_bytes()
    }
    /// `empty[stages]`: all consumers have used the stage.
    pub const fn empty(self) -> u32 {
        self.full() + self.stages * 8
    }
    /// `[eights][consumer threads]` of four sums: [`STASHED`] eights on their way to the output. Of a persistent block as many as there is room for, of a split, until
    /// those of its pair's other are there. Of a pair side by side, where the ring was: behind both there is no room.
    pub const fn stash(self) -> u32 {
        if self.abreast == 1 { self.barriers_end() } else { 0 }
    }
    const fn barriers_end(self) -> u32 {
        (self.empty() + self.stages * 8).next_multiple_of(16)
    }
    /// Eights of that: of few tokens sums go to the output from registers.
    pub const fn stashed(self) -> u32 {
        let stashed = STASHED as u32;
        if self.is_persistent() {
            let room = (MOST_SHARED_BYTES - self.stash()) / (self.consumer_threads() * 16);
            if room < self.tokens / 8 { room } else { self.tokens / 8 }
        } else if self.tokens > 8 * stashed {
            stashed
        } else {
            0
        }
    }
    /// Whether whole chunks of rows of the output are made in shared memory: of 4 bits and many tokens, where that is all that stands between products and the end.
    pub const fn is_staged(self) -> bool {
        self.lines == 2 && self.tokens > 32
    }
    /// All of it.
    pub const fn shared_bytes(self) -> u32 {
        let stash_end = self.stash() + self.stashed() * self.consumer_threads() * 16;
        assert!(!self.is_staged() || self.stash() + self.rows * self.tokens * 2 <= stash_end);
        if stash_end > self.barriers_end() { stash_end } else { self.barriers_end() }
    }
}

/// One entry.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    /// The entry.
    pub spec: KernelSpec,
    /// What `w` is.
    pub weights: Weights,
    /// What a stage holds.
    pub tile: Tile,
}

/// What `w` is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// bf16 `[n, k]`; `a` too.
    Bf16,
    /// i8 `[n, k]` with a scale a row; `a` too.
    Int8,
    /// 4 bits in pieces ([`layout`]).
    Int4 {
        /// Groups to 128 of `k`: 1, 2 or 4.
        groups: u32,
        /// What `a`, and with it `out`, is.
        activations: Activations,
    },
}

/// The formats of activations that 4-bit weights multiply; pieces are the same for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// What the runtime has.
    Bf16,
    /// Results above 65504 become infinite.
    F16,
}

const fn variant(name: &'static str, weights: Weights, tokens: u32) -> Variant {
    let tile = match weights {
        Weights::Bf16 | Weights::Int8 => dense_tile(tokens),
        Weights::Int4 { groups, .. } => int4_tile(tokens, groups),
    };
    of_tile(name, weights, tile)
}

const fn of_tile(name: &'static str, weights: Weights, tile: Tile) -> Variant {
    let shared_bytes = tile.shared_bytes();
    let threads = tile.consumer_threads() + tile.producers;
    Variant {
        spec: KernelSpec {
            name,
            threads,
            min_blocks: 1,
            shared_bytes,
            allowance: None,
            starts_early: true,
            waits_in_row: true,
            cooperative: false,
            spreads: false,
        },
        weights,
        tile,
    }
}

const fn four_bits(groups: u32) -> Weights {
    Weights::Int4 { groups, activations: Activations::Bf16 }
}

const fn four_bits_f16(groups: u32) -> Weights {
    Weights::Int4 { groups, activations: Activations::F16 }
}

/// All entries; of each kind of weights, the fewest tokens first.
pub static VARIANTS: [Variant; 33] = [
    variant("gemm_few_bf16_8", Weights::Bf16, 8),
    variant("gemm_few_bf16_16", Weights::Bf16, 16),
    variant("gemm_few_bf16_32", Weights::Bf16, 32),
    variant("gemm_few_bf16_64", Weights::Bf16, 64),
    variant("gemm_few_int8_8", Weights::Int8, 8),
    variant("gemm_few_int8_16", Weights::Int8, 16),
    variant("gemm_few_int8_32", Weights::Int8, 32),
    variant("gemm_few_int8_64", Weights::Int8, 64),
    variant("gemm_few_int4_g128_8", four_bits(1), 8),
    variant("gemm_few_int4_g128_16", four_bits(1), 16),
    variant("gemm_few_int4_g128_32", four_bits(1), 32),
    variant("gemm_few_int4_g128_64", four_bits(1), 64),
    variant("gemm_few_int4_g128_128", four_bits(1), 128),
    variant("gemm_few_int4_g64_8", four_bits(2), 8),
    variant("gemm_few_int4_g64_16", four_bits(2), 16),
    variant("gemm_few_int4_g64_128", four_bits(2), 128),
    variant("gemm_few_int4_g32_8", four_bits(4), 8),
    variant("gemm_few_int4_g32_16", four_bits(4), 16),
    variant("gemm_few_int4_g32_128", four_bits(4), 128),
    variant("gemm_few_bf16_128", Weights::Bf16, 128),
    variant("gemm_few_int4_g128_8_f16", four_bits_f16(1), 8),
    variant("gemm_few_int4_g128_16_f16", four_bits_f16(1), 16),
    variant("gemm_few_int4_g128_32_f16", four_bits_f16(1), 32),
    variant("gemm_few_int4_g128_64_f16", four_bits_f16(1), 64),
    variant("gemm_few_int4_g128_128_f16", four_bits_f16(1), 128),
    variant("gemm_few_int4_g64_8_f16", four_bits_f16(2), 8),
    variant("gemm_few_int4_g64_16_f16", four_bits_f16(2), 16),
    variant("gemm_few_int4_g64_128_f16", four_bits_f16(2), 128),
    variant("gemm_few_int4_g32_8_f16", four_bits_f16(4), 8),
    variant("gemm_few_int4_g32_16_f16", four_bits_f16(4), 16),
    variant("gemm_few_int4_g32_128_f16", four_bits_f16(4), 128),
    of_tile("gemm_few_int4_g128_64_pair", four_bits(1), int4_pair_tile(64, 1)),
    of_tile("gemm_few_int4_g128_64_pair_f16", four_bits_f16(1), int4_pair_tile(64, 1)),
];

/// 8-bit weights in the tiles of 4 bits.
#[cfg(not(target_arch = "nvptx64"))]
pub mod halves;
/// What the launcher decides.
#[cfg(not(target_arch = "nvptx64"))]
pub mod launch;
/// Weights on their way into tiles of 4 bits.
#[cfg(not(target_arch = "nvptx64"))]
pub mod pack;
