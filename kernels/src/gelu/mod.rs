//! The activation of a feed-forward layer without a gate, as GPT-2, BERT and ViT have it: the Gaussian error linear unit, exact or in
//! its approximation by a hyperbolic tangent.
//!
//! One block a row, 16 bytes a thread a step. Shapes: `cols` a multiple of 8.
//!
//! Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, section 2 for both forms.

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: 2048 columns a step.
pub const THREADS: u32 = 256;

/// Grid: `(rows, 1, 1)`.
pub static GELU: KernelSpec = KernelSpec {
    name: "gelu",
    threads: THREADS,
    min_blocks: 4,
    shared_bytes: 0,
    allowance: None,
    starts_early: false,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};
