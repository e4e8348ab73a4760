//! Eight bf16 at a time: the 16 bytes of one vector access.

use crate::ptx;

/// Eight bf16 to f32, exact.
#[inline(always)]
pub(crate) fn unpack8(v: [u32; 4]) -> [f32; 8] {
    [
        ptx::bf16_lo(v[0]),
        ptx::bf16_hi(v[0]),
        ptx::bf16_lo(v[1]),
        ptx::bf16_hi(v[1]),
        ptx::bf16_lo(v[2]),
        ptx::bf16_hi(v[2]),
        ptx::bf16_lo(v[3]),
        ptx::bf16_hi(v[3]),
    ]
}

/// Eight elements of `x + residual`, or of `x` where `residual` is 0, at byte offset `offset`.
///
/// # Safety
/// `offset` must lie in both.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn load_sum8(x: u64, residual: u64, offset: u64) -> [f32; 8] {
    // SAFETY: the caller's promise.
    let mut sum = unpack8(unsafe { ptx::ld_global_v4_b32(x + offset) });
    if residual != 0 {
        // SAFETY: the caller's promise.
        let residual = unpack8(unsafe { ptx::ld_global_v4_b32(residual + offset) });
        for i in 0..8 {
            sum[i] += residual[i];
        }
    }
    sum
}

/// Eight f32 from consecutive addresses that no launch writes.
///
/// # Safety
/// 32 bytes at `address` must lie in memory that this launch only reads.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn load_f32x8(address: u64) -> [f32; 8] {
    // SAFETY: the caller's promise.
    let (lo, hi) = unsafe { (ptx::ld_global_nc_v4_b32(address), ptx::ld_global_nc_v4_b32(address + 16)) };
    [
        f32::from_bits(lo[0]),
        f32::from_bits(lo[1]),
        f32::from_bits(lo[2]),
        f32::from_bits(lo[3]),
        f32::from_bits(hi[0]),
        f32::from_bits(hi[1]),
        f32::from_bits(hi[2]),
        f32::from_bits(hi[3]),
    ]
}

/// Eight f32 to bf16, rounded to nearest even.
#[inline(always)]
pub(crate) fn pack8(v: [f32; 8]) -> [u32; 4] {
    [
        ptx::pack_bf16(v[0], v[1]),
        ptx::pack_bf16(v[2], v[3]),
        ptx::pack_bf16(v[4], v[5]),
        ptx::pack_bf16(v[6], v[7]),
    ]
}
