//! Joins the chunks of a split attention: a weighted mean of the chunks' outputs, each weighted by its share of the softmax sum.
//!
//! One block a head and sequence, two elements a thread a step, chunks in ascending order. Sequences of one chunk or none were
//! written by the decode kernel and are left alone. An empty chunk has weight 0 and isn't read. Shapes: `head_dim` even.
//!
//! Source: Dao et al., "Flash-Decoding for long-context inference", 2023.

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: a head dim of 128 in one step.
pub const THREADS: u32 = 64;

/// Grid: `(q_heads, seqs_of_launch, 1)`.
pub static ATTENTION_COMBINE: KernelSpec = KernelSpec {
    name: "attention_combine",
    threads: THREADS,
    min_blocks: 8,
    shared_bytes: 0,
    allowance: None,
};
