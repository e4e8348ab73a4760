//! Rows that the product norms itself: a launch and a trip through memory less than a norm by itself, of few rows.
//!
//! Each block norms the rows for itself: it needs all of their elements, which come from the L2, for the sums of squares, and keeps its own part of `k`,
//! lines of 128 bytes of each row after the other, swizzled as the copy engine would. A row has the bits that [`crate::rms_norm`] gives it.

use super::{CONSUMERS_BARRIER, LINE_BYTES, MOST_NORMED_COLS, MOST_NORMED_ROWS, Tile, item::Item, layout};
use crate::{
    abi::GemmFew,
    ptx,
    rms_norm::{THREADS, row},
    vector::{load_f32x8, pack8, unpack8},
};

const ROWS: usize = MOST_NORMED_ROWS as usize;
/// Eights of columns a thread.
const EIGHTS: usize = (MOST_NORMED_COLS / (THREADS * 8)) as usize;
/// Eights of columns of a stage.
const STAGE_EIGHTS: u32 = layout::TILE_K / 8;

/// Bytes of a row of the item's part of `k`.
#[inline(always)]
pub(super) fn row_bytes(item: Item) -> u32 {
    (item.end - item.first) * layout::TILE_K * 2
}

/// The norm's weights of the calling thread's columns, zeros of those that aren't the item's.
///
/// # Safety
/// Consumers call it, before or after the wait for the launch before: no launch writes them.
#[inline(always)]
pub(super) unsafe fn weights(p: &GemmFew, item: Item) -> [[f32; 8]; EIGHTS] {
    let mut weights = [[0.0; 8]; EIGHTS];
    for i in 0..EIGHTS {
        let eight = ptx::tid_x() + i as u32 * THREADS;
        if eight * 8 < p.k && eight / STAGE_EIGHTS >= item.first && eight / STAGE_EIGHTS < item.end {
            // SAFETY: inside of `[k]`.
            weights[i] = unsafe { load_f32x8(p.norm_weight + u64::from(eight) * 32) };
        }
    }
    weights
}

/// Norms the rows of `x`.
///
/// # Safety
/// All consumers, [`THREADS`] of them, call it after the wait for the launch before.
#[inline(always)]
pub(super) unsafe fn norm(p: &GemmFew, plan: Tile, item: Item, weights: &[[f32; 8]; EIGHTS]) {
    let (thread, base) = (ptx::tid_x(), ptx::shared_base());
    let s_sums = base + plan.norm_sums();
    let mut x = [[[0u32; 4]; EIGHTS]; ROWS];
    // SAFETY: inside of `[m, k]`; sums of a row are read after the first barrier, rows after the second.
    unsafe {
        // All rows are on their way before the first is waited for.
        for r in 0..ROWS {
            for i in 0..EIGHTS {
                let col = (thread + i as u32 * THREADS) * 8;
                if (r as u32) < p.m && col < p.k {
                    let at = u64::from(r as u32) * u64::from(p.k) + u64::from(col);
                    x[r][i] = ptx::ld_global_v4_b32(p.x + at * 2);
                }
            }
        }
        for r in 0..ROWS {
            if (r as u32) < p.m {
                let mut squares = 0.0;
                // Columns past the end are zeros, which change no sum.
                for i in 0..EIGHTS {
                    squares = row::add_squares(squares, unpack8(x[r][i]));
                }
                row::leave_squares(squares, s_sums + r as u32 * 4 * row::WARPS);
            }
        }
        ptx::bar_sync_named(CONSUMERS_BARRIER, THREADS);
        for r in 0..ROWS {
            if (r as u32) < p.m {
                let inverse = row::inverse(s_sums + r as u32 * 4 * row::WARPS, p.k, p.eps);
                let s_row = base + plan.normed_rows() + r as u32 * row_bytes(item);
                for i in 0..EIGHTS {
                    let eight = thread + i as u32 * THREADS;
                    if eight / STAGE_EIGHTS >= item.first && eight / STAGE_EIGHTS < item.end {
                        let eight = eight - item.first * STAGE_EIGHTS;
                        let values = pack8(row::normed(unpack8(x[r][i]), inverse, weights[i]));
                        let place = eight / 8 * LINE_BYTES + ((eight % 8) ^ r as u32) * 16;
                        ptx::st_shared_v4_b32(s_row + place, values);
                    }
                }
            }
        }
        ptx::bar_sync_named(CONSUMERS_BARRIER, THREADS);
    }
}
