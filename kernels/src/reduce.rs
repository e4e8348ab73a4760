//! Reductions in a fixed order, so that a result never depends on timing.
//!
//! # Safety
//! Of each function: every lane of the warp (every thread of the block, for the block-wide ones) must call it together.

use crate::ptx;

/// The sum over a warp, the same bits in every lane: a butterfly adds the same pairs everywhere, and addition commutes.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn warp_sum(value: f32) -> f32 {
    let mut sum = value;
    let mut mask = 16;
    while mask > 0 {
        // SAFETY: the caller's promise that the warp is whole.
        sum += unsafe { ptx::shfl_bfly_f32(sum, mask) };
        mask >>= 1;
    }
    sum
}

/// The sum over a block of `WARPS` warps, the same bits in every thread. Uses `4 * WARPS` bytes of shared memory at `scratch`,
/// which may be used again after the next barrier.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn block_sum<const WARPS: u32>(value: f32, scratch: u32) -> f32 {
    // SAFETY: the caller's promise that the block is whole; each warp writes its own word, read after the barrier.
    unsafe {
        let sum = warp_sum(value);
        if ptx::lane() == 0 {
            ptx::st_shared_b32(scratch + 4 * ptx::warp(), sum.to_bits());
        }
        ptx::bar_sync();
        let mut total = 0.0;
        for warp in 0..WARPS {
            total += f32::from_bits(ptx::ld_shared_b32(scratch + 4 * warp));
        }
        total
    }
}

/// The largest of a block of `WARPS` warps, in every thread. Shared memory as of [`block_sum`].
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn block_max<const WARPS: u32>(value: u32, scratch: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { block_fold::<WARPS>(value, scratch, |a, b| a.max(b)) }
}

/// As [`block_max`], of numbers: NaNs among others don't count.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn block_max_f32<const WARPS: u32>(value: f32, scratch: u32) -> f32 {
    let max = |a: u32, b: u32| ptx::max(f32::from_bits(a), f32::from_bits(b)).to_bits();
    // SAFETY: the caller's promise.
    f32::from_bits(unsafe { block_fold::<WARPS>(value.to_bits(), scratch, max) })
}

/// Words of a block of `WARPS` warps under an operation that takes them in any order and as often as may be.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn block_fold<const WARPS: u32>(value: u32, scratch: u32, fold: impl Fn(u32, u32) -> u32) -> u32 {
    // SAFETY: the caller's promise that the block is whole; each warp writes its own word, read after the barrier.
    unsafe {
        let mut all = value;
        let mut mask = 16;
        while mask > 0 {
            all = fold(all, ptx::shfl_bfly(all, mask));
            mask >>= 1;
        }
        if ptx::lane() == 0 {
            ptx::st_shared_b32(scratch + 4 * ptx::warp(), all);
        }
        ptx::bar_sync();
        for warp in 0..WARPS {
            all = fold(all, ptx::ld_shared_b32(scratch + 4 * warp));
        }
        all
    }
}

/// [`ptx::shfl_bfly`] of a `u64`.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn shfl_bfly_u64(value: u64, mask: u32) -> u64 {
    // SAFETY: the caller's promise that the warp is whole.
    let (lo, hi) =
        unsafe { (ptx::shfl_bfly(value as u32, mask), ptx::shfl_bfly((value >> 32) as u32, mask)) };
    u64::from(hi) << 32 | u64::from(lo)
}

/// The larger of every lane's value, in every lane.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn warp_max_u64(value: u64) -> u64 {
    let mut max = value;
    let mut mask = 16;
    while mask > 0 {
        // SAFETY: the caller's promise that the warp is whole.
        let other = unsafe { shfl_bfly_u64(max, mask) };
        if other > max {
            max = other;
        }
        mask >>= 1;
    }
    max
}

/// The sum over a warp, in every lane.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn warp_sum_u64(value: u64) -> u64 {
    let mut sum = value;
    let mut mask = 16;
    while mask > 0 {
        // SAFETY: the caller's promise that the warp is whole.
        sum += unsafe { shfl_bfly_u64(sum, mask) };
        mask >>= 1;
    }
    sum
}

/// The sum of the values of this lane and those below it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn warp_scan_u64(value: u64) -> u64 {
    let mut sum = value;
    let mut distance = 1;
    while distance < 32 {
        // SAFETY: the caller's promise that the warp is whole.
        let (lo, hi) =
            unsafe { (ptx::shfl_up(sum as u32, distance), ptx::shfl_up((sum >> 32) as u32, distance)) };
        if ptx::lane() >= distance {
            sum += u64::from(hi) << 32 | u64::from(lo);
        }
        distance <<= 1;
    }
    sum
}
