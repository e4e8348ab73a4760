//! Pages of a quantised cache as bf16, for attention of prompts: its kernels multiply bf16 alone, and read a key once for every tile of
//! queries, so that widening it once for all of them is little beside their work.
//!
//! Bound by memory: a byte and a share of a scale in, two bytes out. An element is its code times its vector's scale, one product in f32,
//! rounded to bf16 once. Only rows that hold a key are read and written.
//!
//! ```text
//! block    one key head of one listed page, up to 64 of its rows; keys or values
//! thread   16 codes of a row at a time: 16 bytes in, twice 16 out
//! ```

use crate::abi::{KV_FP8, KV_INT8, KernelSpec};

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block: a page of 16 tokens and heads of 128 elements are one load each.
pub const THREADS: u32 = 128;
/// Rows of a page that a block takes.
pub const PART_ROWS: u32 = 64;

/// Blocks that share a page of a head.
pub const fn parts(page_size: u32) -> u32 {
    page_size.div_ceil(PART_ROWS)
}

/// The grid of a launch over `pages` listed pages, none where it would be larger than a grid may be.
pub const fn grid(pages: u32, page_size: u32, kv_heads: u32) -> Option<[u32; 3]> {
    let blocks = pages as u64 * parts(page_size) as u64;
    if blocks > i32::MAX as u64 || kv_heads > u16::MAX as u32 {
        return None;
    }
    Some([blocks as u32, kv_heads, 2])
}

/// The entry that reads a cache of `format`, if it is quantised.
pub fn spec(format: u32) -> Option<&'static KernelSpec> {
    match format {
        KV_INT8 => Some(&INT8),
        KV_FP8 => Some(&FP8),
        _ => None,
    }
}

/// Of an int8 cache. Grid: [`grid`].
pub static INT8: KernelSpec = entry("kv_widen_int8");
/// Of an fp8 cache. Grid: [`grid`].
pub static FP8: KernelSpec = entry("kv_widen_fp8");

const fn entry(name: &'static str) -> KernelSpec {
    KernelSpec {
        name,
        threads: THREADS,
        min_blocks: 12,
        shared_bytes: 0,
        allowance: None,
        starts_early: false,
        waits_in_row: false,
        cooperative: false,
        spreads: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::KV_BF16;

    #[test]
    fn grids_cover_pages_and_stay_within_the_driver_s_limits() {
        assert_eq!([1, 16, 64, 65, 8192].map(parts), [1, 1, 1, 2, 128]);
        assert_eq!(grid(7, 65, 8), Some([14, 8, 2]));
        assert_eq!(grid(0, 16, 8), Some([0, 8, 2]));
        assert_eq!(grid(u32::MAX, 16, 8), None);
        assert_eq!(grid(1, 16, 65_536), None);
        assert!(spec(KV_BF16).is_none() && spec(KV_INT8).is_some() && spec(KV_FP8).is_some());
    }
}
