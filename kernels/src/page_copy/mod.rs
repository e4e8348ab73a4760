//! Copies of whole pages: within a cache when a sequence forks, to a staging buffer when it is swapped out, and back.
//!
//! Bound by memory. One launch serves all pages and all layers: a block moves [`BLOCK_BYTES`] of one page of one tensor, each
//! thread four vectors of 16 bytes, all loaded before the first is stored. A page whose size is no multiple of 16 (the scales of
//! a small one) goes by words of four. Keys, values and scales are bytes here, so every format of cache is served.

use crate::abi::KernelSpec;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;

/// Threads a block.
pub const THREADS: u32 = 128;
/// Vectors a thread holds at once.
pub const HELD_VECTORS: u32 = 4;
/// Bytes a block moves.
pub const BLOCK_BYTES: u32 = THREADS * HELD_VECTORS * 16;

/// Blocks a page of the largest tensor.
pub const fn blocks_per_page(largest_page_bytes: u64) -> u32 {
    largest_page_bytes.div_ceil(BLOCK_BYTES as u64) as u32
}

/// The grid of a launch, none where it would be larger than a grid may be.
pub const fn grid(largest_page_bytes: u64, tensors: u32, pages: u32) -> Option<[u32; 3]> {
    let blocks = largest_page_bytes.div_ceil(BLOCK_BYTES as u64).saturating_mul(pages as u64);
    if blocks > i32::MAX as u64 || tensors > u16::MAX as u32 {
        return None;
    }
    Some([blocks as u32, tensors, 1])
}

/// Within a cache. Grid: [`grid`].
pub static PAGE_COPY: KernelSpec = entry("page_copy");
/// From a cache to a staging buffer. Grid: [`grid`].
pub static PAGE_COPY_OUT: KernelSpec = entry("page_copy_out");
/// From a staging buffer to a cache. Grid: [`grid`].
pub static PAGE_COPY_IN: KernelSpec = entry("page_copy_in");

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

    #[test]
    fn grids_cover_the_largest_page_and_stay_within_the_driver_s_limits() {
        assert_eq!(blocks_per_page(u64::from(BLOCK_BYTES) + 1), 2);
        assert_eq!(grid(32_768, 64, 7), Some([4 * 7, 64, 1]));
        assert_eq!(grid(0, 64, 7), Some([0, 64, 1]));
        assert_eq!(grid(1 << 40, 1, 1 << 20), None);
        assert_eq!(grid(16, 65_536, 1), None);
    }
}
