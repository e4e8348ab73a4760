//! Barriers.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;
#[cfg(not(target_arch = "nvptx64"))]
use tilewright_simt as simt;

use super::intrinsic;

intrinsic! {
    /// `bar.sync 0`: every thread of the block arrives and waits; orders global and shared memory among them.
    ///
    /// # Safety
    /// Every thread of the block must reach it.
    pub fn bar_sync() {
        // The compiler's own intrinsic is convergent: unlike inline assembly, it may not be duplicated into divergent branches.
        core::arch::nvptx::_syncthreads()
    } else {
        simt::intrinsic::bar_sync()
    }
}

intrinsic! {
    /// `bar.sync id, threads`: as [`bar_sync`] among `threads` threads (whole warps) on barrier `id` (1 to 15).
    ///
    /// # Safety
    /// Exactly the warps meant must reach it.
    pub fn bar_sync_named(id: u32, threads: u32) {
        asm!("bar.sync {}, {};", in(reg32) id, in(reg32) threads, options(nostack))
    } else {
        simt::intrinsic::bar_sync_named(id, threads)
    }
}

intrinsic! {
    /// `bar.warp.sync 0xffffffff`: every lane of the warp; orders memory among them.
    ///
    /// # Safety
    /// Every lane of the warp must reach it.
    pub fn bar_warp_sync() {
        asm!("bar.warp.sync 0xffffffff;", options(nostack))
    } else {
        simt::intrinsic::bar_warp_sync()
    }
}

intrinsic! {
    /// `bar.arrive id, threads`: arrives at barrier `id` without waiting; those that wait do so with [`bar_sync_named`] of the same
    /// `threads`, which counts both.
    ///
    /// # Safety
    /// Exactly the warps meant must reach it.
    pub fn bar_arrive_named(id: u32, threads: u32) {
        asm!("bar.arrive {}, {};", in(reg32) id, in(reg32) threads, options(nostack))
    } else {
        simt::intrinsic::bar_arrive_named(id, threads)
    }
}

intrinsic! {
    /// `fence.acq_rel.gpu`: orders this thread's accesses before it and after it for every thread of the device, in the way of an
    /// atomic that follows or precedes it.
    pub fn fence_acq_rel_gpu() {
        asm!("fence.acq_rel.gpu;", options(nostack))
    } else {
        simt::intrinsic::fence_acq_rel_gpu()
    }
}

/// [`start_next`], then [`wait_for_previous`].
///
/// # Safety
/// As of [`wait_for_previous`].
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub unsafe fn start_after_previous() {
    start_next();
    // SAFETY: the caller's promise.
    unsafe { wait_for_previous() };
}

/// Lets the next launch start (`griddepcontrol.launch_dependents`), once all blocks have said so or left, for kernels of every target whose
/// launches may start early on sm_90a; elsewhere launches never do.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn start_next() {
    // SAFETY: it takes no operands.
    #[cfg(any(target_feature = "sm_90a", not(target_arch = "nvptx64")))]
    unsafe {
        super::grid_launch_dependents();
    }
}

/// Waits for the launch before (`griddepcontrol.wait`); where launches never start early there is nothing to wait for.
///
/// What earlier launches write or read may be touched after it alone; a launch that starts early waits, so that what is before this one is
/// done once its own wait is over.
///
/// # Safety
/// Every thread that touches such memory executes it first.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub unsafe fn wait_for_previous() {
    // SAFETY: it takes no operands; the caller's promise.
    #[cfg(any(target_feature = "sm_90a", not(target_arch = "nvptx64")))]
    unsafe {
        super::grid_wait();
    }
}

/// `setmaxnreg.inc.sync.aligned.u32` where `INCREASE`, `.dec` otherwise (sm_90a): the warpgroup's registers a thread from here on.
///
/// # Safety
/// All four warps execute it, in the one branch of their role; the block's total stays within the multiprocessor's.
#[cfg(any(target_feature = "sm_90a", not(target_arch = "nvptx64")))]
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub unsafe fn setmaxnreg<const REGISTERS: u32, const INCREASE: bool>() {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promises.
    unsafe {
        if INCREASE {
            asm!("setmaxnreg.inc.sync.aligned.u32 {};", const REGISTERS, options(nostack));
        } else {
            asm!("setmaxnreg.dec.sync.aligned.u32 {};", const REGISTERS, options(nostack));
        }
    }
    #[cfg(not(target_arch = "nvptx64"))]
    simt::intrinsic::setmaxnreg(REGISTERS, INCREASE);
}
