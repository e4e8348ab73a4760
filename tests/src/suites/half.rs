//! 16-bit floats.

use tilewright_reference::{Floor, bf16_bits, bf16_from_bits, f16_bits, f16_from_bits};

use crate::{agreement::Scalar, random::Random};

/// One of their formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Bf16,
    F16,
}

impl Half {
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        let bits = if self == Half::Bf16 { bf16_bits } else { f16_bits };
        values.iter().flat_map(|&value| bits(value).to_le_bytes()).collect()
    }

    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let value = if self == Half::Bf16 { bf16_from_bits } else { f16_from_bits };
        bytes.as_chunks().0.iter().map(|&pair| value(u16::from_le_bytes(pair))).collect()
    }

    /// The nearest one.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Half::Bf16 => bf16_from_bits(bf16_bits(value)),
            Half::F16 => f16_from_bits(f16_bits(value)),
        }
    }

    /// Values that it holds exactly.
    pub fn random(self, random: &mut Random, count: usize, deviation: f32) -> Vec<f32> {
        (0..count).map(|_| self.round(random.normal(deviation))).collect()
    }

    pub fn floor(self) -> Floor {
        if self == Half::Bf16 { Floor::BF16 } else { Floor::F16 }
    }

    pub fn scalar(self) -> Scalar {
        if self == Half::Bf16 { Scalar::Bf16 } else { Scalar::F16 }
    }
}
