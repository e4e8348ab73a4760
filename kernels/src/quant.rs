//! From f32 to the elements of a quantised cache, the same bits on every architecture: sm_80 has no conversion to e4m3 and does
//! by arithmetic what sm_90a has an instruction for.

use crate::ptx;

/// Largest magnitude of an i8 element.
pub(crate) const INT8_LIMIT: f32 = 127.0;
/// Largest finite e4m3.
pub(crate) const E4M3_LIMIT: f32 = 448.0;

/// What a vector's elements are multiplied by to be stored, and what a stored element is multiplied by to be read.
#[derive(Clone, Copy)]
pub(crate) struct Quantiser {
    pub inverse: f32,
    pub scale: f32,
}

impl Quantiser {
    /// Of a vector whose largest magnitude has the bits `max_bits`. Compared as integers, magnitudes are ordered as floats and a
    /// NaN is above all: it ends up in the scale, where nobody misses it.
    #[inline(always)]
    pub(crate) fn of(max_bits: u32, limit: f32) -> Self {
        // A smaller maximum would have an inverse past the largest f32.
        const LEAST: u32 = 0x0880_0000; // 2^-110
        if max_bits == 0 {
            return Self { inverse: 0.0, scale: 0.0 };
        }
        let max = f32::from_bits(max_bits.max(LEAST));
        Self { inverse: limit / max, scale: max / limit }
    }
}

/// The larger of `bits` and the magnitudes' bits, which are ordered as [`Quantiser::of`] says.
#[inline(always)]
pub(crate) fn largest_bits(bits: u32, v: &[f32; 8]) -> u32 {
    let mut largest = bits;
    for i in 0..8 {
        largest = largest.max(v[i].to_bits() & 0x7fff_ffff);
    }
    largest
}

/// Eight elements as i8, rounded to nearest even.
#[inline(always)]
pub(crate) fn int8x8(v: &[f32; 8], inverse: f32) -> [u32; 2] {
    // 1.5 * 2^23: a unit in the last place is 1, so that the sum's low byte is the rounded product in two's complement. One
    // rounding, in the fma.
    let word = |i: usize| {
        let bits = |i: usize| ptx::fma(v[i], inverse, 12_582_912.0).to_bits();
        let (lower, upper) =
            (ptx::prmt::<0x0040>(bits(i), bits(i + 1)), ptx::prmt::<0x0040>(bits(i + 2), bits(i + 3)));
        ptx::prmt::<0x5410>(lower, upper)
    };
    [word(0), word(4)]
}

/// Eight elements as e4m3.
#[inline(always)]
pub(crate) fn e4m3x8(v: &[f32; 8], inverse: f32) -> [u32; 2] {
    let word = |i: usize| {
        let pair = |i: usize| e4m3x2(v[i] * inverse, v[i + 1] * inverse);
        pair(i) | pair(i + 2) << 16
    };
    [word(0), word(4)]
}

/// Two elements as e4m3, `lo` in the low byte.
#[inline(always)]
fn e4m3x2(lo: f32, hi: f32) -> u32 {
    #[cfg(all(target_arch = "nvptx64", target_feature = "sm_90a"))]
    {
        u32::from(ptx::pack_e4m3(lo, hi))
    }
    #[cfg(not(all(target_arch = "nvptx64", target_feature = "sm_90a")))]
    {
        e4m3(lo) | e4m3(hi) << 8
    }
}

/// The nearest e4m3 (1 sign, 4 exponent, 3 mantissa bits, bias 7, no infinities), ties to even, saturating at 448; a NaN is 0x7f.
///
/// Source: Micikevicius et al., "FP8 formats for deep learning", 2022, section 3.
#[cfg(not(all(target_arch = "nvptx64", target_feature = "sm_90a")))]
#[inline(always)]
fn e4m3(x: f32) -> u32 {
    const SMALLEST_NORMAL: u32 = 0x3c80_0000; // 2^-6
    const INFINITY: u32 = 0x7f80_0000;
    const DENORMAL_BASE: f32 = 16384.0; // 2^14, whose unit in the last place is 2^-9, that of e4m3's denormals
    let (sign, magnitude) = (x.to_bits() >> 24 & 0x80, x.to_bits() & 0x7fff_ffff);
    // Times 1 in an fma, lest an assembler fuse the sum with the product that made x.
    let denormal = ptx::fma(f32::from_bits(magnitude), 1.0, DENORMAL_BASE).to_bits();
    let denormal = denormal.wrapping_sub(DENORMAL_BASE.to_bits());
    // Twenty bits go, half of them rounded up where the last one kept is odd; exponents differ by 120.
    let normal = ((magnitude + 0x7_ffff + (magnitude >> 20 & 1)) >> 20).wrapping_sub(120 << 3);
    let finite = if magnitude < SMALLEST_NORMAL { denormal } else { normal.min(0x7e) };
    if magnitude > INFINITY { 0x7f } else { sign | finite }
}

#[cfg(all(test, not(target_arch = "nvptx64")))]
mod tests {
    use super::*;

    fn value(code: u32) -> f64 {
        let (exponent, mantissa) = ((code >> 3 & 15) as i32, f64::from(code & 7));
        let magnitude = match exponent {
            0 => mantissa * 2f64.powi(-9),
            _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
        };
        if code & 0x80 == 0 { magnitude } else { -magnitude }
    }

    /// By looking at every e4m3 there is.
    fn nearest(x: f32) -> u32 {
        let distance = |code: u32| (value(code) - f64::from(x).abs()).abs();
        let better =
            |a: u32, b: u32| distance(b) < distance(a) || (distance(b) == distance(a) && b.is_multiple_of(2));
        (1..0x7f).fold(0, |best, code| if better(best, code) { code } else { best })
    }

    #[test]
    fn every_e4m3_every_midpoint_and_their_neighbours_convert_to_the_nearest() {
        let mut points = vec![0.0f32, f32::MIN_POSITIVE, 448.0, 463.0, 464.0, 465.0, 1e9, f32::MAX];
        for code in 0..0x7e {
            points.push(value(code) as f32);
            points.push(((value(code) + value(code + 1)) / 2.0) as f32);
        }
        for point in points {
            let bits = point.to_bits();
            for x in [bits.saturating_sub(1), bits, bits + 1].map(f32::from_bits) {
                if x.is_finite() {
                    assert_eq!(e4m3(x), nearest(x), "{x:e}");
                    assert_eq!(e4m3(-x), 0x80 | nearest(x), "-{x:e}");
                }
            }
        }
    }

    #[test]
    fn e4m3_of_a_million_floats_and_of_none() {
        for bits in (0..f32::INFINITY.to_bits()).step_by(2039) {
            let x = f32::from_bits(bits);
            assert_eq!(e4m3(x), nearest(x), "{x:e}");
        }
        assert_eq!(e4m3(f32::INFINITY), 0x7e);
        assert_eq!([e4m3(f32::NAN), e4m3(-f32::NAN)], [0x7f; 2]);
    }

    #[test]
    fn int8_rounds_to_even_in_twos_complement() {
        let bytes = |v: [f32; 8]| int8x8(&v, 1.0).map(u32::to_le_bytes).concat();
        let want = [127i8, -127, 0, 2, -2, 2, 0, -1].map(|v| v as u8);
        assert_eq!(bytes([127.0, -127.0, 0.5, 1.5, -1.5, 2.5, -0.5, -0.75]), want);
    }

    #[test]
    fn scales_of_extreme_vectors() {
        let of = |max: f32| Quantiser::of(max.to_bits(), INT8_LIMIT);
        assert_eq!((of(0.0).inverse, of(0.0).scale), (0.0, 0.0));
        assert_eq!((of(254.0).inverse, of(254.0).scale), (0.5, 2.0));
        assert!(of(f32::NAN).scale.is_nan());
        assert!(of(f32::INFINITY).scale.is_infinite());
        for max in [f32::from_bits(1), f32::MIN_POSITIVE, 1e-30, f32::MAX] {
            let Quantiser { inverse, scale } = of(max);
            assert!(inverse.is_finite() && scale.is_finite() && scale > 0.0, "{max:e}");
            assert!(max * inverse <= 127.0001, "{max:e}");
        }
    }
}
