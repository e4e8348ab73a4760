//! Warpgroup matrix multiply-accumulate, asynchronous: `D[64, N] += A[64, 16] * B[16, N]` (sm_90a).
//!
//! Executed by a warpgroup: four consecutive warps, the first a multiple of four. Register `4 * j + i` of lane `l` of warp `w`
//! is row `16 * w + l / 4 + 8 * (i / 2)`, column `8 * j + 2 * (l % 4) + i % 2`; A in registers lies as in `mma.m16n8k16`, 16 rows
//! a warp. B, and A where it is not in registers, is named by a [`descriptor`].
//!
//! # Safety
//! All four warps execute the same call. Between issue and the [`Wgmma::wait`] that covers it, nobody writes the shared memory it
//! reads, and its accumulators and A registers aren't touched; shared memory written by ordinary stores went through
//! [`super::fence_proxy_async`] and a barrier. [`wgmma_fence`] comes before the first `wgmma` that reads registers written since
//! the last one.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;
#[cfg(not(target_arch = "nvptx64"))]
use tilewright_simt as simt;

use super::intrinsic;

/// Bytes of a line of a 128-byte-swizzled tile; eight lines make an atom.
const ATOM_BYTES: u32 = 1024;

/// A matrix in shared memory, 128-byte swizzle: lines of 64 16-bit elements, in atoms of eight lines that follow each other.
///
/// Where the lines are the product's rows or columns ("K-major": each line runs along k), `shared` is the first line plus 32
/// bytes for each step of 16 along k, and `group_bytes` is not used. Where the lines run along the columns of B
/// (transposed), `shared` is the line of the first k, and `group_bytes` is how far the next 64 columns are.
#[inline(always)]
pub fn descriptor(shared: u32, group_bytes: u32) -> u64 {
    let address = u64::from((shared & 0x3ffff) >> 4);
    address | u64::from(group_bytes >> 4) << 16 | u64::from(ATOM_BYTES >> 4) << 32 | 1 << 62
}

/// The matrix `bytes` further on: its address is a descriptor's lowest bits, and an addition to all 64 would carry.
#[inline(always)]
pub fn along(descriptor: u64, bytes: u32) -> u64 {
    u64::from((descriptor as u32).wrapping_add(bytes >> 4)) | descriptor >> 32 << 32
}

intrinsic! {
    /// `wgmma.fence.sync.aligned`: orders earlier accesses to accumulator and A registers before the next `wgmma`.
    pub fn wgmma_fence() {
        asm!("wgmma.fence.sync.aligned;", options(nostack))
    } else {
        simt::intrinsic::wgmma_fence()
    }
}

intrinsic! {
    /// `wgmma.commit_group.sync.aligned`: closes the group of the warp's `wgmma` since the last one.
    pub fn wgmma_commit() {
        asm!("wgmma.commit_group.sync.aligned;", options(nostack))
    } else {
        simt::intrinsic::wgmma_commit()
    }
}

/// `wgmma.wait_group NEWEST` while the accumulators stay in flight: what older groups read may be written again.
///
/// # Safety
/// See the module.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub unsafe fn wgmma_wait_older<const NEWEST: u32>() {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promises, stated in the module.
    unsafe {
        asm!("wgmma.wait_group.sync.aligned {};", const NEWEST, options(nostack))
    }
    #[cfg(not(target_arch = "nvptx64"))]
    simt::intrinsic::wgmma_wait(NEWEST, &mut [] as &mut [f32])
}

/// Accumulators of an `m64` product, and the instructions on them.
pub trait Wgmma: Sized {
    /// Columns.
    const N: u32;

    /// `wgmma.mma_async` with A and B in shared memory, both K-major. Without `ACCUMULATE`, `D = A * B`.
    ///
    /// # Safety
    /// See the module.
    unsafe fn ss<const F16: bool, const ACCUMULATE: bool>(&mut self, a: u64, b: u64);

    /// `wgmma.mma_async` with A in registers and B in shared memory, K-major. Without `ACCUMULATE`, `D = A * B`.
    ///
    /// # Safety
    /// See the module.
    unsafe fn rs<const F16: bool, const ACCUMULATE: bool>(&mut self, a: &[u32; 4], b: u64);

    /// `wgmma.mma_async` with A in registers and B transposed (its lines run along the columns).
    ///
    /// # Safety
    /// See the module.
    unsafe fn rs_transposed<const F16: bool>(&mut self, a: &[u32; 4], b: u64);

    /// `wgmma.wait_group NEWEST`: until at most the `NEWEST` newest groups are in flight. The accumulators pass through, so that
    /// no use of them can be moved before the wait.
    ///
    /// # Safety
    /// See the module.
    unsafe fn wait<const NEWEST: u32>(&mut self);
}

#[cfg(not(target_arch = "nvptx64"))]
fn element<const F16: bool>() -> simt::intrinsic::WgmmaType {
    if F16 { simt::intrinsic::WgmmaType::F16 } else { simt::intrinsic::WgmmaType::Bf16 }
}

/// `$first` and `$rest` number the accumulators; `$a`, `$b`, ... the operands after them.
macro_rules! wgmma {
    ($registers:literal, $n:literal, $first:literal $($rest:literal)*, $o0:literal $o1:literal $o2:literal $o3:literal $o4:literal $o5:literal) => {
        impl Wgmma for [f32; $registers] {
            const N: u32 = $n;

            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            unsafe fn ss<const F16: bool, const ACCUMULATE: bool>(&mut self, a: u64, b: u64) {
                #[cfg(target_arch = "nvptx64")]
                {
                    macro_rules! issue {
                        ($ty:literal) => {
                            asm!(concat!("{{ .reg .pred p; setp.ne.b32 p, {", $o2, "}, 0; wgmma.mma_async.sync.aligned.m64n", $n,
                                "k16.f32.", $ty, ".", $ty, " {{{", $first, "}", $(", {", $rest, "}",)* "}}, {", $o0, "}, {", $o1, "}, p, 1, 1, 0, 0; }}"),
                                inout(reg32) self[$first], $(inout(reg32) self[$rest],)*
                                in(reg64) a, in(reg64) b, const ACCUMULATE as i32, options(nostack))
                        };
                    }
                    // SAFETY: the caller's promises, stated in the module.
                    unsafe { if F16 { issue!("f16") } else { issue!("bf16") } }
                }
                #[cfg(not(target_arch = "nvptx64"))]
                simt::intrinsic::wgmma_ss(element::<F16>(), $n, self, a, b, ACCUMULATE, false, false)
            }

            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            unsafe fn rs<const F16: bool, const ACCUMULATE: bool>(&mut self, a: &[u32; 4], b: u64) {
                #[cfg(target_arch = "nvptx64")]
                {
                    macro_rules! issue {
                        ($ty:literal) => {
                            asm!(concat!("{{ .reg .pred p; setp.ne.b32 p, {", $o5, "}, 0; wgmma.mma_async.sync.aligned.m64n", $n,
                                "k16.f32.", $ty, ".", $ty, " {{{", $first, "}", $(", {", $rest, "}",)* "}}, {{{", $o0, "}, {", $o1, "}, {", $o2, "}, {", $o3, "}}}, {", $o4, "}, p, 1, 1, 0; }}"),
                                inout(reg32) self[$first], $(inout(reg32) self[$rest],)*
                                in(reg32) a[0], in(reg32) a[1], in(reg32) a[2], in(reg32) a[3], in(reg64) b,
                                const ACCUMULATE as i32, options(nostack))
                        };
                    }
                    // SAFETY: the caller's promises, stated in the module.
                    unsafe { if F16 { issue!("f16") } else { issue!("bf16") } }
                }
                #[cfg(not(target_arch = "nvptx64"))]
                simt::intrinsic::wgmma_rs(element::<F16>(), $n, self, *a, b, ACCUMULATE, false)
            }

            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            unsafe fn rs_transposed<const F16: bool>(&mut self, a: &[u32; 4], b: u64) {
                #[cfg(target_arch = "nvptx64")]
                {
                    macro_rules! issue {
                        ($ty:literal) => {
                            asm!(concat!("wgmma.mma_async.sync.aligned.m64n", $n, "k16.f32.", $ty, ".", $ty,
                                " {{{", $first, "}", $(", {", $rest, "}",)* "}}, {{{", $o0, "}, {", $o1, "}, {", $o2, "}, {", $o3, "}}}, {", $o4, "}, 1, 1, 1, 1;"),
                                inout(reg32) self[$first], $(inout(reg32) self[$rest],)*
                                in(reg32) a[0], in(reg32) a[1], in(reg32) a[2], in(reg32) a[3], in(reg64) b, options(nostack))
                        };
                    }
                    // SAFETY: the caller's promises, stated in the module.
                    unsafe { if F16 { issue!("f16") } else { issue!("bf16") } }
                }
                #[cfg(not(target_arch = "nvptx64"))]
                simt::intrinsic::wgmma_rs(element::<F16>(), $n, self, *a, b, true, true)
            }

            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            unsafe fn wait<const NEWEST: u32>(&mut self) {
                #[cfg(target_arch = "nvptx64")]
                // SAFETY: the caller's promises, stated in the module.
                unsafe {
                    // The comment uses the accumulators, which an operand must be.
                    asm!(concat!("wgmma.wait_group.sync.aligned {", $o0, "}; // {", $first, "}" $(, " {", $rest, "}")*),
                        inout(reg32) self[$first], $(inout(reg32) self[$rest],)* const NEWEST, options(nostack))
                }
                #[cfg(not(target_arch = "nvptx64"))]
                simt::intrinsic::wgmma_wait(NEWEST, self)
            }
        }
    };
}

#[rustfmt::skip]
wgmma!(4, 8, 0 1 2 3, 4 5 6 7 8 9);

#[rustfmt::skip]
wgmma!(8, 16, 0 1 2 3 4 5 6 7, 8 9 10 11 12 13);

#[rustfmt::skip]
wgmma!(16, 32, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15, 16 17 18 19 20 21);

#[rustfmt::skip]
wgmma!(32, 64, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31, 32 33 34 35 36 37);

#[rustfmt::skip]
wgmma!(40, 80, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39, 40 41 42 43 44 45);

#[rustfmt::skip]
wgmma!(48, 96, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47, 48 49 50 51 52 53);

#[rustfmt::skip]
wgmma!(64, 128, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63, 64 65 66 67 68 69);

#[rustfmt::skip]
wgmma!(88, 176, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87, 88 89 90 91 92 93);

#[rustfmt::skip]
wgmma!(96, 192, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95, 96 97 98 99 100 101);

#[rustfmt::skip]
wgmma!(128, 256, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95 96 97 98 99 100 101 102 103 104 105 106 107 108 109 110 111 112 113 114 115 116 117 118 119 120 121 122 123 124 125 126 127, 128 129 130 131 132 133);

/// Integer accumulators of an `m64` product, and the instructions on them: `D[64, N] += A[64, 32] * B[32, N]` of signed bytes, both
/// K-major: a line of a tile holds 128 of them, a step is 32 bytes as in [`descriptor`].
pub trait WgmmaS8: Sized {
    /// Columns.
    const N: u32;

    /// `wgmma.mma_async` with A and B in shared memory. Wraps around.
    ///
    /// # Safety
    /// See the module.
    unsafe fn ss(&mut self, a: u64, b: u64);

    /// As [`Wgmma::wait`].
    ///
    /// # Safety
    /// See the module.
    unsafe fn wait<const NEWEST: u32>(&mut self);
}

macro_rules! wgmma_s8 {
    ($registers:literal, $n:literal, $first:literal $($rest:literal)*, $o0:literal $o1:literal) => {
        impl WgmmaS8 for [i32; $registers] {
            const N: u32 = $n;

            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            unsafe fn ss(&mut self, a: u64, b: u64) {
                #[cfg(target_arch = "nvptx64")]
                // SAFETY: the caller's promises, stated in the module.
                unsafe {
                    asm!(concat!("wgmma.mma_async.sync.aligned.m64n", $n, "k32.s32.s8.s8 {{{", $first, "}", $(", {", $rest, "}",)*
                        "}}, {", $o0, "}, {", $o1, "}, 1;"),
                        inout(reg32) self[$first], $(inout(reg32) self[$rest],)*
                        in(reg64) a, in(reg64) b, options(nostack))
                }
                #[cfg(not(target_arch = "nvptx64"))]
                simt::intrinsic::wgmma_s8_ss($n, self, a, b, true)
            }

            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            unsafe fn wait<const NEWEST: u32>(&mut self) {
                #[cfg(target_arch = "nvptx64")]
                // SAFETY: the caller's promises, stated in the module.
                unsafe {
                    asm!(concat!("wgmma.wait_group.sync.aligned {", $o0, "}; // {", $first, "}" $(, " {", $rest, "}")*),
                        inout(reg32) self[$first], $(inout(reg32) self[$rest],)* const NEWEST, options(nostack))
                }
                #[cfg(not(target_arch = "nvptx64"))]
                simt::intrinsic::wgmma_wait(NEWEST, self)
            }
        }
    };
}

#[rustfmt::skip]
wgmma_s8!(4, 8, 0 1 2 3, 4 5);

#[rustfmt::skip]
wgmma_s8!(8, 16, 0 1 2 3 4 5 6 7, 8 9);

#[rustfmt::skip]
wgmma_s8!(16, 32, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15, 16 17);

#[rustfmt::skip]
wgmma_s8!(32, 64, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31, 32 33);

#[rustfmt::skip]
wgmma_s8!(64, 128, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63, 64 65);

#[rustfmt::skip]
wgmma_s8!(128, 256, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95 96 97 98 99 100 101 102 103 104 105 106 107 108 109 110 111 112 113 114 115 116 117 118 119 120 121 122 123 124 125 126 127, 128 129);
