//! Device code of [`super::CAUSAL_SOFTMAX`].

use core::f32::consts::LOG2_E;

use super::{SharedPlan, THREADS};
use crate::{
    abi::CausalSoftmax,
    entry::kernel,
    ptx,
    reduce::{block_max_f32, block_sum},
    vector::{pack8, unpack8},
};

/// Eight scores from column `col` on; -inf, which adds nothing and is never the largest, in place of those past the first `seen`.
///
/// # Safety
/// The row at `g_row` has more than `col + 7` columns.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn seen8(g_row: u64, col: u32, seen: u32) -> [f32; 8] {
    // SAFETY: the caller's promise.
    let mut scores = unpack8(unsafe { ptx::ld_global_v4_b32(g_row + u64::from(col) * 2) });
    if col + 8 > seen {
        for i in 0..8 {
            if col + i as u32 >= seen {
                scores[i] = f32::NEG_INFINITY;
            }
        }
    }
    scores
}

kernel! {
    /// See [`CausalSoftmax`].
    pub fn causal_softmax(p: CausalSoftmax) {
        // Never 0; a division that can fail has no place in a kernel.
        let seen = (p.first + ptx::ctaid_x()) % p.cols.max(1) + 1;
        let g_row = p.x + u64::from(ptx::ctaid_x()) * u64::from(p.cols) * 2;
        let first = ptx::tid_x() * 8;
        let base = ptx::shared_base();

        let mut largest = f32::NEG_INFINITY;
        let mut col = first;
        while col < seen {
            for score in seen8(g_row, col, seen) {
                largest = ptx::max(largest, score);
            }
            col += THREADS * 8;
        }
        let largest = block_max_f32::<{ THREADS / 32 }>(largest, base + SharedPlan::LARGEST);

        // Subtracted before it is scaled: the largest has the weight of e^0 exactly, however large it is.
        let exponent = p.scale * LOG2_E;
        let mut sum = 0.0;
        let mut col = first;
        while col < seen {
            for score in seen8(g_row, col, seen) {
                sum += ptx::ex2((score - largest) * exponent);
            }
            col += THREADS * 8;
        }
        let inverse = 1.0 / block_sum::<{ THREADS / 32 }>(sum, base + SharedPlan::SUMS);

        // A thread writes what it alone has read.
        let mut col = first;
        while col < p.cols {
            let mut weights = [0.0; 8];
            if col < seen {
                let scores = seen8(g_row, col, seen);
                for i in 0..8 {
                    // A row of NaNs has them where it sees alone.
                    if col + (i as u32) < seen {
                        weights[i] = ptx::ex2((scores[i] - largest) * exponent) * inverse;
                    }
                }
            }
            ptx::st_global_v4_b32(g_row + u64::from(col) * 2, pack8(weights));
            col += THREADS * 8;
        }
    }
}
