//! What the bits of a logit say. Shared by the kernels that rank a row.

/// The row holds a NaN.
pub(crate) const HAS_NAN: u32 = 1;
/// The row holds a finite logit.
pub(crate) const HAS_FINITE: u32 = 2;

const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;

/// [`HAS_NAN`] or [`HAS_FINITE`] or nothing, for one logit.
#[inline(always)]
pub(crate) const fn flags(bits: u32) -> u32 {
    let magnitude = bits & MAGNITUDE;
    if magnitude > INFINITY {
        HAS_NAN
    } else if magnitude < INFINITY {
        HAS_FINITE
    } else {
        0
    }
}

/// The flags of many logits.
#[inline(always)]
pub(crate) const fn row_flags(any_nan: bool, any_finite: bool) -> u32 {
    (if any_nan { HAS_NAN } else { 0 }) | (if any_finite { HAS_FINITE } else { 0 })
}

/// A `u32` in the order of the floats; the zeros are equal. Not for NaN.
#[inline(always)]
pub(crate) const fn key(bits: u32) -> u32 {
    if bits >> 31 == 0 {
        bits | 0x8000_0000
    } else if bits == 0x8000_0000 {
        bits
    } else {
        !bits
    }
}

/// The float of a [`key`]; +0 for either zero.
#[inline(always)]
pub(crate) const fn value_of_key(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & MAGNITUDE } else { !key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_the_floats() {
        let ascending = [
            f32::NEG_INFINITY,
            f32::MIN,
            -1.5,
            -1.0,
            -f32::MIN_POSITIVE,
            -1e-45,
            0.0,
            1e-45,
            1.0,
            f32::MAX,
            f32::INFINITY,
        ];
        for pair in ascending.windows(2) {
            assert!(key(pair[0].to_bits()) < key(pair[1].to_bits()), "{} and {}", pair[0], pair[1]);
        }
        for value in ascending {
            assert_eq!(value_of_key(key(value.to_bits())), value);
        }
        assert_eq!(key((-0.0f32).to_bits()), key(0.0f32.to_bits()));
    }

    #[test]
    fn nan_and_finite_are_told_apart_from_infinity() {
        assert_eq!(flags(f32::NAN.to_bits()), HAS_NAN);
        assert_eq!(flags((-f32::NAN).to_bits()), HAS_NAN);
        assert_eq!(flags(f32::INFINITY.to_bits()), 0);
        assert_eq!(flags(f32::NEG_INFINITY.to_bits()), 0);
        assert_eq!(flags(f32::MAX.to_bits()), HAS_FINITE);
        assert_eq!(flags((-0.0f32).to_bits()), HAS_FINITE);
    }
}
