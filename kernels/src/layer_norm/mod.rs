//! Layer normalisation, with the residual addition that precedes it in a transformer block: what GPT-2, BERT and ViT have where
//! Llama has the RMS norm.
//!
//! One block a row, which is read three times, twice from cache: for the mean, for the variance about that mean, for the result.
//! The sum of squares less the square of the sum would save a pass, and loses all digits of a row whose mean is a few thousand
//! times its deviation; an f32 copy of the row in registers would save two, and tie the kernel to one row length. Shapes: `cols` a
//! multiple of 8.
//!
//! Source: Ba, Kiros and Hinton, "Layer Normalization", 2016, equations 3 and 4; Chan, Golub and LeVeque, "Algorithms for Computing the
//! Sample Variance", 1983, on the two passes.

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: 2048 columns a step.
pub const THREADS: u32 = 256;

/// What the block keeps in shared memory.
#[derive(Debug, Clone, Copy)]
pub struct SharedPlan;

impl SharedPlan {
    /// One f32 a warp, of the elements.
    pub const SUMS: u32 = 0;
    /// One f32 a warp, of the squares. Apart from `SUMS`, which slow warps may still be reading.
    pub const SQUARES: u32 = Self::SUMS + THREADS / 32 * 4;
    /// All of it.
    pub const BYTES: u32 = Self::SQUARES + THREADS / 32 * 4;
}

/// Grid: `(rows, 1, 1)`.
pub static LAYER_NORM: KernelSpec = KernelSpec {
    name: "layer_norm",
    threads: THREADS,
    min_blocks: 4,
    shared_bytes: SharedPlan::BYTES,
    allowance: None,
    starts_early: false,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};
