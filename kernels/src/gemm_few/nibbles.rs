//! 4-bit weights as numbers of 16 bits, of the format that activations have.
//!
//! ```text
//! a word       15 .. 12 | 11 .. 8 | 7 .. 4 | 3 .. 0     and so its upper half, of the next column
//! row          r + 8      r         r + 8    r
//! columns      c + 8      c + 8     c        c
//! ```
//!
//! A nibble `q` in the low bits of a half is the format's smallest number times `q`, and one in the next four times `16 q`: numbers so small lie evenly.
//! One multiplication brings either to a unit in which `q` less a zero point is exact, and takes that away.

use crate::{
    element::{Bf16, Element, F16},
    ptx::{self, Wgmma},
};

/// The nibbles at the low ends of a word's halves.
const NIBBLES: u32 = 0x000f_000f;

/// A format in which 4-bit weights are multiplied. Constants are pairs.
pub(crate) trait Nibbles: Element {
    /// What an operand counts, one over this: a power of two.
    const UNITS: f32;
    /// What makes units of nibbles at the low ends.
    const TO_UNITS: u32;
    /// What makes units of those above them.
    const ABOVE_TO_UNITS: u32;
    /// Units of -8.
    const MINUS_EIGHT: u32;
    /// Units of what pieces store of a zero point: bf16 of minus a 64th of it.
    fn minus_zero(stored: u16) -> u32;
    /// `a * b + c`, rounded once.
    fn fma(a: u32, b: u32, c: u32) -> u32;
    /// [`Wgmma::rs`].
    ///
    /// # Safety
    /// As there.
    unsafe fn multiply<A: Wgmma, const ACCUMULATE: bool>(acc: &mut A, w: &[u32; 4], a: u64);
}

/// A thread's eight nibbles of a step as the product's operand, less the zero points of its two rows: in units, exact. Each is one instruction to mask it
/// and one to scale it; only every other pair has to be shifted.
#[inline(always)]
pub(super) fn convert<E: Nibbles>(word: u32, minus_zeros: [u32; 2]) -> [u32; 4] {
    let mut a = [0; 4];
    for i in 0..2 {
        let word = word >> (8 * i);
        a[i * 2] = E::fma(word & NIBBLES, E::TO_UNITS, minus_zeros[0]);
        a[i * 2 + 1] = E::fma(word & NIBBLES << 4, E::ABOVE_TO_UNITS, minus_zeros[1]);
    }
    a
}

/// Sums of what [`convert`] gives, as those of the weights.
#[inline(always)]
pub(crate) fn whole<E: Nibbles, const N: usize>(mut total: [f32; N]) -> [f32; N] {
    for sum in &mut total {
        *sum *= E::UNITS;
    }
    total
}

/// 64ths, which is as large as units can be: nibbles are times 2^-133, and no power of two is above 2^127.
impl Nibbles for Bf16 {
    const UNITS: f32 = 64.0;
    const TO_UNITS: u32 = 0x7f00_7f00;
    const ABOVE_TO_UNITS: u32 = 0x7d00_7d00;
    const MINUS_EIGHT: u32 = 0xbe00_be00;

    #[inline(always)]
    fn minus_zero(stored: u16) -> u32 {
        u32::from(stored) | u32::from(stored) << 16
    }

    #[inline(always)]
    fn fma(a: u32, b: u32, c: u32) -> u32 {
        ptx::fma_bf16x2(a, b, c)
    }

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn multiply<A: Wgmma, const ACCUMULATE: bool>(acc: &mut A, w: &[u32; 4], a: u64) {
        // SAFETY: the caller's promise.
        unsafe { acc.rs::<false, ACCUMULATE>(w, a) }
    }
}

/// 512ths: nibbles are times 2^-24, and no power of two is above 2^15.
impl Nibbles for F16 {
    const UNITS: f32 = 512.0;
    const TO_UNITS: u32 = 0x7800_7800;
    const ABOVE_TO_UNITS: u32 = 0x6800_6800;
    const MINUS_EIGHT: u32 = 0xa400_a400;

    #[inline(always)]
    fn minus_zero(stored: u16) -> u32 {
        let minus_zero = ptx::bf16_lo(u32::from(stored)) * (64.0 / F16::UNITS);
        ptx::pack_f16(minus_zero, minus_zero)
    }

    #[inline(always)]
    fn fma(a: u32, b: u32, c: u32) -> u32 {
        ptx::fma_f16x2(a, b, c)
    }

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn multiply<A: Wgmma, const ACCUMULATE: bool>(acc: &mut A, w: &[u32; 4], a: u64) {
        // SAFETY: the caller's promise.
        unsafe { acc.rs::<true, ACCUMULATE>(w, a) }
    }
}

#[cfg(all(test, feature = "emulation"))]
mod tests {
    use super::*;

    /// Whatever the nibbles and the zero points of the two rows, an operand is their difference.
    fn differences_are_exact<E: Nibbles>() {
        for zero in 0..=16 {
            let stored = half::bf16::from_f32(-(zero as f32) / 64.0).to_bits();
            let minus_zeros = [E::minus_zero(stored), E::MINUS_EIGHT];
            assert!(zero != 8 || minus_zeros[0] == E::MINUS_EIGHT);
            for byte in 0..=0xff_u32 {
                let word = (byte * 0x0101_0101) ^ 0x3a5c_9160;
                let operands = convert::<E>(word, minus_zeros);
                for (register, operand) in operands.into_iter().enumerate() {
                    let zero = if register % 2 == 0 { zero } else { 8 };
                    let nibble = |odd: u32| word >> (odd * 16 + register as u32 * 4) & 15;
                    let expected = [0, 1].map(|odd| nibble(odd) as f32 - zero as f32);
                    let found = whole::<E, 2>(E::unpack(operand));
                    assert_eq!(found, expected, "word {word:08x}, zero point {zero}");
                }
            }
        }
    }

    #[test]
    fn a_nibble_less_its_zero_point_is_what_it_should_be() {
        differences_are_exact::<Bf16>();
        differences_are_exact::<F16>();
    }
}
