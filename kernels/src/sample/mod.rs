//! Draws a token of each row after temperature, top-k, top-p and min-p, without sorting.
//!
//! One block a row. A token's rank is one integer (larger logit first, then lower index), and its probability an integer
//! multiple of 2^-40 of the largest one's, so that sums don't depend on the order in which threads add. The last token that
//! top-k keeps, then the last that top-p keeps, are found by radix selection from the top: a histogram of counts or of
//! probabilities over the next 11 bits of the ranks, the bin in which the running total reaches the target, then the bits
//! within that bin; it ends early when a bin is kept whole. The draw sums each warp's stretch of the row, finds the stretch
//! that holds the target, and walks it 32 tokens at a time.
//!
//! Tokens under 2^-40 of the largest probability count as 0 and are never drawn. Shapes: `cols` up to 2^23.

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod select;

/// Threads a block: a row of 256k logits is 512 a thread a pass. With 1024 threads the 64 registers a thread spill.
pub const THREADS: u32 = 512;
/// Bits of the rank a pass.
pub const RADIX_BITS: u32 = 11;
/// Low bits of the rank, which hold the inverted index.
pub const INDEX_BITS: u32 = 23;
/// The longest row.
pub const MAX_COLS: u32 = 1 << INDEX_BITS;

/// What a block keeps in shared memory.
#[derive(Debug, Clone, Copy)]
pub struct SharedPlan;

impl SharedPlan {
    /// u64 a bin.
    pub const HISTOGRAM: u32 = 0;
    /// u64 a warp.
    pub const WARPS: u32 = Self::HISTOGRAM + (1 << RADIX_BITS) * 8;
    /// Three u64: the bin in which the target falls, the total above it, and the bin's own.
    pub const FOUND: u32 = Self::WARPS + THREADS / 32 * 8;
    /// All of it.
    pub const BYTES: u32 = Self::FOUND + 3 * 8;
}

/// Grid: `(rows, 1, 1)`.
pub static SAMPLE: KernelSpec = KernelSpec {
    name: "sample",
    threads: THREADS,
    min_blocks: 1,
    shared_bytes: SharedPlan::BYTES,
    allowance: None,
    starts_early: false,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};
