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
