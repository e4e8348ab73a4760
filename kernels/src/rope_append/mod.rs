//! What stands between the fused QKV projection and attention: optional per-head RMS norm of queries and keys, rotary position
//! embedding, and the append of keys and values to the paged cache, cast or quantised.
//!
//! Bound by memory: everything is read once and written once. A lane holds 16 bytes of a head's lower half and the 16 that pair
//! with them in the upper half, so rotation needs no exchange and every access is a full vector; some lanes
//! make a head, and a warp holds [`HELD_HEADS`] times as many heads as fit it, all their loads in flight before the first is used.
//! A row of angles is read once a warp and serves all its heads.
//!
//! ```text
//! warp   [ head 0 | head 1 | head 2 | head 3 ]  x HELD_HEADS    (head dim 128: 8 lanes a head)
//! lane   lower half, 8 elements + upper half, 8 elements; angles, 8 cosines + 8 sines
//! token  warps_per_token(heads) warps; a block's four warps may serve several tokens
//! ```
//!
//! Sums of the norm and maxima of the quantiser are butterflies over a head's lanes: their order depends on the head dim alone.
//! Angles, and with them any scaling of frequencies (plain, Llama 3), live in the `cos_sin` table that the launcher made. Shapes:
//! `head_dim` a multiple of 16, at most 256.
//!
//! Source: Su et al., "RoFormer", 2021, section 3.2, in the half-split layout of GPT-NeoX; query and key norms: Henry et al.,
//! "Query-Key Normalization for Transformers", 2020, as Qwen3 has them.

use crate::abi::{KV_BF16, KV_FP8, KV_INT8, KernelSpec};

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub(crate) mod head;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block. Small, so that the few tokens of a decoding step spread over many multiprocessors.
pub const THREADS: u32 = 128;
/// The largest head.
pub const MAX_HEAD_DIM: u32 = 256;
/// Heads a lane holds parts of at once: six loads of 16 bytes in flight.
pub const HELD_HEADS: u32 = 3;

/// Base-2 logarithm of the lanes that share a head: 16 elements each, rounded up to a power of two.
pub const fn log_lanes_per_head(head_dim: u32) -> u32 {
    let chunks = head_dim / 16;
    if chunks > 1 { 32 - (chunks - 1).leading_zeros() } else { 0 }
}

/// Warps that serve one token of `heads` heads, keys and values included.
pub const fn warps_per_token(heads: u32, head_dim: u32) -> u32 {
    let held = (32 >> (log_lanes_per_head(head_dim) & 31)) * HELD_HEADS;
    if held == 0 { heads } else { heads.div_ceil(held) }
}

/// The grid of a launch.
pub const fn grid(tokens: u32, q_heads: u32, kv_heads: u32, head_dim: u32) -> [u32; 3] {
    let warps = tokens as u64 * warps_per_token(q_heads + 2 * kv_heads, head_dim) as u64;
    [warps.div_ceil(THREADS as u64 / 32) as u32, 1, 1]
}

/// The entry that appends to a cache of `kv_format`, if there is such a format.
pub fn spec(kv_format: u32) -> Option<&'static KernelSpec> {
    match kv_format {
        KV_BF16 => Some(&BF16),
        KV_INT8 => Some(&INT8),
        KV_FP8 => Some(&FP8),
        _ => None,
    }
}

/// To a bf16 cache. Grid: [`grid`].
pub static BF16: KernelSpec = entry("rope_append");
/// To an int8 cache. Grid: [`grid`].
pub static INT8: KernelSpec = entry("rope_append_int8");
/// To an fp8 cache. Grid: [`grid`].
pub static FP8: KernelSpec = entry("rope_append_fp8");

/// Six blocks of 128 threads leave 80 registers, and no format needs more: loads of 24 warps keep the memory busy.
const fn entry(name: &'static str) -> KernelSpec {
    KernelSpec {
        name,
        threads: THREADS,
        min_blocks: 6,
        shared_bytes: 0,
        allowance: None,
        starts_early: true,
        waits_in_row: false,
        cooperative: false,
        spreads: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warps_hold_what_the_shapes_of_models_ask_for() {
        // Llama 3.1 8B: eight lanes a head, 48 heads: four warps and none of them idle.
        assert_eq!((log_lanes_per_head(128), warps_per_token(48, 128)), (3, 4));
        assert_eq!(grid(8192, 32, 8, 128), [8192, 1, 1]);
        assert_eq!([16, 32, 48, 80, 256].map(log_lanes_per_head), [0, 1, 2, 3, 4]);
        assert_eq!(grid(5, 1, 1, 16), [2, 1, 1]);
        assert_eq!(grid(0, 1, 1, 16), [0, 1, 1]);
    }
}
