//! The softmax of attention that writes its scores down: what the runtime's own attention does without, and is measured against.
//!
//! One block a row, which is read three times, twice from cache: for the largest score, for the sum, for the weights, which take the
//! scores' place. The passes end where the row's query sees no further; past it there are zeros, for the product with the values that
//! follows. Shapes: `cols` a multiple of 8.
//!
//! Source: Vaswani et al., "Attention Is All You Need", 2017, sections 3.2.1 and 3.2.3.

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: 2048 columns a step.
pub const THREADS: u32 = 256;

/// What the block keeps in shared memory.
#[derive(Debug, Clone, Copy)]
pub struct SharedPlan;

impl SharedPlan {
    /// One f32 a warp, the largest scores.
    pub const LARGEST: u32 = 0;
    /// One f32 a warp, of the exponentials. Apart from `LARGEST`, which slow warps may still be reading.
    pub const SUMS: u32 = Self::LARGEST + THREADS / 32 * 4;
    /// All of it.
    pub const BYTES: u32 = Self::SUMS + THREADS / 32 * 4;
}

/// Grid: `(rows, 1, 1)`.
pub static CAUSAL_SOFTMAX: KernelSpec = KernelSpec {
    name: "causal_softmax",
    threads: THREADS,
    min_blocks: 8,
    shared_bytes: SharedPlan::BYTES,
    allowance: None,
    starts_early: false,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};
