//! Greedy choice: the index of the largest logit of each row.
//!
//! A block a row, or several whose findings the last of them joins: one would read a vocabulary of 128k at a hundredth of the device's
//! speed. A logit and its index travel as one `u64` whose order is the ranking (larger logit first, then lower index), so
//! the result is a maximum of integers and any order of reduction, and any number of blocks, gives it. NaN is looked for by its bits: `max` would drop it.
//! Shapes: `cols` from 1 to 2^32 - 1, rows packed without alignment beyond an f32's.

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: a row of 128k logits in 32 parts is 8 a thread.
pub const THREADS: u32 = 512;

/// What the block keeps in shared memory.
#[derive(Debug, Clone, Copy)]
pub struct SharedPlan;

impl SharedPlan {
    /// One u64 a warp: the best of its lanes.
    pub const BEST: u32 = 0;
    /// One u32 a warp: its row flags.
    pub const FLAGS: u32 = Self::BEST + THREADS / 32 * 8;
    /// One u32: whether the block is the last of its row.
    pub const IS_LAST: u32 = Self::FLAGS + THREADS / 32 * 4;
    /// All of it.
    pub const BYTES: u32 = Self::IS_LAST + 16;
}

/// Logits that are worth a block.
const PART_COLS: u32 = 8 * THREADS;
/// Blocks of a row, at most: a warp joins them.
pub const MAX_PARTS: u32 = 32;

/// Blocks of a row of `cols` logits.
pub const fn parts(cols: u32) -> u32 {
    let parts = cols.div_ceil(PART_COLS);
    if parts == 0 {
        1
    } else if parts > MAX_PARTS {
        MAX_PARTS
    } else {
        parts
    }
}

/// Grid: `(rows, parts, 1)`, of at most [`MAX_PARTS`] parts a row.
pub static ARGMAX: KernelSpec = KernelSpec {
    name: "argmax",
    threads: THREADS,
    min_blocks: 2,
    shared_bytes: SharedPlan::BYTES,
    allowance: None,
    starts_early: true,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};
