//! Device code of [`super::ARGMAX`].

use super::{SharedPlan, THREADS};
use crate::{
    abi::{Argmax, INVALID_TOKEN},
    entry::kernel,
    logit::{HAS_FINITE, HAS_NAN, flags, key, row_flags},
    ptx,
    reduce::warp_max_u64,
};

/// The best rank of some logits, and the flags of all of them.
#[derive(Clone, Copy)]
struct Found {
    best: u64,
    seen: u32,
}

impl Found {
    /// Of the whole warp's lanes; in every lane.
    ///
    /// # Safety
    /// The warp is whole.
    #[inline(always)]
    unsafe fn of_warp(self) -> Found {
        // SAFETY: the caller's promise.
        unsafe {
            let best = warp_max_u64(self.best);
            let any_nan = ptx::ballot(self.seen & HAS_NAN != 0) != 0;
            let any_finite = ptx::ballot(self.seen & HAS_FINITE != 0) != 0;
            Found { best, seen: row_flags(any_nan, any_finite) }
        }
    }

    #[inline(always)]
    fn token(self) -> u32 {
        if self.seen == HAS_FINITE { !(self.best as u32) } else { INVALID_TOKEN }
    }
}

/// The block's part of its row; in the first warp.
///
/// # Safety
/// As the entry; the whole block calls it.
#[inline(always)]
unsafe fn scan(p: &Argmax, g_row: u64) -> Found {
    let (mut best, mut seen) = (0u64, 0u32);
    let stride = THREADS * ptx::nctaid_y();
    // SAFETY: logits of the row; a word a warp, written before the barrier and read after it.
    unsafe {
        let mut col = ptx::ctaid_y() * THREADS + ptx::tid_x();
        while col < p.cols {
            let bits = ptx::ld_global_nc_b32(g_row + u64::from(col) * 4);
            seen |= flags(bits);
            let rank = u64::from(key(bits)) << 32 | u64::from(!col);
            if rank > best {
                best = rank;
            }
            // A row may end within one stride of 2^32.
            col = col.saturating_add(stride);
        }
        let found = Found { best, seen }.of_warp();
        let s_best = ptx::shared_base() + SharedPlan::BEST;
        let s_flags = ptx::shared_base() + SharedPlan::FLAGS;
        if ptx::lane() == 0 {
            ptx::st_shared_b64(s_best + 8 * ptx::warp(), found.best);
            ptx::st_shared_b32(s_flags + 4 * ptx::warp(), found.seen);
        }
        ptx::bar_sync();
        let mut found = Found { best: 0, seen: 0 };
        if ptx::warp() == 0 {
            if ptx::lane() < THREADS / 32 {
                found.best = ptx::ld_shared_b64(s_best + 8 * ptx::lane());
                found.seen = ptx::ld_shared_b32(s_flags + 4 * ptx::lane());
            }
            found = found.of_warp();
        }
        found
    }
}

/// Leaves a block's part for the last block of its row. Whether this is the one, told to all; it leaves the counter as it was.
///
/// # Safety
/// As the entry; the whole block calls it, with what [`scan`] found.
#[inline(always)]
unsafe fn is_last(g_partials: u64, g_counter: u64, found: Found) -> bool {
    let s_is_last = ptx::shared_base() + SharedPlan::IS_LAST;
    // SAFETY: the block's own part of the scratch. The addition releases what its thread wrote; whoever comes last has acquired what
    // all released, and the barrier hands it to the block.
    unsafe {
        if ptx::tid_x() == 0 {
            let words = [found.best as u32, (found.best >> 32) as u32, found.seen, 0];
            ptx::st_global_v4_b32(g_partials + u64::from(ptx::ctaid_y()) * 16, words);
            let last = ptx::atom_add_acq_rel_gpu_u32(g_counter, 1) == ptx::nctaid_y() - 1;
            if last {
                ptx::st_global_b32(g_counter, 0);
            }
            ptx::st_shared_b32(s_is_last, last as u32);
        }
        ptx::bar_sync();
        ptx::ld_shared_b32(s_is_last) != 0
    }
}

kernel! {
    /// See [`Argmax`].
    pub fn argmax(p: Argmax) {
        ptx::start_after_previous();
        let row = u64::from(ptx::ctaid_x());
        let mut found = scan(&p, p.logits + row * u64::from(p.cols) * 4);
        let parts = ptx::nctaid_y();
        if parts > 1 {
            let g_partials = p.partials + row * u64::from(parts) * 16;
            if !is_last(g_partials, p.counters + row * 4, found) {
                return;
            }
            if ptx::warp() == 0 {
                found = Found { best: 0, seen: 0 };
                if ptx::lane() < parts {
                    // Not by way of the read-only cache: written in this launch.
                    let words = ptx::ld_global_v4_b32(g_partials + u64::from(ptx::lane()) * 16);
                    found.best = u64::from(words[1]) << 32 | u64::from(words[0]);
                    found.seen = words[2];
                }
                found = found.of_warp();
            }
        }
        if ptx::tid_x() == 0 {
            ptx::st_global_b32(p.out + row * 4, found.token());
        }
    }
}
