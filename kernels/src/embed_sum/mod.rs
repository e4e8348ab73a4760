//! Embedding lookup where positions are learned: the sum of a row of one table and a row of another, rounded once.
//!
//! One block a row, 16 bytes a thread a step. Shapes: `cols` a multiple of 8, indices below the rows of their tables.
//!
//! Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.5 (learned positional embeddings).

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: 1024 columns a step.
pub const THREADS: u32 = 128;

/// Grid: `(rows, 1, 1)`.
pub static EMBED_SUM: KernelSpec = KernelSpec {
    name: "embed_sum",
    threads: THREADS,
    min_blocks: 8,
    shared_bytes: 0,
    allowance: None,
    starts_early: false,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};
