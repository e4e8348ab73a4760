//! The gate of a gated feed-forward layer: `silu(gate) * up`.
//!
//! One block a row or, where rows are few, several, 16 bytes a thread a step. Shapes: `inter` a multiple of 8.
//!
//! Source: Shazeer, "GLU Variants Improve Transformer", 2020, equation 6 (SwiGLU).

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: 2048 columns a step.
pub const THREADS: u32 = 256;

/// Blocks of a row that together take it in one step.
pub const fn parts(inter: u32) -> u32 {
    let parts = inter.div_ceil(8 * THREADS);
    if parts == 0 { 1 } else { parts }
}

/// Grid: `(rows, parts, 1)`, of at least one part a row.
pub static SILU_MUL: KernelSpec = KernelSpec {
    name: "silu_mul",
    threads: THREADS,
    min_blocks: 4,
    shared_bytes: 0,
    allowance: None,
    starts_early: true,
    waits_in_row: false,
    cooperative: false,
    spreads: false,
};
