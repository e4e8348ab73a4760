//! Barriers in shared memory: threads and asynchronous copies arrive, threads wait (sm_80; transaction counts sm_90).
//!
//! A barrier counts the arrivals that its current phase still lacks, and the bytes that copies announced for it still have to
//! bring. When both reach nothing the phase completes and the next begins. Waiting names a phase by its parity: the first is 0.
//!
//! # Safety
//! `bar` is the shared address, a multiple of 8, of 8 bytes that [`mbarrier_init`] has made a barrier and that nothing else touches.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;
#[cfg(not(target_arch = "nvptx64"))]
use tilewright_simt as simt;

use super::intrinsic;

intrinsic! {
    /// `mbarrier.init.shared::cta.b64 [bar], count`: each phase needs `count` arrivals.
    pub fn mbarrier_init(bar: u32, count: u32) {
        asm!("mbarrier.init.shared::cta.b64 [{}], {};", in(reg32) bar, in(reg32) count, options(nostack))
    } else {
        simt::intrinsic::mbarrier_init(bar, count)
    }
}

intrinsic! {
    /// `fence.mbarrier_init.release.cluster`: makes this thread's `mbarrier.init` known to the copy engine. A block barrier tells
    /// the other threads.
    pub fn fence_mbarrier_init() {
        asm!("fence.mbarrier_init.release.cluster;", options(nostack))
    } else {
        simt::intrinsic::fence_mbarrier_init()
    }
}

intrinsic! {
    /// `mbarrier.arrive.shared::cta.b64`: one arrival; releases what this thread did before.
    pub fn mbarrier_arrive(bar: u32) {
        asm!("{{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [{}]; }}", in(reg32) bar, options(nostack))
    } else {
        simt::intrinsic::mbarrier_arrive(bar)
    }
}

intrinsic! {
    /// `mbarrier.arrive.expect_tx.shared::cta.b64`: announces `bytes` that copies will bring in this phase, then one arrival.
    pub fn mbarrier_arrive_expect_tx(bar: u32, bytes: u32) {
        asm!("{{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [{}], {}; }}",
            in(reg32) bar, in(reg32) bytes, options(nostack))
    } else {
        simt::intrinsic::mbarrier_arrive_expect_tx(bar, bytes)
    }
}

intrinsic! {
    /// `mbarrier.try_wait.parity.shared::cta.b64`: whether the phase of that parity has completed; may wait a while first. What
    /// was released by its arrivals, and what its copies wrote, is visible once it has.
    pub fn mbarrier_try_wait_parity(bar: u32, parity: u32) -> bool {
        let done: u32;
        asm!("{{ .reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [{1}], {2}; selp.u32 {0}, 1, 0, done; }}",
            out(reg32) done, in(reg32) bar, in(reg32) parity, options(nostack));
        done != 0
    } else {
        simt::intrinsic::mbarrier_try_wait_parity(bar, parity)
    }
}

/// Waits until the phase of that parity has completed.
///
/// # Safety
/// As [`mbarrier_try_wait_parity`]; the phase completes in the end.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub unsafe fn mbarrier_wait(bar: u32, parity: u32) {
    // SAFETY: the caller's promise.
    while !unsafe { mbarrier_try_wait_parity(bar, parity) } {}
}
