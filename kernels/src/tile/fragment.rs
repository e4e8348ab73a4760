//! Operands of `mma.m16n8k16` from swizzled tiles. `s_tile` is a tile's address in shared memory, rows of `CHUNKS` chunks.
//!
//! # Safety
//! Of each function: the whole warp calls it with the same arguments; the fragment lies in the tile, whose contents are there. `row` is a multiple of 8, `chunk` even.

use super::swizzle_own;
use crate::ptx;

/// `a` (16 x 16): rows `row..row + 16`, columns `8 * chunk..8 * chunk + 16`.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn load_a<const CHUNKS: u32>(s_tile: u32, row: u32, chunk: u32) -> [u32; 4] {
    let lane = ptx::lane();
    // SAFETY: the caller's promise.
    unsafe { ptx::ldmatrix_x4(s_tile + swizzle_own::<CHUNKS>(row, chunk, lane & 15, lane >> 4)) }
}

/// Two `b` (16 x 8 each) from a tile whose rows are the product's columns: rows `row..row + 8` and the next 8, columns
/// `8 * chunk..8 * chunk + 16`.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn load_b_pair<const CHUNKS: u32>(s_tile: u32, row: u32, chunk: u32) -> [[u32; 2]; 2] {
    let lane = ptx::lane();
    let own_row = (lane & 7) + (lane >> 4) * 8;
    // SAFETY: the caller's promise.
    let d = unsafe { ptx::ldmatrix_x4(s_tile + swizzle_own::<CHUNKS>(row, chunk, own_row, lane >> 3 & 1)) };
    [[d[0], d[1]], [d[2], d[3]]]
}

/// Two `b` (16 x 8 each) from a tile whose rows are the product's inner dimension: rows `row..row + 16`, columns
/// `8 * chunk..8 * chunk + 8` and the next 8.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn load_b_pair_trans<const CHUNKS: u32>(
    s_tile: u32,
    row: u32,
    chunk: u32,
) -> [[u32; 2]; 2] {
    let lane = ptx::lane();
    // SAFETY: the caller's promise.
    let d =
        unsafe { ptx::ldmatrix_x4_trans(s_tile + swizzle_own::<CHUNKS>(row, chunk, lane & 15, lane >> 4)) };
    [[d[0], d[1]], [d[2], d[3]]]
}
