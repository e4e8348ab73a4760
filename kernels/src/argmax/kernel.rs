//! Device code of [`super::ARGMAX`].

use super::{SharedPlan, THREADS};
use crate::{
    abi::{Argmax, INVALID_TOKEN},
    entry::kernel,
    logit::{HAS_FINITE, HAS_NAN, flags, key, row_flags},
    ptx,
    reduce::warp_max_u64,
};

kernel! {
    /// See [`Argmax`].
    pub fn argmax(p: Argmax) {
        let row = u64::from(ptx::ctaid_x());
        let g_row = p.logits + row * u64::from(p.cols) * 4;
        let (mut best, mut seen) = (0u64, 0u32);
        let mut col = ptx::tid_x();
        while col < p.cols {
            let bits = ptx::ld_global_nc_b32(g_row + u64::from(col) * 4);
            seen |= flags(bits);
            let rank = u64::from(key(bits)) << 32 | u64::from(!col);
            if rank > best {
                best = rank;
            }
            // A row may end within one stride of 2^32.
            col = col.saturating_add(THREADS);
        }
        best = warp_max_u64(best);
        let any_nan = ptx::ballot(seen & HAS_NAN != 0) != 0;
        let any_finite = ptx::ballot(seen & HAS_FINITE != 0) != 0;
        let s_best = ptx::shared_base() + SharedPlan::BEST;
        let s_flags = ptx::shared_base() + SharedPlan::FLAGS;
        if ptx::lane() == 0 {
            ptx::st_shared_b64(s_best + 8 * ptx::warp(), best);
            ptx::st_shared_b32(s_flags + 4 * ptx::warp(), row_flags(any_nan, any_finite));
        }
        ptx::bar_sync();
        if ptx::tid_x() == 0 {
            let (mut best, mut seen) = (0u64, 0u32);
            for warp in 0..THREADS / 32 {
                let candidate = ptx::ld_shared_b64(s_best + 8 * warp);
                if candidate > best {
                    best = candidate;
                }
                seen |= ptx::ld_shared_b32(s_flags + 4 * warp);
            }
            let token = if seen == HAS_FINITE { !(best as u32) } else { INVALID_TOKEN };
            ptx::st_global_b32(p.out + row * 4, token);
        }
    }
}
