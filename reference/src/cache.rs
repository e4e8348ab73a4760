use crate::{bf16_bits, bf16_from_bits};

/// How elements lie in a cache of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvFormat {
    Bf16,
    /// -127 to 127, times the vector's scale.
    Int8,
    /// fp8 e4m3, times the vector's scale.
    Fp8,
}

impl KvFormat {
    pub fn element_bytes(self) -> usize {
        if self == KvFormat::Bf16 { 2 } else { 1 }
    }

    /// The element that a vector's largest magnitude becomes; none without scales.
    pub fn largest(self) -> Option<f64> {
        match self {
            KvFormat::Bf16 => None,
            KvFormat::Int8 => Some(127.0),
            KvFormat::Fp8 => Some(448.0),
        }
    }

    /// The values of elements in memory, before any scale.
    pub fn elements(self, bytes: &[u8]) -> Vec<f64> {
        match self {
            KvFormat::Bf16 => {
                let bits = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
                bits.map(|bits| f64::from(bf16_from_bits(bits))).collect()
            }
            KvFormat::Int8 => bytes.iter().map(|&byte| f64::from(byte as i8)).collect(),
            KvFormat::Fp8 => bytes.iter().map(|&byte| e4m3_value(byte)).collect(),
        }
    }

    /// What a vector's elements in memory mean under its scale, as bf16 bits: the exact product, rounded to f32 and then to bf16, as a
    /// product of f32 is that is stored.
    pub fn widened(self, bytes: &[u8], scale: f32) -> Vec<u16> {
        let products = self.elements(bytes).into_iter().map(|element| element * f64::from(scale));
        products.map(|product| bf16_bits(product as f32)).collect()
    }

    /// How far `value` is from the nearest element there is.
    pub fn rounding_error(self, value: f64) -> f64 {
        let codes: Vec<u8> = (0..=u8::MAX).filter(|&code| self != KvFormat::Int8 || code != 0x80).collect();
        let distances = self.elements(&codes).into_iter().map(|element| (element - value).abs());
        distances.filter(|distance| !distance.is_nan()).fold(f64::INFINITY, f64::min)
    }
}

/// The value of an fp8 e4m3: 1 sign, 4 exponent (bias 7) and 3 mantissa bits; all ones is NaN, there are no infinities.
pub fn e4m3_value(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 0xf), f64::from(code & 0x7));
    let magnitude = match (exponent, code & 0x7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if code < 0x80 { magnitude } else { -magnitude }
}

/// The scale of a vector: its largest magnitude, but at least 2^-110, over the format's largest element; 0 for zeros. None for a
/// format without scales.
pub fn kv_scale(format: KvFormat, vector: &[f64]) -> Option<f64> {
    let largest = format.largest()?;
    let most = vector.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
    Some(if most == 0.0 { 0.0 } else { most.max(2f64.powi(-110)) / largest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_has_the_values_of_its_definition() {
        let values =
            [(0x00, 0.0), (0x01, 0.001953125), (0x08, 0.015625), (0x38, 1.0), (0x7e, 448.0), (0xb8, -1.0)];
        for (code, value) in values {
            assert_eq!(e4m3_value(code), value, "{code:#04x}");
        }
        assert!(e4m3_value(0x7f).is_nan() && e4m3_value(0xff).is_nan());
    }

    #[test]
    fn rounding_errors_are_half_a_step_at_most() {
        assert_eq!(KvFormat::Int8.rounding_error(3.25), 0.25);
        assert_eq!(KvFormat::Int8.rounding_error(-128.0), 1.0);
        assert_eq!(KvFormat::Fp8.rounding_error(17.0), 1.0);
        assert_eq!(KvFormat::Fp8.rounding_error(500.0), 52.0);
    }

    #[test]
    fn widened_elements_are_rounded_products() {
        // 3 * 85.5 = 256.5, between the bf16 256 and 258; -127 * 0.5 is one itself.
        assert_eq!(KvFormat::Int8.widened(&[3], 85.5), [bf16_bits(256.0)]);
        assert_eq!(KvFormat::Int8.widened(&[0x81, 0], 0.5), [bf16_bits(-63.5), 0]);
        assert_eq!(KvFormat::Fp8.widened(&[0x7e, 0x80], 2.0), [bf16_bits(896.0), 0x8000]);
    }

    #[test]
    fn scales_bring_the_largest_to_the_largest() {
        assert_eq!(kv_scale(KvFormat::Int8, &[0.5, -254.0]), Some(2.0));
        assert_eq!(kv_scale(KvFormat::Fp8, &[0.0, -0.0]), Some(0.0));
        assert_eq!(kv_scale(KvFormat::Bf16, &[1.0]), None);
    }
}
