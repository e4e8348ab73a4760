//! What becomes of a row, whoever norms it: the same operations in the same order, so the same bits. A thread has eight columns of every
//! `8 * THREADS`, in ascending order; its warp adds over its lanes, and the block its warps in ascending order.

use super::THREADS;
use crate::{ptx, reduce::warp_sum};

/// Warps whose sums are added.
pub(crate) const WARPS: u32 = THREADS / 32;

/// The thread's sum of squares with eight elements more.
#[inline(always)]
pub(crate) fn add_squares(mut squares: f32, h: [f32; 8]) -> f32 {
    for value in h {
        squares = ptx::fma(value, value, squares);
    }
    squares
}

/// Adds a warp's sums of squares and leaves them in its word of `[WARPS]` at `s_sums`.
///
/// # Safety
/// Whole warps, the first [`WARPS`] of the block, call it; the words are theirs.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn leave_squares(squares: f32, s_sums: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let sum = warp_sum(squares);
        if ptx::lane() == 0 {
            ptx::st_shared_b32(s_sums + 4 * ptx::warp(), sum.to_bits());
        }
    }
}

/// What a row of `cols` elements is multiplied by.
///
/// # Safety
/// After a barrier that has followed [`leave_squares`] of all warps.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn inverse(s_sums: u32, cols: u32, eps: f32) -> f32 {
    let mut total = 0.0;
    for warp in 0..WARPS {
        // SAFETY: the caller's promise.
        total += f32::from_bits(unsafe { ptx::ld_shared_b32(s_sums + 4 * warp) });
    }
    ptx::rsqrt(total / cols as f32 + eps)
}

/// Eight elements, normed.
#[inline(always)]
pub(crate) fn normed(mut h: [f32; 8], inverse: f32, weight: [f32; 8]) -> [f32; 8] {
    for i in 0..8 {
        h[i] = h[i] * inverse * weight[i];
    }
    h
}
