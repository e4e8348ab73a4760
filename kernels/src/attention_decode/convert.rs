//! Four 8-bit elements of a register to bf16, exactly, by bits alone (so that sm_80 can), and the query elements that meet them.
//!
//! The two bytes of a pair come from the even or from the odd places: that is what one mask over a register gives. Keys and
//! queries agree on the order of dims within a product, so the order itself is free.

use crate::{
    abi::{KV_FP8, KV_INT8},
    ptx,
};

/// Bytes 0 and 2 of four elements.
#[inline(always)]
pub(super) fn even<const FORMAT: u32>(codes: u32) -> u32 {
    if FORMAT == KV_INT8 { int8(codes) } else { fp8(codes << 8, codes << 4) }
}

/// Bytes 1 and 3 of four elements.
#[inline(always)]
pub(super) fn odd<const FORMAT: u32>(codes: u32) -> u32 {
    if FORMAT == KV_INT8 { int8(codes >> 8) } else { fp8(codes, codes >> 4) }
}

/// Two's complement in the low byte of each half. Its low seven bits under the exponent of 128 are 128 + m, and the addend takes
/// away 128, or 256 where bit 7 is set.
#[inline(always)]
fn int8(halves: u32) -> u32 {
    let magnitude = halves & 0x007f_007f | 0x4300_4300;
    let addend = halves & 0x0080_0080 | 0xc300_c300;
    ptx::fma_bf16x2(magnitude, 0x3f80_3f80, addend)
}

/// e4m3, its sign at the top of each half of `signs` and its other bits from bit 10 down in `rest`: a bf16 whose exponent is off
/// by 120, subnormals too.
#[inline(always)]
fn fp8(signs: u32, rest: u32) -> u32 {
    const { assert!(KV_FP8 != KV_INT8) };
    let bits = signs & 0x8000_8000 | rest & 0x07f0_07f0;
    ptx::fma_bf16x2(bits, 0x7b80_7b80, 0x8000_8000)
}

/// The query elements 0 and 2, then 1 and 3, of four: what meets [`even`] and [`odd`].
#[inline(always)]
pub(super) fn split_query(pairs: [u32; 2]) -> [u32; 2] {
    [pairs[0] & 0xffff | pairs[1] << 16, pairs[0] >> 16 | pairs[1] & 0xffff_0000]
}

#[cfg(all(test, not(target_arch = "nvptx64")))]
mod tests {
    use super::*;
    use crate::ptx::{bf16_hi, bf16_lo};

    fn four<const FORMAT: u32>(codes: [u8; 4]) -> [f32; 4] {
        let codes = u32::from_le_bytes(codes);
        let (even, odd) = (even::<FORMAT>(codes), odd::<FORMAT>(codes));
        [bf16_lo(even), bf16_lo(odd), bf16_hi(even), bf16_hi(odd)]
    }

    #[test]
    fn every_int8_is_itself() {
        for code in 0..=255u8 {
            let codes = [code, !code, code ^ 0x55, 7];
            assert_eq!(four::<KV_INT8>(codes), codes.map(|c| f32::from(c as i8)));
        }
    }

    #[test]
    fn every_finite_e4m3_is_itself() {
        let value = |code: u8| {
            let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
            let magnitude = match exponent {
                0 => mantissa / 8.0 * 2f32.powi(-6),
                _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
            };
            if code >> 7 == 1 { -magnitude } else { magnitude }
        };
        for code in (0..=255u8).filter(|code| code & 0x7f != 0x7f) {
            let codes = [code, code ^ 0x80, 1, code];
            assert_eq!(four::<KV_FP8>(codes).map(f32::to_bits), codes.map(value).map(f32::to_bits));
        }
    }

    #[test]
    fn queries_meet_their_elements() {
        let [a, b, c, d] = [1u32, 2, 3, 4];
        assert_eq!(split_query([a | b << 16, c | d << 16]), [a | c << 16, b | d << 16]);
    }
}
