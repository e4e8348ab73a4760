use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// The numbers an operation is defined over: `f64` for the truth, `f32` for the plain bf16 computation.
pub trait Real:
    Copy
    + PartialOrd
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    const ZERO: Self;
    fn of(value: f32) -> Self;
    fn of_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    /// What is left of a value that is stored: a bf16 in the plain computation, everything in the truth.
    fn stored(self) -> Self;
    fn exp(self) -> Self;
    fn sqrt(self) -> Self;
    fn tanh(self) -> Self;
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    fn of(value: f32) -> f64 {
        f64::from(value)
    }
    fn of_f64(value: f64) -> f64 {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn stored(self) -> f64 {
        self
    }
    fn exp(self) -> f64 {
        f64::exp(self)
    }
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    fn tanh(self) -> f64 {
        f64::tanh(self)
    }
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    fn of(value: f32) -> f32 {
        value
    }
    fn of_f64(value: f64) -> f32 {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn stored(self) -> f32 {
        round_bf16(self)
    }
    fn exp(self) -> f32 {
        f32::exp(self)
    }
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    fn tanh(self) -> f32 {
        f32::tanh(self)
    }
}

/// The nearest bf16, ties to even.
pub fn round_bf16(value: f32) -> f32 {
    bf16_from_bits(bf16_bits(value))
}

/// The bits of the nearest bf16, ties to even; a NaN stays a NaN.
pub fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return ((bits >> 16) as u16) | 0x0040;
    }
    let round_up = u32::from(bits & 0x8000 != 0 && bits & 0x1_7fff != 0);
    ((bits >> 16) + round_up) as u16
}

/// The value of a bf16.
pub fn bf16_from_bits(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bf16_survives_rounding() {
        for bits in 0..=u16::MAX {
            let value = bf16_from_bits(bits);
            assert!(value.is_nan() || bf16_bits(value) == bits, "{bits:#06x}");
            assert!(!value.is_nan() || round_bf16(value).is_nan());
        }
    }

    #[test]
    fn ties_go_to_even_and_the_rest_to_the_nearest() {
        assert_eq!(bf16_bits(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(bf16_bits(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(bf16_bits(f32::from_bits(0x3f80_8001)), 0x3f81);
        assert_eq!(bf16_bits(f32::from_bits(0x3f80_7fff)), 0x3f80);
        assert_eq!(bf16_bits(f32::MAX), 0x7f80);
    }
}
