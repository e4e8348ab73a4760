//! Pairs of bf16 or f16 in one register, the lower element in the low half: arithmetic, and a transposition within the warp.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;
#[cfg(not(target_arch = "nvptx64"))]
use tilewright_simt as simt;

use super::intrinsic;

/// `fma.rn.bf16x2` (sm_80): `a * b + c`, each half rounded once to nearest even. Subnormals are kept. Pure.
#[inline(always)]
pub fn fma_bf16x2(a: u32, b: u32, c: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let out: u32;
        // SAFETY: arithmetic on registers.
        unsafe {
            asm!("fma.rn.bf16x2 {}, {}, {}, {};", out(reg32) out, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack));
        }
        out
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        // An f64 holds the sum of any product and addend that kernels use exactly, so that one rounding is left.
        let half = |a, b, c| f64::from(a) * f64::from(b) + f64::from(c);
        let lo = half(super::bf16_lo(a), super::bf16_lo(b), super::bf16_lo(c));
        let hi = half(super::bf16_hi(a), super::bf16_hi(b), super::bf16_hi(c));
        super::pack_bf16(lo as f32, hi as f32)
    }
}

/// `add.rn.f16x2` (sm_53): each half rounded to nearest even. Subnormals are kept. Pure.
#[inline(always)]
pub fn add_f16x2(a: u32, b: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let out: u32;
        // SAFETY: arithmetic on registers.
        unsafe {
            asm!("add.rn.f16x2 {}, {}, {};", out(reg32) out, in(reg32) a, in(reg32) b, options(pure, nomem, nostack));
        }
        out
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        // An f32 holds any sum of two f16 exactly but for one that it rounds where an f16 has long lost it.
        let half = |shift| super::f16_to_f32((a >> shift) as u16) + super::f16_to_f32((b >> shift) as u16);
        super::pack_f16(half(0), half(16))
    }
}

/// `fma.rn.f16x2` (sm_53): `a * b + c`, each half rounded once to nearest even. Subnormals are kept. Pure.
#[inline(always)]
pub fn fma_f16x2(a: u32, b: u32, c: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let out: u32;
        // SAFETY: arithmetic on registers.
        unsafe {
            asm!("fma.rn.f16x2 {}, {}, {}, {};", out(reg32) out, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack));
        }
        out
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        // An f64 holds the sum of any product and addend that kernels use exactly, so that one rounding is left.
        let half = |shift| {
            let [a, b, c] = [a, b, c].map(|pair| f64::from(super::f16_to_f32((pair >> shift) as u16)));
            u32::from(half::f16::from_f64(a * b + c).to_bits())
        };
        half(0) | half(16) << 16
    }
}

/// `lop3.b32` of `(a & MASK) | c`. As an instruction of its own where the compiler would make two: of two constants one has to be in a
/// register. Pure.
#[inline(always)]
pub fn and_or<const MASK: u32>(a: u32, c: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let out: u32;
        // SAFETY: arithmetic on registers.
        unsafe {
            asm!("lop3.b32 {}, {}, {}, {}, 0xea;", out(reg32) out, in(reg32) a, const MASK, in(reg32) c, options(pure, nomem, nostack));
        }
        out
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        a & MASK | c
    }
}

intrinsic! {
    /// `movmatrix.sync.aligned.m8n8.trans.b16` (sm_75, PTX 7.8): transposes an 8x8 matrix of 16-bit elements. Lane `l` brings
    /// row `l / 4`, columns `2 * (l % 4)` and the next, and takes those of the transposed matrix.
    ///
    /// # Safety
    /// Every lane of the warp must execute the same call.
    pub fn movmatrix_trans(pair: u32) -> u32 {
        let out: u32;
        asm!("movmatrix.sync.aligned.m8n8.trans.b16 {}, {};", out(reg32) out, in(reg32) pair, options(nostack));
        out
    } else {
        // Element (2t, g) and its neighbour below, each the half g % 2 of what the lane of that row and column g / 2 brings.
        let lane = simt::intrinsic::tid_x() & 31;
        let (g, t) = (lane / 4, lane % 4);
        let upper = simt::intrinsic::shfl_idx(pair, 8 * t + g / 2);
        let lower = simt::intrinsic::shfl_idx(pair, 8 * t + 4 + g / 2);
        let shift = g % 2 * 16;
        (upper >> shift & 0xffff) | (lower >> shift & 0xffff) << 16
    }
}
