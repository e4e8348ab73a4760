//! The 16-bit floats that tensor cores multiply.

use crate::ptx;

/// One of them.
pub(crate) trait Element {
    /// Two f32, rounded to nearest even, `lo` in the low half.
    fn pack(lo: f32, hi: f32) -> u32;
    /// The low and the high one of a pair, exact.
    fn unpack(pair: u32) -> [f32; 2];
    /// `m16n8k16`: `d = a * b + c`.
    ///
    /// # Safety
    /// The whole warp calls it.
    unsafe fn mma(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4];
}

pub(crate) struct Bf16;
pub(crate) struct F16;

macro_rules! element {
    ($name:ident, $pack:ident, $mma:ident, |$pair:ident| $unpack:expr) => {
        impl Element for $name {
            #[inline(always)]
            fn pack(lo: f32, hi: f32) -> u32 {
                ptx::$pack(lo, hi)
            }
            #[inline(always)]
            fn unpack($pair: u32) -> [f32; 2] {
                $unpack
            }
            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            unsafe fn mma(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
                // SAFETY: the caller's promise.
                unsafe { ptx::$mma(a, b, c) }
            }
        }
    };
}
element!(Bf16, pack_bf16, mma_m16n8k16_bf16, |pair| [ptx::bf16_lo(pair), ptx::bf16_hi(pair)]);
element!(F16, pack_f16, mma_m16n8k16_f16, |pair| [
    ptx::f16_to_f32(pair as u16),
    ptx::f16_to_f32((pair >> 16) as u16)
]);
