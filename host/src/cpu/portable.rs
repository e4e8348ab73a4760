use half::f16;

use super::isa::{Isa, LANES, bf16_lane};

/// Plain Rust, for any machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Portable;

macro_rules! lanewise {
    ($($name:ident($($arg:ident),*) => $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::V),*) -> Self::V {
            let mut out = [0.0; LANES];
            for i in 0..LANES {
                $(let $arg = $arg[i];)*
                out[i] = $body;
            }
            out
        }
    )*};
}

impl Isa for Portable {
    type V = [f32; LANES];
    type W = [u32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> Self::V {
        // SAFETY: the caller's.
        unsafe { at.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: Self::V) {
        // SAFETY: the caller's.
        unsafe { at.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u16) -> Self::V {
        // SAFETY: the caller's.
        let bits = unsafe { at.cast::<[u16; LANES]>().read_unaligned() };
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = f32::from_bits(u32::from(bits[bf16_lane(i)]) << 16);
        }
        out
    }
    #[inline(always)]
    unsafe fn load_f16(self, at: *const u16) -> Self::V {
        // SAFETY: the caller's.
        let bits = unsafe { at.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|bits| f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    unsafe fn load_words(self, at: *const u32) -> Self::W {
        // SAFETY: the caller's.
        unsafe { at.cast::<Self::W>().read_unaligned() }
    }
    #[inline(always)]
    fn masked<const MASK: i32>(self, words: Self::W) -> Self::V {
        words.map(|word| (word as i32 & MASK) as f32)
    }
    #[inline(always)]
    fn shifted<const SHIFT: i32>(self, words: Self::W) -> Self::V {
        words.map(|word| (word >> SHIFT) as i32 as f32)
    }
    lanewise! {
        // Where there is no such instruction `mul_add` is a call of a slow function.
        fma(a, b, c) => if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c };
        add(a, b) => a + b;
        sub(a, b) => a - b;
        mul(a, b) => a * b;
        div(a, b) => a / b;
        max(a, b) => if a > b { a } else { b };
        min(a, b) => if a < b { a } else { b };
        select_lt(a, b, x, y) => if a < b { x } else { y };
        shift_to_exponent(v) => f32::from_bits(v.to_bits() << 23);
    }
    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
}
