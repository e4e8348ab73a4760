//! Greedy choice: the index of the largest logit of each row.
//!
//! One block a row. A logit and its index travel as one `u64` whose order is the ranking (larger logit first, then lower index), so
//! the result is a maximum of integers and any order of reduction gives it. NaN is looked for by its bits: `max` would drop it.
//! Shapes: `cols` from 1 to 2^32 - 1, rows packed without alignment beyond an f32's.

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: a row of 128k logits is 256 a thread.
pub const THREADS: u32 = 512;

/// What the block keeps in shared memory.
#[derive(Debug, Clone, Copy)]
pub struct SharedPlan;

impl SharedPlan {
    /// One u64 a warp: the best of its lanes.
    pub const BEST: u32 = 0;
    /// One u32 a warp: its row flags.
    pub const FLAGS: u32 = Self::BEST + THREADS / 32 * 8;
    /// All of it.
    pub const BYTES: u32 = Self::FLAGS + THREADS / 32 * 4;
}

/// Grid: `(rows, 1, 1)`.
pub static ARGMAX: KernelSpec = KernelSpec {
    name: "argmax",
    threads: THREADS,
    min_blocks: 2,
    shared_bytes: SharedPlan::BYTES,
    allowance: None,
    starts_early: false,
};
