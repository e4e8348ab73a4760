use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use crate::Real;

/// The bits of the nearest f16 (IEEE half precision), ties to even; infinity from 65520 on.
pub fn f16_bits(value: f32) -> u16 {
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    let magnitude = f64::from(value.abs());
    if magnitude.is_nan() {
        return sign | 0x7e00;
    }
    if magnitude >= 65_520.0 {
        return sign | 0x7c00;
    }
    // The unit in the last place: 10 bits below the leading one, 2^-24 at least. Scaling by a power of two is exact.
    let exponent = floor_log2(magnitude).max(-14);
    let units = (magnitude * power_of_two(10 - exponent)).round_ties_even();
    // Of the finite, the bits count units: each exponent's 1024 follow on those of the one below. Units that were rounded up to
    // the next power of two are the next exponent's first 1024.
    let below = if exponent == -14 { 0.0 } else { f64::from(exponent + 14) * 1024.0 };
    sign | (below + units) as u16
}

/// `2^exponent`, of a normal number.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The exponent of the leading one of a magnitude; of what is not normal, less than that of any that is.
fn floor_log2(magnitude: f64) -> i32 {
    (magnitude.to_bits() >> 52) as i32 - 1023
}

/// The value of an f16.
pub fn f16_from_bits(bits: u16) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => mantissa * power_of_two(-24) as f32,
        31 if mantissa == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + mantissa / 1024.0) * power_of_two(exponent - 15) as f32,
    };
    if bits & 0x8000 == 0 { magnitude } else { -magnitude }
}

/// The nearest f16, ties to even.
pub fn round_f16(value: f32) -> f32 {
    f16_from_bits(f16_bits(value))
}

/// The numbers of the *plain f16 computation*: f32, each stored value rounded to f16.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct PlainF16(pub f32);

macro_rules! operator {
    ($($trait:ident $method:ident $op:tt),*) => {$(
        impl $trait for PlainF16 {
            type Output = PlainF16;
            fn $method(self, other: PlainF16) -> PlainF16 {
                PlainF16(self.0 $op other.0)
            }
        }
    )*};
}
operator!(Add add +, Sub sub -, Mul mul *, Div div /);

impl AddAssign for PlainF16 {
    fn add_assign(&mut self, other: PlainF16) {
        self.0 += other.0;
    }
}

impl Neg for PlainF16 {
    type Output = PlainF16;
    fn neg(self) -> PlainF16 {
        PlainF16(-self.0)
    }
}

impl Real for PlainF16 {
    const ZERO: PlainF16 = PlainF16(0.0);
    fn of(value: f32) -> PlainF16 {
        PlainF16(value)
    }
    fn of_f64(value: f64) -> PlainF16 {
        PlainF16(value as f32)
    }
    fn to_f64(self) -> f64 {
        f64::from(self.0)
    }
    fn stored(self) -> PlainF16 {
        PlainF16(round_f16(self.0))
    }
    fn exp(self) -> PlainF16 {
        PlainF16(self.0.exp())
    }
    fn sqrt(self) -> PlainF16 {
        PlainF16(self.0.sqrt())
    }
    fn tanh(self) -> PlainF16 {
        PlainF16(self.0.tanh())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_survives_rounding() {
        for bits in 0..=u16::MAX {
            let value = f16_from_bits(bits);
            assert!(value.is_nan() || f16_bits(value) == bits, "{bits:#06x}");
        }
        assert!(round_f16(f32::NAN).is_nan());
    }

    #[test]
    fn halfway_goes_to_the_even_neighbour_and_the_rest_to_the_nearer() {
        for bits in 0..0x7bff_u16 {
            let (low, high) = (f16_from_bits(bits), f16_from_bits(bits + 1));
            let middle = low + (high - low) / 2.0;
            assert_eq!(f16_bits(middle), bits + bits % 2, "{bits:#06x}");
            assert_eq!(f16_bits(f32::from_bits(middle.to_bits() + 1)), bits + 1);
            assert_eq!(f16_bits(f32::from_bits(middle.to_bits() - 1)), bits);
        }
        assert_eq!((f16_bits(65_519.0), f16_bits(65_520.0)), (0x7bff, 0x7c00));
        assert_eq!(f16_bits(-1.0), 0xbc00);
    }
}
