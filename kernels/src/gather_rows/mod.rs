//! Copies selected rows of a matrix: embedding lookup, and the choice of rows whose logits are wanted.
//!
//! One block a row, 16 bytes a thread a step. Shapes: `cols` a multiple of 8, ids below the table's rows.

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: 1024 columns a step.
pub const THREADS: u32 = 128;

/// Grid: `(rows, 1, 1)`.
pub static GATHER_ROWS: KernelSpec = KernelSpec {
    name: "gather_rows",
    threads: THREADS,
    min_blocks: 8,
    shared_bytes: 0,
    allowance: None,
    starts_early: true,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};
