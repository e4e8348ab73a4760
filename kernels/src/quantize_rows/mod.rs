//! Rows of activations as signed bytes with a scale each, for products of bytes (W8A8): `round(x * 127 / max|x|)`, ties to even.
//!
//! One block a row, which is read twice, the second time from cache. Where a norm comes before, [`crate::rms_norm::RMS_NORM_INT8`] does
//! both and leaves the same bits. Shapes: `cols` a multiple of 8.

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: 2048 columns a step.
pub const THREADS: u32 = 256;

/// What the block keeps in shared memory.
#[derive(Debug, Clone, Copy)]
pub struct SharedPlan;

impl SharedPlan {
    /// One word a warp.
    pub const WARP_LARGEST: u32 = 0;
    /// All of it.
    pub const BYTES: u32 = THREADS / 32 * 4;
}

/// Grid: `(rows, 1, 1)`.
pub static QUANTIZE_ROWS: KernelSpec = KernelSpec {
    name: "quantize_rows",
    threads: THREADS,
    min_blocks: 4,
    shared_bytes: SharedPlan::BYTES,
    allowance: None,
    starts_early: true,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};
