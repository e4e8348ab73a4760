//! Radix selection: the rank at which a running total, taken from the first-ranked token down, reaches a target.

use super::{
    INDEX_BITS, RADIX_BITS, SharedPlan, THREADS,
    kernel::{Row, Token},
};
use crate::{ptx, reduce::warp_scan_u64};

const BINS: u32 = 1 << RADIX_BITS;
/// Bins a thread clears and scans.
const BINS_A_THREAD: u32 = BINS / THREADS;
/// Bits of a rank: a logit's key and the index.
const RANK_BITS: u32 = 32 + INDEX_BITS;

const _: () = assert!(RANK_BITS.is_multiple_of(RADIX_BITS) && BINS.is_multiple_of(THREADS));

/// The bin in which the running total reaches the target.
struct Found {
    bin: u64,
    /// The total of the bins above it.
    above: u64,
    /// Its own.
    own: u64,
}

/// Adds each token of rank `lowest` or more whose rank starts with `prefix` to the bin of its next digit.
///
/// # Safety
/// The whole block calls it; nobody uses the histogram.
#[inline(always)]
unsafe fn count<const MASS: bool>(row: &Row, lowest: u64, prefix: u64, shift: u32) {
    let s_histogram = ptx::shared_base() + SharedPlan::HISTOGRAM;
    // SAFETY: bins and columns are bounded; atomics, between barriers.
    unsafe {
        for i in 0..BINS_A_THREAD {
            ptx::st_shared_b64(s_histogram + (ptx::tid_x() + i * THREADS) * 8, 0);
        }
        ptx::bar_sync();
        let mut col = ptx::tid_x();
        while col < row.cols {
            let token: Token = row.token(col);
            if token.rank >= lowest && token.rank >> (shift + RADIX_BITS) == prefix {
                let bin = (token.rank >> shift) as u32 & (BINS - 1);
                let amount = if MASS { token.mass() } else { 1 };
                // Most tokens of a peaked distribution have no mass; their atomics would be for nothing.
                if amount > 0 {
                    ptx::atom_add_shared_u64(s_histogram + bin * 8, amount);
                }
            }
            col += THREADS;
        }
        ptx::bar_sync();
    }
}

/// Scans the histogram from the highest bin down, a thread for a few bins side by side.
///
/// # Safety
/// The whole block calls it, after [`count`]. The total must reach `target`, which must exceed `above`.
#[inline(always)]
unsafe fn find(above: u64, target: u64) -> Found {
    let base = ptx::shared_base();
    let (s_warps, s_found) = (base + SharedPlan::WARPS, base + SharedPlan::FOUND);
    let high = BINS - 1 - BINS_A_THREAD * ptx::tid_x();
    // SAFETY: bins are bounded. Warp totals and the result are written by their owners before the barrier that precedes
    // their reading; the last barrier frees everything for the next pass.
    unsafe {
        let mut own = [0u64; BINS_A_THREAD as usize];
        let mut sum = 0;
        for i in 0..BINS_A_THREAD {
            own[i as usize] = ptx::ld_shared_b64(base + SharedPlan::HISTOGRAM + (high - i) * 8);
            sum += own[i as usize];
        }
        let running = warp_scan_u64(sum);
        if ptx::lane() == 31 {
            ptx::st_shared_b64(s_warps + 8 * ptx::warp(), running);
        }
        ptx::bar_sync();
        let mut before = above + running - sum;
        for warp in 0..ptx::warp() {
            before += ptx::ld_shared_b64(s_warps + 8 * warp);
        }
        for i in 0..BINS_A_THREAD {
            let own = own[i as usize];
            // True of exactly one bin of one thread.
            if before < target && target <= before + own {
                ptx::st_shared_b64(s_found, u64::from(high - i));
                ptx::st_shared_b64(s_found + 8, before);
                ptx::st_shared_b64(s_found + 16, own);
            }
            before += own;
        }
        ptx::bar_sync();
        let found = Found {
            bin: ptx::ld_shared_b64(s_found),
            above: ptx::ld_shared_b64(s_found + 8),
            own: ptx::ld_shared_b64(s_found + 16),
        };
        ptx::bar_sync();
        found
    }
}

/// Of the tokens of rank `lowest` or more, the highest rank such that it and those above it number at least `target`
/// (`MASS`: have at least `target` of mass). Ranks between two tokens' serve as well.
///
/// # Safety
/// The whole block calls it. `target` must be above 0 and not above the total.
#[inline(always)]
pub(super) unsafe fn select<const MASS: bool>(row: &Row, lowest: u64, target: u64) -> u64 {
    let (mut prefix, mut above, mut shift) = (0, 0, RANK_BITS);
    while shift > 0 {
        shift -= RADIX_BITS;
        // SAFETY: the whole block is here; the prefix's tokens and those above them reach the target.
        let found = unsafe {
            count::<MASS>(row, lowest, prefix, shift);
            find(above, target)
        };
        prefix = prefix << RADIX_BITS | found.bin;
        above = found.above;
        if above + found.own == target {
            break;
        }
    }
    prefix << shift
}
