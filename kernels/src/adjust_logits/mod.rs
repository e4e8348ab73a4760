//! Penalties and biases: some logits of some rows, changed in place before tokens are chosen.
//!
//! One block a row that has changes, one change a thread a step. Which tokens a row names and how follows from its sequence alone, so
//! the host keeps the list and brings it with the step. A list's tokens ascend, so that neighbouring threads touch neighbouring logits and
//! no logit is changed twice; the arithmetic is [`LogitChange::of`](crate::abi::LogitChange::of), on the host too. Memory bound: 24 bytes a change.

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: what a penalty of repetition names after a prompt of a few thousand tokens is a handful a thread.
pub const THREADS: u32 = 256;

/// Grid: `(rows that have changes, 1, 1)`.
pub static ADJUST_LOGITS: KernelSpec = KernelSpec {
    name: "adjust_logits",
    threads: THREADS,
    min_blocks: 4,
    shared_bytes: 0,
    allowance: None,
    starts_early: false,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};
