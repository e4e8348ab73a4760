//! Four 8-bit elements of a register to f16, exactly but for a power of two, and the query elements that meet them.
//!
//! An 8-bit element is few bits of an f16, and the products need no more than its ratio to the others: an int8 is left in the lowest
//! bits, where f16 is a fixed-point number of unit 2^-24, and an e4m3 keeps its exponent, 8 less than f16's. So two elements cost one
//! or two instructions and no arithmetic. The unit comes back by [`unit`], with the key's or the value's scale.
//!
//! The two bytes of a pair come from the even or from the odd places: that is what one mask over a register gives. Keys and
//! queries agree on the order of dims within a product, so the order itself is free.

use crate::{
    abi::{KV_FP8, KV_INT8},
    ptx,
};

/// What an int8 key's element has been raised by, so that it isn't negative: the scores of a row are that many times the sum of its
/// query too large.
pub(super) const INT8_BIAS: f32 = 128.0;

/// What a converted element has to be multiplied by.
#[inline(always)]
pub(super) const fn unit<const FORMAT: u32>() -> f32 {
    if FORMAT == KV_INT8 { (1u32 << 24) as f32 } else { 256.0 }
}

/// Elements 0 and 2, then 1 and 3, of four of a key; those of int8 are [`INT8_BIAS`] too large.
#[inline(always)]
pub(super) fn keys<const FORMAT: u32>(codes: u32) -> [u32; 2] {
    if FORMAT == KV_INT8 {
        let raised = codes ^ 0x8080_8080;
        [raised & 0x00ff_00ff, ptx::prmt::<0x4341>(raised, 0)]
    } else {
        [e4m3(codes << 8, codes << 7), e4m3(codes, codes >> 1)]
    }
}

/// Elements 0 and 2, then 1 and 3, of four of a value.
#[inline(always)]
pub(super) fn values<const FORMAT: u32>(codes: u32) -> [u32; 2] {
    let pairs = keys::<FORMAT>(codes);
    // -128 in units of 2^-24. Left in, it would be the sum of the row's rounded weights that had to be kept.
    if FORMAT == KV_INT8 { pairs.map(|pair| ptx::add_f16x2(pair, 0x8080_8080)) } else { pairs }
}

/// An e4m3, its sign at the top of each half of `signs` and its other bits from bit 13 down in `rest`; subnormals too.
#[inline(always)]
fn e4m3(signs: u32, rest: u32) -> u32 {
    const { assert!(KV_FP8 != KV_INT8) };
    ptx::and_or::<0x8000_8000>(signs, rest & 0x3f80_3f80)
}

/// The query elements 0 and 2, then 1 and 3, of four: what meets [`keys`].
#[inline(always)]
pub(super) fn split_query(four: [f32; 4]) -> [u32; 2] {
    [ptx::pack_f16(four[0], four[2]), ptx::pack_f16(four[1], four[3])]
}

/// A power of two, `2^(field - 127)`, of fields 1 to 254.
#[inline(always)]
pub(super) fn power(field: u32) -> f32 {
    f32::from_bits(field << 23)
}

#[cfg(all(test, not(target_arch = "nvptx64")))]
mod tests {
    use super::*;

    fn four<const FORMAT: u32>([even, odd]: [u32; 2]) -> [f32; 4] {
        let value = |bits: u32| ptx::f16_to_f32(bits as u16) * unit::<FORMAT>();
        [value(even), value(odd), value(even >> 16), value(odd >> 16)]
    }

    #[test]
    fn every_int8_is_itself() {
        for code in 0..=255u8 {
            let codes = [code, !code, code ^ 0x55, 7];
            let word = u32::from_le_bytes(codes);
            assert_eq!(four::<KV_INT8>(values::<KV_INT8>(word)), codes.map(|c| f32::from(c as i8)));
            let raised = codes.map(|c| f32::from(c as i8) + INT8_BIAS);
            assert_eq!(four::<KV_INT8>(keys::<KV_INT8>(word)), raised);
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
            let word = u32::from_le_bytes(codes);
            for pairs in [keys::<KV_FP8>(word), values::<KV_FP8>(word)] {
                assert_eq!(four::<KV_FP8>(pairs).map(f32::to_bits), codes.map(value).map(f32::to_bits));
            }
        }
    }

    #[test]
    fn queries_meet_their_elements() {
        let [even, odd] = split_query([1.0, 2.0, 3.0, 4.0]);
        let halves = [even, odd, even >> 16, odd >> 16].map(|bits| ptx::f16_to_f32(bits as u16));
        assert_eq!(halves, [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn powers_are_powers() {
        assert_eq!([1, 127, 128, 254].map(power), [2f32.powi(-126), 1.0, 2.0, 2f32.powi(127)]);
    }
}
