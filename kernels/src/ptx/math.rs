//! Arithmetic whose rounding or speed a kernel counts on. All pure.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

macro_rules! unary {
    ($(#[$doc:meta])* $name:ident, $text:literal, |$x:ident| $host:expr) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name($x: f32) -> f32 {
            #[cfg(target_arch = "nvptx64")]
            {
                let out: f32;
                // SAFETY: arithmetic on a register.
                unsafe { asm!(concat!($text, " {}, {};"), out(reg32) out, in(reg32) $x, options(pure, nomem, nostack)) };
                out
            }
            #[cfg(not(target_arch = "nvptx64"))]
            $host
        }
    };
}
unary!(/// `ex2.approx.ftz.f32`: 2^x, relative error about 2^-22.
    ex2, "ex2.approx.ftz.f32", |x| x.exp2());
unary!(/// `lg2.approx.ftz.f32`: log2(x).
    lg2, "lg2.approx.ftz.f32", |x| x.log2());
unary!(/// `rcp.approx.ftz.f32`: 1/x, at most 1 ulp off.
    rcp, "rcp.approx.ftz.f32", |x| 1.0 / x);
unary!(/// `rsqrt.approx.ftz.f32`: 1/sqrt(x), relative error about 2^-22.
    rsqrt, "rsqrt.approx.ftz.f32", |x| 1.0 / x.sqrt());
unary!(/// `tanh.approx.f32` (sm_75): relative error about 2^-11.
    tanh, "tanh.approx.f32", |x| x.tanh());

/// `fma.rn.f32`: `a * b + c`, rounded once.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let out: f32;
        // SAFETY: arithmetic on registers.
        unsafe {
            asm!("fma.rn.f32 {}, {}, {}, {};", out(reg32) out, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack));
        }
        out
    }
    #[cfg(not(target_arch = "nvptx64"))]
    a.mul_add(b, c)
}

/// `max.f32`: the larger; of a number and a NaN, the number.
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let out: f32;
        // SAFETY: arithmetic on registers.
        unsafe {
            asm!("max.f32 {}, {}, {};", out(reg32) out, in(reg32) a, in(reg32) b, options(pure, nomem, nostack))
        };
        out
    }
    #[cfg(not(target_arch = "nvptx64"))]
    a.max(b)
}

/// `max.NaN.f32` (sm_80): the larger; a NaN if either is one.
#[inline(always)]
pub fn max_nan(a: f32, b: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let out: f32;
        // SAFETY: arithmetic on registers.
        unsafe {
            asm!("max.NaN.f32 {}, {}, {};", out(reg32) out, in(reg32) a, in(reg32) b, options(pure, nomem, nostack))
        };
        out
    }
    #[cfg(not(target_arch = "nvptx64"))]
    if a.is_nan() || b.is_nan() { f32::from_bits(0x7fff_ffff) } else { a.max(b) }
}

/// `prmt.b32`: the bytes of `a` (0 to 3) and `b` (4 to 7) that the four digits of `SELECT` name, the lowest digit first.
#[inline(always)]
pub fn prmt<const SELECT: u32>(a: u32, b: u32) -> u32 {
    const { assert!(SELECT & !0x7777 == 0, "digits are 0 to 7") };
    #[cfg(target_arch = "nvptx64")]
    {
        let out: u32;
        // SAFETY: arithmetic on registers.
        unsafe {
            asm!("prmt.b32 {}, {}, {}, {};", out(reg32) out, in(reg32) a, in(reg32) b, const SELECT, options(pure, nomem, nostack))
        };
        out
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        let bytes = u64::from(a) | u64::from(b) << 32;
        (0..4).fold(0, |out, i| out | ((bytes >> ((SELECT >> (4 * i) & 7) * 8) & 0xff) as u32) << (8 * i))
    }
}

/// `cvt.rn.satfinite.e4m3x2.f32` (sm_89): two f32 to e4m3, round to nearest even, 448 past the largest, `lo` in the low byte.
#[cfg(all(target_arch = "nvptx64", target_feature = "sm_90a"))]
#[inline(always)]
pub fn pack_e4m3(lo: f32, hi: f32) -> u16 {
    let out: u16;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("cvt.rn.satfinite.e4m3x2.f32 {}, {}, {};", out(reg16) out, in(reg32) hi, in(reg32) lo, options(pure, nomem, nostack));
    }
    out
}

/// `cvt.rn.bf16x2.f32`: two f32 to bf16, round to nearest even, `lo` in the low half (sm_80).
#[inline(always)]
pub fn pack_bf16(lo: f32, hi: f32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let out: u32;
        // SAFETY: arithmetic on registers.
        unsafe {
            asm!("cvt.rn.bf16x2.f32 {}, {}, {};", out(reg32) out, in(reg32) hi, in(reg32) lo, options(pure, nomem, nostack));
        }
        out
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        u32::from(bf16_bits(lo)) | u32::from(bf16_bits(hi)) << 16
    }
}

/// `cvt.rn.f16x2.f32`: two f32 to f16, round to nearest even, `lo` in the low half (sm_80).
#[inline(always)]
pub fn pack_f16(lo: f32, hi: f32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let out: u32;
        // SAFETY: arithmetic on registers.
        unsafe {
            asm!("cvt.rn.f16x2.f32 {}, {}, {};", out(reg32) out, in(reg32) hi, in(reg32) lo, options(pure, nomem, nostack));
        }
        out
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        let bits = |x| u32::from(half::f16::from_f32(x).to_bits());
        bits(lo) | bits(hi) << 16
    }
}

/// `cvt.f32.f16`: exact.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let out: f32;
        // SAFETY: arithmetic on registers.
        unsafe {
            asm!("cvt.f32.f16 {}, {};", out(reg32) out, in(reg16) bits, options(pure, nomem, nostack));
        }
        out
    }
    #[cfg(not(target_arch = "nvptx64"))]
    half::f16::from_bits(bits).to_f32()
}

/// The low bf16 of a pair, exact.
#[inline(always)]
pub fn bf16_lo(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

/// The high bf16 of a pair, exact.
#[inline(always)]
pub fn bf16_hi(pair: u32) -> f32 {
    f32::from_bits(pair & 0xffff_0000)
}

#[cfg(not(target_arch = "nvptx64"))]
fn bf16_bits(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}
