//! Products of 4-bit or bf16 weights for the fewest tokens on Hopper, by blocks that have all of `k`: no block waits for sums of another's. One product
//! a launch, or, of 4 bits, several that follow each other.
//!
//! Each warp has 16 rows and one split of `k`, and a ring of its own, which its lane 0 fills: no barrier of the block stands between weights and products, nor between
//! the weights of one product and those of the next. The splits' sums meet in shared memory and are added in pairs, these in ascending order, so that a row has the bits that
//! [`gemm_few`](crate::gemm_few) gives it, where splits are blocks.
//!
//! ```text
//! lane 0   w: 0 1 | wait for the launch before          | w: 2 | 3 | 4 | first of the next product's | ...    runs of pieces, one behind the other
//! block                                        rows of a |                                              | rows of a as they come (norm) |
//! warp                                                    0 | 1 | 2 ... | sums, of all splits, out                                        0 | ...
//! ```
//!
//! From one phase of a chain to the next rows go by mail: memory of zeros, to which a phase stores its rows with inverted bits, none of whose words is zero. Whoever needs rows
//! reads words until none of them is zero: a store and a load are the whole way, where a counter of blocks needs a fence and two trips more. That all
//! rows of a phase have come says that all blocks are done with the one before. The last block that has all it will wait for leaves zeros again.
//!
//! Shapes: `k` a multiple of 8, `n` of 8 (of 16 with SiLU); as many rows of `a` as a block has room for, 8 at most.

use crate::{
    abi::{GemmWhole, KernelSpec},
    gemm_few::{Activations, LINE_BYTES, Weights, layout, piece_stride},
};

#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub mod dense;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod finish;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub mod kernel;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod rows;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod weights;

/// Warps of a block: one a group of 16 rows and split of `k`.
pub const WARPS: u32 = 16;
/// Warps of a half block, of which two share a multiprocessor: the next launch's first weights come while this one's last are multiplied.
pub const HALF_WARPS: u32 = WARPS / 2;
/// Rows of `a` at most.
pub const TOKENS: u32 = 8;
/// Products of a launch at most.
pub const MOST_PHASES: usize = 4;
/// Pieces of 4-bit weights in a slot of a warp's ring.
pub(crate) const PIECES: u32 = 4;
/// Bytes of a warp's sums.
pub(crate) const SUM_BYTES: u32 = 32 * 16;
/// Bytes of a chain's phases.
pub(crate) const PHASE_BYTES: u32 = (MOST_PHASES * size_of::<GemmWhole>()) as u32;
/// Bytes behind a row of `a`.
pub(crate) const PAD: u32 = 64;
/// Bytes of what a warp works on.
pub(crate) const PART_BYTES: u32 = 32;
/// All that a block may have, and a half block.
const SHARED_BYTES: u32 = 226 << 10;
const HALF_SHARED_BYTES: u32 = 112 << 10;
/// Bytes of rows of `a`, of which every block reads all, that are worth that blocks don't wait for each other. H200, 2026-11-30: 64 KiB took longer than a split `k`.
pub const MOST_ROW_BYTES: u32 = 40 << 10;

/// Bytes of a phase's rows as the next one's blocks wait for them.
pub(crate) const PHASE_MAIL_BYTES: u32 = MOST_ROW_BYTES;
/// Bytes of those of a chain: what the last phase makes nobody waits for.
pub const MAIL_BYTES: u32 = (MOST_PHASES as u32 - 1) * PHASE_MAIL_BYTES;

/// What a block keeps in shared memory, in bytes from its start: rings of its warps, their barriers, sums, rows of `a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Warps of a block.
    pub warps: u32,
    /// Bytes of a slot of a warp's ring.
    pub slot_bytes: u32,
    /// Slots of the ring, a power of two.
    pub slots: u32,
    /// Columns of a step along `k`.
    pub step_k: u32,
}

impl Plan {
    /// bf16: a slot is a line of each of 16 rows. 128 KiB of a block's weights are on their way at once, twice what memory takes to answer.
    pub const BF16: Plan =
        Plan { warps: WARPS, slot_bytes: layout::PIECE_ROWS * LINE_BYTES, slots: 4, step_k: LINE_BYTES / 2 };

    /// 4 bits, of so many groups to 128 of `k`: 1, 2 or 4; of a block of so many warps.
    pub const fn four_bits(groups: u32, warps: u32) -> Plan {
        Plan { warps, slot_bytes: PIECES * piece_stride(groups), slots: 2, step_k: layout::TILE_K }
    }
    /// Bytes of rows of `a` that a block has room for, and are worth it.
    pub const fn most_row_bytes(self) -> u32 {
        let room = if self.warps == WARPS { SHARED_BYTES } else { HALF_SHARED_BYTES } - self.a();
        if room < MOST_ROW_BYTES { room } else { MOST_ROW_BYTES }
    }
    /// Blocks that share a multiprocessor.
    pub const fn blocks(self) -> u32 {
        WARPS / self.warps
    }
    /// `full[warps][slots]`: the slot has landed.
    pub const fn full(self) -> u32 {
        self.warps * self.slots * self.slot_bytes
    }
    /// Sums of the warps.
    pub const fn sums(self) -> u32 {
        self.full() + self.warps * self.slots * 8
    }
    /// Sums of squares: a word a warp.
    pub const fn squares(self) -> u32 {
        self.sums() + self.warps * SUM_BYTES
    }
    /// A chain's phases.
    pub const fn phases(self) -> u32 {
        self.squares() + self.warps * 4
    }
    /// The warps' parts of each phase.
    pub const fn parts(self) -> u32 {
        self.phases() + PHASE_BYTES
    }
    /// The rows of `a`.
    pub const fn a(self) -> u32 {
        self.parts() + MOST_PHASES as u32 * self.warps * PART_BYTES
    }
    /// Bytes of the columns of a step.
    pub const fn step_bytes(self) -> u32 {
        self.step_k * 2
    }
    /// Bytes from one row of `a` to the next, of so many steps: 64 more than they have, so that what is loaded of two rows together falls on different
    /// banks.
    #[inline(always)]
    pub const fn a_pitch(self, steps: u32) -> u32 {
        steps * self.step_bytes() + PAD
    }
}

/// Entries of one kind of 4-bit weights.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    /// 4 bits.
    pub weights: Weights,
    /// One product.
    pub one: KernelSpec,
    /// One product by half blocks.
    pub half: KernelSpec,
    /// Several, one after the other, where there is such an entry: of the runtime's activations.
    pub chain: Option<&'static KernelSpec>,
    /// What a block keeps, and a half block.
    pub plan: Plan,
    pub half_plan: Plan,
}

impl Variant {
    /// Of the entries of one product.
    pub const fn names(&self) -> [&'static str; 2] {
        [self.one.name, self.half.name]
    }
}

const fn half(name: &'static str) -> KernelSpec {
    KernelSpec {
        threads: HALF_WARPS * 32,
        min_blocks: 2,
        shared_bytes: HALF_SHARED_BYTES,
        ..entry(name, false)
    }
}

const fn entry(name: &'static str, waits_for_all: bool) -> KernelSpec {
    KernelSpec {
        name,
        threads: WARPS * 32,
        min_blocks: 1,
        shared_bytes: SHARED_BYTES,
        allowance: None,
        starts_early: true,
        waits_in_row: waits_for_all,
        cooperative: waits_for_all,
        spreads: false,
    }
}

const fn variant(
    names: [&'static str; 2],
    chain: Option<&'static KernelSpec>,
    groups: u32,
    activations: Activations,
) -> Variant {
    Variant {
        weights: Weights::Int4 { groups, activations },
        one: entry(names[0], false),
        half: half(names[1]),
        chain,
        plan: Plan::four_bits(groups, WARPS),
        half_plan: Plan::four_bits(groups, HALF_WARPS),
    }
}

const fn bf16(names: [&'static str; 2], chain: &'static KernelSpec, groups: u32) -> Variant {
    variant(names, Some(chain), groups, Activations::Bf16)
}

const fn f16(names: [&'static str; 2], groups: u32) -> Variant {
    variant(names, None, groups, Activations::F16)
}

/// All entries of several products.
pub static CHAINS: [KernelSpec; 3] = [
    entry("gemm_whole_chain_int4_g128", true),
    entry("gemm_whole_chain_int4_g64", true),
    entry("gemm_whole_chain_int4_g32", true),
];

/// The entry of bf16 weights as they are, row-major, which takes [`abi::GemmWholeBf16`](crate::abi::GemmWholeBf16).
pub static BF16: KernelSpec = entry("gemm_whole_bf16", false);

/// All entries of one product of 4-bit weights, and the chains that go with them.
pub static VARIANTS: [Variant; 6] = [
    bf16(["gemm_whole_int4_g128", "gemm_whole_half_int4_g128"], &CHAINS[0], 1),
    bf16(["gemm_whole_int4_g64", "gemm_whole_half_int4_g64"], &CHAINS[1], 2),
    bf16(["gemm_whole_int4_g32", "gemm_whole_half_int4_g32"], &CHAINS[2], 4),
    f16(["gemm_whole_int4_g128_f16", "gemm_whole_half_int4_g128_f16"], 1),
    f16(["gemm_whole_int4_g64_f16", "gemm_whole_half_int4_g64_f16"], 2),
    f16(["gemm_whole_int4_g32_f16", "gemm_whole_half_int4_g32_f16"], 4),
];

/// What the launcher decides.
#[cfg(not(target_arch = "nvptx64"))]
pub mod launch;
