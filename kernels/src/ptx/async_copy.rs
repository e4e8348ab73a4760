//! `cp.async`: global to shared memory, beside the thread that issues it (sm_80).
//!
//! # Safety
//! Both addresses aligned to 16 bytes; the destination must not be read, nor written otherwise, until the copy has been waited
//! for by the thread that issued it and a barrier has told the others.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;
#[cfg(not(target_arch = "nvptx64"))]
use tilewright_simt as simt;

use super::intrinsic;

intrinsic! {
    /// `cp.async.cg.shared.global [shared], [global], 16, source_bytes`: copies `source_bytes` (0 to 16) and fills the rest of
    /// the 16 with zeros. With 0 the global address is not read, but must be a valid pointer.
    pub fn cp_async_16(shared: u32, global: u64, source_bytes: u32) {
        asm!("cp.async.cg.shared.global [{}], [{}], 16, {};", in(reg32) shared, in(reg64) global, in(reg32) source_bytes, options(nostack))
    } else {
        simt::intrinsic::cp_async_16(shared, global, source_bytes)
    }
}

intrinsic! {
    /// `cp.async.cg.shared.global.L2::cache_hint`, as [`cp_async_16`]: of what the L2 holds, the lines that it reads are first to go.
    pub fn cp_async_16_evict_first(shared: u32, global: u64, source_bytes: u32) {
        asm!("{{ .reg .b64 policy; createpolicy.fractional.L2::evict_first.b64 policy, 1.0; \
              cp.async.cg.shared.global.L2::cache_hint [{}], [{}], 16, {}, policy; }}",
            in(reg32) shared, in(reg64) global, in(reg32) source_bytes, options(nostack))
    } else {
        simt::intrinsic::cp_async_16(shared, global, source_bytes)
    }
}

intrinsic! {
    /// `cp.async.commit_group`: closes the group of this thread's copies issued since the last one.
    pub fn cp_async_commit() {
        asm!("cp.async.commit_group;", options(nostack))
    } else {
        simt::intrinsic::cp_async_commit()
    }
}

intrinsic! {
    /// `cp.async.wait_group N`: until at most the `N` newest groups of this thread are in flight.
    pub fn cp_async_wait<const N: u32>() {
        asm!("cp.async.wait_group {};", const N, options(nostack))
    } else {
        simt::intrinsic::cp_async_wait(N)
    }
}
