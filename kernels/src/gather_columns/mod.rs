//! Brings the columns of activations into the orders that weights are stored in: act-order, whose groups are of columns that don't lie
//! beside each other, and 8 bits in halves, which want each of them twice.
//!
//! One block a row and an order. The row goes to shared memory in vectors, and its elements come from there one by one: read from memory
//! in an order that is as good as random, each would be a transaction of 32 bytes. The first columns of the order are asked for before the
//! launch before has ended. One of Hopper's kernels for the sake of the longest row: other devices have less shared memory. Shapes:
//! `cols` a multiple of 8, at most [`MOST_COLS`].

use crate::abi::KernelSpec;

#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub mod kernel;

/// Threads a block: 8192 columns a step.
pub const THREADS: u32 = 1024;

/// Columns of the longest row. Two blocks of it, which are all the threads of a multiprocessor, fit its shared memory.
pub const MOST_COLS: u32 = 57_344;

/// Grid: `(rows, orders, 1)`.
pub static GATHER_COLUMNS: KernelSpec = KernelSpec {
    name: "gather_columns",
    threads: THREADS,
    min_blocks: 2,
    shared_bytes: MOST_COLS * 2,
    allowance: None,
    starts_early: true,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};
