//! What stands between the fused QKV projection and attention: optional per-head RMS norm of queries and keys, rotary position
//! embedding, and the append of keys and values to the paged cache.
//!
//! One block a token, one warp a head at a time, so that the norm is a warp's sum. Angles, and with them any scaling of
//! frequencies (plain, Llama 3), live in the `cos_sin` table that the launcher made. Shapes: `head_dim` a multiple of 16, at
//! most 256.
//!
//! Source: Su et al., "RoFormer", 2021, section 3.2, in the half-split layout of GPT-NeoX; query and key norms: Henry et al.,
//! "Query-Key Normalization for Transformers", 2020, as Qwen3 has them.

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: eight heads at a time.
pub const THREADS: u32 = 256;
/// The largest head.
pub const MAX_HEAD_DIM: u32 = 256;

/// Grid: `(tokens, 1, 1)`.
pub static ROPE_APPEND: KernelSpec =
    KernelSpec { name: "rope_append", threads: THREADS, min_blocks: 4, shared_bytes: 0, allowance: None };
