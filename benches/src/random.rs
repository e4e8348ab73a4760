//! Inputs as functions of a seed and an index, so that the oracle knows an element of a gigabyte without keeping it.

use std::sync::LazyLock;

use rayon::prelude::*;
use tilewright_kernels::gemm_few::layout;
use tilewright_reference::{bf16_bits, bf16_from_bits, f16_bits, f16_from_bits};

/// Sums of four bytes range over this many values.
const LEVELS: usize = 4 * 255 + 1;
/// Standard deviation of a sum of four bytes.
const DEVIATION: f64 = 147.8;

/// The element kinds that inputs are drawn in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Close to normal, deviation 1.
    Bf16,
    /// Close to normal, deviation 1.
    F16,
    /// Close to normal, deviation 1.
    F32,
    /// Close to normal, from -127 to 127.
    I8,
    /// e4m3, close to normal, deviation 64.
    Fp8,
    /// f32 from 0.01 to 0.02: scales of quantised vectors.
    Scale,
    /// Bytes of pieces of 4-bit weights (`gemm_few::layout`) in one group each: nibbles all alike, bf16 scales from 0.01 to 0.02.
    Int4Piece,
}

/// Bytes of a piece of [`Kind::Int4Piece`].
pub const INT4_PIECE_BYTES: usize = layout::piece_bytes(1, false) as usize;

impl Kind {
    /// Bytes an element.
    pub fn bytes(self) -> usize {
        match self {
            Kind::Bf16 | Kind::F16 => 2,
            Kind::F32 | Kind::Scale => 4,
            Kind::I8 | Kind::Fp8 | Kind::Int4Piece => 1,
        }
    }
}

/// One buffer's random contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Random {
    /// What the elements are.
    pub kind: Kind,
    /// Other seeds give other contents.
    pub seed: u64,
}

/// Every level as each kind stores it.
struct Tables {
    bf16: Vec<u16>,
    f16: Vec<u16>,
    fp8: Vec<u8>,
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| Tables {
    bf16: (0..LEVELS).map(|level| bf16_bits(normal(level))).collect(),
    f16: (0..LEVELS).map(|level| f16_bits(normal(level))).collect(),
    fp8: (0..LEVELS).map(|level| nearest_e4m3(64.0 * normal(level))).collect(),
});

fn normal(level: usize) -> f32 {
    ((level as f64 - 510.0) / DEVIATION) as f32
}

/// The value of an e4m3 byte: bias 7, no infinities.
pub fn e4m3_value(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2f32.powi(-6),
        15 if byte & 7 == 7 => f32::NAN,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The e4m3 byte nearest to a value.
fn nearest_e4m3(value: f32) -> u8 {
    let distance = |byte: u8| (e4m3_value(byte) - value).abs();
    let finite = (0..=255u8).filter(|byte| byte & 0x7f != 0x7f);
    finite.min_by(|&a, &b| distance(a).total_cmp(&distance(b))).unwrap_or(0)
}

/// SplitMix64's output function.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Sum of the four bytes.
fn level(word: u32) -> usize {
    word.to_le_bytes().iter().map(|&byte| usize::from(byte)).sum()
}

impl Random {
    fn word(&self, index: usize) -> u32 {
        let pair =
            mix(self.seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index as u64 / 2));
        if index.is_multiple_of(2) { pair as u32 } else { (pair >> 32) as u32 }
    }

    /// Element `index` as a kernel sees it, scales not applied.
    pub fn value(&self, index: usize) -> f32 {
        let word = self.word(index);
        match self.kind {
            Kind::Bf16 => bf16_from_bits(TABLES.bf16[level(word)]),
            Kind::F16 => f16_from_bits(TABLES.f16[level(word)]),
            Kind::F32 => normal(level(word)),
            Kind::I8 => f32::from(to_i8(word)),
            Kind::Fp8 => e4m3_value(TABLES.fp8[level(word)]),
            Kind::Int4Piece => f32::from(self.int4_piece_byte(index)),
            Kind::Scale => 0.01 + 0.01 * (word >> 8) as f32 / (1 << 24) as f32,
        }
    }

    /// The nibbles are random bytes; a scale's two bytes are those of 0.01 times one to two.
    fn int4_piece_byte(&self, index: usize) -> u8 {
        let at = index % INT4_PIECE_BYTES;
        if at < layout::NIBBLE_BYTES as usize {
            return self.word(index) as u8;
        }
        let scale = 0.01 + 0.01 * (self.word(index / 2 * 2) >> 8) as f32 / (1 << 24) as f32;
        bf16_bits(scale).to_le_bytes()[at % 2]
    }

    /// Elements `first..first + out.len() / bytes`, as they lie in memory.
    pub fn fill(&self, first: usize, out: &mut [u8]) {
        const BLOCK_ELEMS: usize = 1 << 16;
        let bytes = self.kind.bytes();
        let tables = &*TABLES;
        out.par_chunks_mut(BLOCK_ELEMS * bytes).enumerate().for_each(|(block, out)| {
            let first = first + block * BLOCK_ELEMS;
            for (index, element) in out.chunks_exact_mut(bytes).enumerate() {
                let index = first + index;
                match self.kind {
                    Kind::Bf16 => {
                        element.copy_from_slice(&tables.bf16[level(self.word(index))].to_le_bytes());
                    }
                    Kind::F16 => {
                        element.copy_from_slice(&tables.f16[level(self.word(index))].to_le_bytes());
                    }
                    Kind::I8 => element[0] = to_i8(self.word(index)) as u8,
                    Kind::Fp8 => element[0] = tables.fp8[level(self.word(index))],
                    Kind::Int4Piece => element[0] = self.int4_piece_byte(index),
                    Kind::F32 | Kind::Scale => element.copy_from_slice(&self.value(index).to_le_bytes()),
                }
            }
        });
    }
}

fn to_i8(word: u32) -> i8 {
    ((level(word) as i32 - 510) / 4) as i8
}

/// A number below `below`, which is above 0.
pub fn draw(seed: u64, below: usize) -> usize {
    (mix(seed.wrapping_add(1).wrapping_mul(0xd1b5_4a32_d192_ed03)) % below as u64) as usize
}

/// The numbers below `count` in random order.
pub fn shuffled(count: usize, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    for i in (1..count).rev() {
        order.swap(i, draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(i as u64), i + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_values_agree() {
        for kind in [Kind::Bf16, Kind::F16, Kind::F32, Kind::I8, Kind::Fp8, Kind::Scale] {
            let random = Random { kind, seed: 7 };
            let mut bytes = vec![0; 1000 * kind.bytes()];
            random.fill(123, &mut bytes);
            for (index, element) in bytes.chunks_exact(kind.bytes()).enumerate() {
                let stored = match *element {
                    [a, b] if kind == Kind::F16 => f16_from_bits(u16::from_le_bytes([a, b])),
                    [a, b] => bf16_from_bits(u16::from_le_bytes([a, b])),
                    [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                    [a] if kind == Kind::I8 => f32::from(a as i8),
                    [a] => e4m3_value(a),
                    _ => unreachable!("no such element"),
                };
                assert_eq!(stored, random.value(123 + index), "{kind:?}");
            }
        }
    }

    #[test]
    fn values_are_spread_as_stated() {
        let random = Random { kind: Kind::Bf16, seed: 3 };
        let values: Vec<f64> = (0..100_000).map(|index| f64::from(random.value(index))).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "mean {mean}, variance {variance}");
        let other = Random { seed: 4, ..random };
        let same = (0..1000).filter(|&index| random.value(index) == other.value(index)).count();
        assert!(same < 50, "{same} of 1000 values are those of another seed");
    }

    #[test]
    fn e4m3_has_its_known_values() {
        assert_eq!(e4m3_value(0x7e), 448.0);
        assert_eq!(e4m3_value(0x38), 1.0);
        assert_eq!(e4m3_value(0x01), 2f32.powi(-9));
        assert_eq!(e4m3_value(0xb8), -1.0);
        assert!(e4m3_value(0x7f).is_nan());
        assert_eq!(nearest_e4m3(447.0), 0x7e);
        assert_eq!(e4m3_value(nearest_e4m3(-0.3)), -0.3125);
    }

    #[test]
    fn a_shuffle_is_a_permutation() {
        let mut order = shuffled(1000, 5);
        assert_ne!(order, shuffled(1000, 6));
        order.sort_unstable();
        assert!(order.iter().enumerate().all(|(index, &page)| index == page as usize));
    }
}
