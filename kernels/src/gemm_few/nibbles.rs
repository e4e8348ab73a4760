//! 4-bit weights as numbers of 16 bits, of the format that activations have.
//!
//! ```text
//! a word       15 .. 12 | 11 .. 8 | 7 .. 4 | 3 .. 0     and so its upper half, of the next column
//! row          r + 8      r         r + 8    r
//! columns      c + 8      c + 8     c        c
//! ```

use super::int4;
use crate::{
    element::{Bf16, Element, F16},
    ptx::{self, Wgmma},
};

/// Words of eight nibbles as operands, exactly. Of each of a thread's two rows there is what takes its zero point away.
pub(crate) trait Nibbles: Element {
    /// That of rows `r` and `r + 8` where zero points are 8.
    const MINUS_EIGHTS: [u32; 2];
    /// That of row `r + 8 * lower` for a zero point as it is stored.
    fn minus_zero(lower: usize, stored: u16) -> u32;
    /// A thread's eight nibbles of a step less the zero points of its two rows.
    fn convert(word: u32, minus_zeros: [u32; 2]) -> [u32; 4];
    /// [`Wgmma::rs`].
    ///
    /// # Safety
    /// As there.
    unsafe fn multiply<A: Wgmma, const ACCUMULATE: bool>(acc: &mut A, w: &[u32; 4], a: u64);
}

impl Nibbles for Bf16 {
    const MINUS_EIGHTS: [u32; 2] = [int4::MINUS_ZERO; 2];

    #[inline(always)]
    fn minus_zero(_: usize, stored: u16) -> u32 {
        u32::from(stored) | u32::from(stored) << 16
    }

    #[inline(always)]
    fn convert(word: u32, minus_zeros: [u32; 2]) -> [u32; 4] {
        int4::convert(word, minus_zeros)
    }

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn multiply<A: Wgmma, const ACCUMULATE: bool>(acc: &mut A, w: &[u32; 4], a: u64) {
        // SAFETY: the caller's promise.
        unsafe { acc.rs::<false, ACCUMULATE>(w, a) }
    }
}

/// An f16 pair of 1024: with a nibble `q` in its low bits 1024 + q, and 1024 + 16 q with one in the next four.
const MAGIC: u32 = 0x6400_6400;
/// The low nibble of each half: of row `r`.
const LOW: u32 = 0x000f_000f;
/// The next: of row `r + 8`.
const HIGH: u32 = 0x00f0_00f0;
/// The pair of 1/16.
const SIXTEENTHS: u32 = 0x2c00_2c00;

/// `-(1024 + zero)` of row `r`; of row `r + 8` `-(64 + zero)`, which a sixteenth of its numbers has to lose.
const fn minus_zero_f16(lower: usize, zero: u32) -> u32 {
    let bits = if lower == 0 { 0xe400 + zero } else { 0xd400 + zero * 16 };
    bits | bits << 16
}

/// As [`int4::convert`], with one shift: ten bits beside the leading one have room for a nibble that was not brought to their low end.
#[inline(always)]
fn convert_f16(word: u32, minus_zeros: [u32; 2]) -> [u32; 4] {
    let low = |word| ptx::add_f16x2(ptx::and_or::<LOW>(word, MAGIC), minus_zeros[0]);
    let high = |word| ptx::fma_f16x2(ptx::and_or::<HIGH>(word, MAGIC), SIXTEENTHS, minus_zeros[1]);
    [low(word), high(word), low(word >> 8), high(word >> 8)]
}

impl Nibbles for F16 {
    const MINUS_EIGHTS: [u32; 2] = [minus_zero_f16(0, 8), minus_zero_f16(1, 8)];

    #[inline(always)]
    fn minus_zero(lower: usize, stored: u16) -> u32 {
        minus_zero_f16(lower, int4::zero_point(stored))
    }

    #[inline(always)]
    fn convert(word: u32, minus_zeros: [u32; 2]) -> [u32; 4] {
        convert_f16(word, minus_zeros)
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
    fn differences_are_exact<E: Nibbles>(stored: impl Fn(u32) -> u16) {
        for zero in 0..=16 {
            let minus_zeros = [0, 1].map(|lower| E::minus_zero(lower, stored(zero)));
            assert!(zero != 8 || minus_zeros == E::MINUS_EIGHTS);
            for byte in 0..=0xff_u32 {
                let word = (byte * 0x0101_0101) ^ 0x3a5c_9160;
                let operands = E::convert(word, minus_zeros);
                for (register, operand) in operands.into_iter().enumerate() {
                    let nibble = |odd: u32| word >> (odd * 16 + register as u32 * 4) & 15;
                    let expected = [0, 1].map(|odd| nibble(odd) as f32 - zero as f32);
                    assert_eq!(E::unpack(operand), expected, "word {word:08x}, zero point {zero}");
                }
            }
        }
    }

    #[test]
    fn a_nibble_less_its_zero_point_is_what_it_should_be() {
        let stored = |zero| half::bf16::from_f32(-(128.0 + zero as f32)).to_bits();
        differences_are_exact::<Bf16>(stored);
        differences_are_exact::<F16>(stored);
    }
}
