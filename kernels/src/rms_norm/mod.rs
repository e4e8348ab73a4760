//! Root-mean-square normalisation, with the residual addition that precedes it in a transformer block.
//!
//! [`RMS_NORM_INT8`] leaves the output as bytes with a scale a row instead, for products of bytes: the bits that
//! [`crate::quantize_rows`] makes of the other's.
//!
//! One block a row. The row is read twice, of bytes three times, from cache but for the first: the sum of squares needs all of it, the
//! bytes' scale all of the output, and keeping the f32 sum `x + residual` between the passes would tie the kernel to one row length.
//! Shapes: `cols` a multiple of 8.
//!
//! Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, equation 4.

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: 2048 columns a step.
pub const THREADS: u32 = 256;

/// What the block keeps in shared memory.
#[derive(Debug, Clone, Copy)]
pub struct SharedPlan;

impl SharedPlan {
    /// One f32 a warp.
    pub const WARP_SUMS: u32 = 0;
    /// Of bytes, one word a warp.
    pub const WARP_LARGEST: u32 = Self::BYTES;
    /// All of it, but for those.
    pub const BYTES: u32 = THREADS / 32 * 4;
}

/// Grid: `(rows, 1, 1)`.
pub static RMS_NORM: KernelSpec = KernelSpec {
    name: "rms_norm",
    threads: THREADS,
    min_blocks: 4,
    shared_bytes: SharedPlan::BYTES,
    allowance: None,
    starts_early: true,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};

/// Grid: `(rows, 1, 1)`.
pub static RMS_NORM_INT8: KernelSpec =
    KernelSpec { name: "rms_norm_int8", shared_bytes: 2 * SharedPlan::BYTES, ..RMS_NORM };
