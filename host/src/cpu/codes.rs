//! Keys and values of eight bits: quantised a vector at a time when they are appended, widened a tile at a time when they are read.
//!
//! Keys stand in panels of up to sixteen tokens of a page, `[head_dim, tokens of the panel]`, so that reading them needs no
//! transposition; the last panel of a page is as narrow as its tokens, so that nothing is padded. Values are rows. A vector's code
//! and scale depend on that vector alone: what a query meets doesn't depend on how a prompt was cut.
use std::ops::Range;

use super::attention_tile::TILE_PANELS;
use super::buffer::Buffer;
use super::cache::Layout;
use super::isa::{Isa, Kernel, LANES};
use super::layers::{MAX_HEAD_DIM, RopeArgs, rotate};
use super::parallel::Shared;
use crate::{KvDType, Result};

/// The least magnitude that a vector's largest counts as: a smaller one would have an inverse past the largest f32.
const LEAST: f32 = f32::from_bits((127 - 110) << 23);
/// Largest magnitude of an int8 element.
const INT8_LIMIT: f32 = 127.0;
/// Largest finite e4m3.
const E4M3_LIMIT: f32 = 448.0;

/// One of a layer's keys and values.
pub(super) struct Codes {
    /// `[pages, kv_heads, page_size, head_dim]`, keys in panels.
    pub(super) codes: Buffer<u8>,
    /// `[pages, kv_heads, page_size]`.
    pub(super) scales: Buffer<f32>,
}

impl Codes {
    pub(super) fn new(layout: Layout, purpose: &'static str) -> Result<Self> {
        let spec = layout.spec;
        let vectors = [spec.pages, spec.kv_heads, spec.page_size];
        let codes = Buffer::zeroed(&[&vectors[..], &[spec.head_dim]].concat(), purpose)?;
        Ok(Codes { codes, scales: Buffer::zeroed(&vectors, purpose)? })
    }

    pub(super) fn bytes(&self) -> usize {
        self.codes.bytes() + self.scales.bytes()
    }

    pub(super) fn copy_page(&mut self, layout: Layout, from: usize, to: usize) {
        let vectors = layout.vector(1, 0, 0);
        let codes = vectors * layout.spec.head_dim;
        self.codes.copy_within(from * codes..(from + 1) * codes, to * codes);
        self.scales.copy_within(from * vectors..(from + 1) * vectors, to * vectors);
    }
}

impl Layout {
    /// The number of a token's vector of a head.
    #[inline(always)]
    fn vector(&self, page: usize, head: usize, offset: usize) -> usize {
        (page * self.spec.kv_heads + head) * self.spec.page_size + offset
    }

    /// Where a key's codes start, and how many tokens its panel has: how far apart they are.
    #[inline(always)]
    fn key_codes(&self, page: usize, head: usize, offset: usize) -> (usize, usize) {
        let first = offset / LANES * LANES;
        let width = LANES.min(self.spec.page_size - first);
        (self.vector(page, head, first) * self.spec.head_dim + offset - first, width)
    }

    /// Where a value's codes start.
    #[inline(always)]
    fn value_codes(&self, page: usize, head: usize, offset: usize) -> usize {
        self.vector(page, head, offset) * self.spec.head_dim
    }
}

/// Gives `put` the code of each element, and returns the vector's scale. A NaN ends up in the scale, where nobody misses it.
#[inline(always)]
fn quantise(is_int8: bool, x: &[f32], mut put: impl FnMut(usize, u8)) -> f32 {
    // Compared as integers, magnitudes are ordered as floats and a NaN is above all.
    let max = x.iter().fold(0, |max: u32, x| max.max(x.to_bits() & 0x7fff_ffff));
    let limit = if is_int8 { INT8_LIMIT } else { E4M3_LIMIT };
    let (inverse, scale) = match max {
        0 => (0.0, 0.0),
        _ => {
            let max = f32::from_bits(max.max(LEAST.to_bits()));
            (limit / max, max / limit)
        }
    };
    for (index, x) in x.iter().enumerate() {
        let scaled = x * inverse;
        put(index, if is_int8 { scaled.round_ties_even() as i8 as u8 } else { e4m3(scaled) });
    }
    scale
}

/// The nearest e4m3 (1 sign, 4 exponent and 3 mantissa bits, bias 7, no infinities), ties to even, at most 448; a NaN is 448 too.
///
/// Source: Micikevicius et al., "FP8 formats for deep learning", 2022, section 3.
#[inline(always)]
fn e4m3(x: f32) -> u8 {
    /// Below it elements are multiples of 2^-9.
    const SMALLEST_NORMAL: f32 = 1.0 / 64.0;
    let magnitude = x.abs().min(E4M3_LIMIT);
    let code = if magnitude < SMALLEST_NORMAL {
        (magnitude * 512.0).round_ties_even() as u32
    } else {
        // Twenty bits go, rounded to the nearest, ties to where the last one kept is 0; exponents differ by 120.
        let bits = magnitude.to_bits();
        ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20) - (120 << 3)
    };
    code as u8 | (x.to_bits() >> 24) as u8 & 0x80
}

/// The value of a code. An e4m3's exponent is an f32's less 120: its bits in an f32's place are 2^120 too small, subnormals too.
#[inline(always)]
fn value(is_int8: bool, code: u8) -> f32 {
    const E4M3_UNIT: f32 = f32::from_bits((127 + 120) << 23);
    if is_int8 {
        return f32::from(code as i8);
    }
    f32::from_bits(u32::from(code & 0x80) << 24 | u32::from(code & 0x7f) << 20) * E4M3_UNIT
}

/// Appends rotated keys and values of some heads.
pub(super) struct AppendCodes<'a> {
    pub(super) args: &'a RopeArgs<'a>,
    pub(super) layout: Layout,
    /// Codes and scales of keys and of values.
    pub(super) keys: (Shared<u8>, Shared<f32>),
    pub(super) values: (Shared<u8>, Shared<f32>),
    pub(super) heads: Range<usize>,
}

impl Kernel for AppendCodes<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (args, spec, layout) = (self.args, self.layout.spec, self.layout);
        let is_int8 = spec.dtype == KvDType::Int8;
        let norm = args.norms.map(|(_, k_norm, eps)| (k_norm, eps));
        // The device refuses larger heads.
        let mut rotated = [0.0; MAX_HEAD_DIM];
        let rotated = &mut rotated[..spec.head_dim];
        for (token, &slot) in args.slots.iter().enumerate() {
            let (page, offset) = (slot as usize / spec.page_size, slot as usize % spec.page_size);
            for head in self.heads.clone() {
                let k_at = (args.q_heads + head) * spec.head_dim;
                let v_at = k_at + spec.kv_heads * spec.head_dim;
                let row = args.qkv.row(token);
                rotate(isa, args, token, norm, &row[k_at..k_at + spec.head_dim], rotated);
                let (key, width) = layout.key_codes(page, head, offset);
                let value = layout.value_codes(page, head, offset);
                let vector = layout.vector(page, head, offset);
                // SAFETY: slots were checked to be within the cache; a head's part of it is one task's.
                unsafe {
                    let (codes, scales) = self.keys;
                    *scales.at(vector) =
                        quantise(is_int8, rotated, |i, code| *codes.at(key + i * width) = code);
                    let (codes, scales) = self.values;
                    let x = &row[v_at..v_at + spec.head_dim];
                    *scales.at(vector) = quantise(is_int8, x, |i, code| *codes.at(value + i) = code);
                }
            }
        }
    }
}

/// Keys `tile` of a sequence's head, in f32.
pub(super) struct Tile<'a> {
    pub(super) layout: Layout,
    pub(super) keys: &'a Codes,
    pub(super) values: &'a Codes,
    pub(super) head: usize,
    /// The sequence's pages.
    pub(super) pages: &'a [u32],
    pub(super) tile: Range<usize>,
}

impl Tile<'_> {
    /// Widens keys into `[TILE_PANELS, head_dim, 16]`, and values into `[TILE_KEYS, head_dim padded]`, whose padding is 0. Lanes past
    /// the last key are left as they are, or hold what is behind it in its page.
    #[inline(always)]
    pub(super) fn widen(&self, k_tile: &mut [f32], v_tile: &mut [f32]) {
        match self.layout.spec.dtype {
            KvDType::Int8 => self.widen_as::<true>(k_tile, v_tile),
            _ => self.widen_as::<false>(k_tile, v_tile),
        }
    }

    #[inline(always)]
    fn widen_as<const IS_INT8: bool>(&self, k_tile: &mut [f32], v_tile: &mut [f32]) {
        let (layout, head) = (self.layout, self.head);
        let (page_size, head_dim, v_dim) =
            (layout.spec.page_size, layout.spec.head_dim, layout.value_stride());
        for panel in 0..TILE_PANELS {
            let first = self.tile.start + panel * LANES;
            let end = (first + LANES).min(self.tile.end);
            if first >= end {
                break;
            }
            let k_out = &mut k_tile[panel * head_dim * LANES..][..head_dim * LANES];
            let (page, offset) = (self.pages[first / page_size] as usize, first % page_size);
            let (start, width) = layout.key_codes(page, head, offset);
            if offset.is_multiple_of(LANES) && width == LANES {
                let scales = &self.keys.scales[layout.vector(page, head, offset)..][..LANES];
                let codes = &self.keys.codes[start..][..head_dim * LANES];
                let rows = codes.as_chunks::<LANES>().0.iter().zip(k_out.as_chunks_mut::<LANES>().0);
                for (codes, out) in rows {
                    for lane in 0..LANES {
                        out[lane] = value(IS_INT8, codes[lane]) * scales[lane];
                    }
                }
            }
            for key in first..end {
                let (page, offset) = (self.pages[key / page_size] as usize, key % page_size);
                let vector = layout.vector(page, head, offset);
                if width < LANES || !(first % page_size).is_multiple_of(LANES) {
                    let (start, width) = layout.key_codes(page, head, offset);
                    let scale = self.keys.scales[vector];
                    for i in 0..head_dim {
                        k_out[i * LANES + key - first] =
                            value(IS_INT8, self.keys.codes[start + i * width]) * scale;
                    }
                }
                let scale = self.values.scales[vector];
                let codes = &self.values.codes[layout.value_codes(page, head, offset)..][..head_dim];
                let out = &mut v_tile[(key - self.tile.start) * v_dim..][..v_dim];
                let (out, padding) = out.split_at_mut(head_dim);
                out.iter_mut().zip(codes).for_each(|(out, &code)| *out = value(IS_INT8, code) * scale);
                padding.fill(0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition of the format.
    fn e4m3_value(code: u8) -> f64 {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
        let magnitude = match exponent {
            0 => mantissa * 2f64.powi(-9),
            _ => (8.0 + mantissa) * 2f64.powi(exponent - 10),
        };
        if code < 0x80 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_e4m3_and_every_midpoint_convert_to_the_nearest() {
        for code in 0..0x7eu8 {
            let (low, high) = (e4m3_value(code), e4m3_value(code + 1));
            assert_eq!(f64::from(value(false, code)), low);
            assert_eq!((e4m3(low as f32), e4m3(-low as f32)), (code, code | 0x80));
            let middle = ((low + high) / 2.0) as f32;
            let even = code + (code & 1);
            assert_eq!(e4m3(middle), even, "{middle}");
            assert_eq!(e4m3(middle.next_down()), code, "below {middle}");
            assert_eq!(e4m3(middle.next_up()), code + 1, "above {middle}");
        }
        assert_eq!([449.0, 1e9, f32::INFINITY, -1e9].map(e4m3), [0x7e, 0x7e, 0x7e, 0xfe]);
    }

    #[test]
    fn scales_bring_the_largest_to_the_largest() {
        let quantised = |is_int8, x: &[f32]| {
            let mut codes = vec![0; x.len()];
            let scale = quantise(is_int8, x, |index, code| codes[index] = code);
            (codes, scale)
        };
        assert_eq!(quantised(true, &[254.0, -1.0, 3.0, -254.0]), (vec![127, 0, 2, 0x81], 2.0));
        assert_eq!(quantised(false, &[896.0, -2.0]), (vec![0x7e, 0xb8], 2.0));
        assert_eq!(quantised(true, &[0.0, -0.0]), (vec![0, 0], 0.0));
        assert!(quantised(true, &[1.0, f32::NAN]).1.is_nan() && quantised(false, &[-f32::NAN]).1.is_nan());
        // The smallest f32 is far below what an element of the least scale can be.
        assert_eq!(quantised(true, &[f32::from_bits(1)]), (vec![0], LEAST / 127.0));
    }
}
