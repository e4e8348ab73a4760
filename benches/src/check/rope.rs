use tilewright_host::gpu::Driver;
use tilewright_reference::{self as reference, Floor, RopeProblem, kv_scale, split_and_rotate};

use super::{Extent, Failure, compare_bf16, finite_bf16, inputs};
use crate::{
    kernels::EPS,
    prepared::Prepared,
    problem::{KvFormat, RopeAppend},
};

/// What f32 arithmetic may be off by of a scale, or of an element before it is rounded, as a part of it.
const RELATIVE: f64 = 1e-5;

/// Cancellation in a rotation loses what f32 loses of its terms.
const FLOOR: Floor = Floor { absolute: 1e-6, ..Floor::BF16 };

pub(super) fn check<D: Driver>(
    prepared: &Prepared<'_, D>,
    problem: &RopeAppend,
    extent: Extent,
) -> Result<(), Failure> {
    let RopeAppend { tokens, q_heads, kv_heads, head_dim, page_size, kv } = *problem;
    let cols = (q_heads + 2 * kv_heads) * head_dim;
    let (positions, slots) = (prepared.integers("positions")?, prepared.integers("slots")?);
    let q_out = finite_bf16(prepared, "q_out")?;
    let keys = Cache::read(prepared, "k_cache", "k_scales", head_dim, kv)?;
    let values = Cache::read(prepared, "v_cache", "v_scales", head_dim, kv)?;
    for token in extent.of(tokens) {
        let position = positions[token] as usize;
        let problem = RopeProblem {
            qkv: &inputs(prepared, "qkv", token * cols..(token + 1) * cols)?,
            q_norm: None,
            k_norm: None,
            cos_sin: &inputs(prepared, "cos_sin", position * head_dim..(position + 1) * head_dim)?,
            positions: &[0],
            q_heads,
            kv_heads,
            head_dim,
            eps: EPS,
        };
        let (truth, plain) = (split_and_rotate::<f64>(&problem), split_and_rotate::<f32>(&problem));
        let width = q_heads * head_dim;
        let actual = &q_out[token * width..(token + 1) * width];
        compare_bf16(&format!("the queries of token {token}"), actual, &truth.q, &plain.q, FLOOR)?;
        let (page, offset) = (slots[token] as usize / page_size, slots[token] as usize % page_size);
        for head in 0..kv_heads {
            let vector = (page * kv_heads + head) * page_size + offset;
            let part = head * head_dim..(head + 1) * head_dim;
            let what = |name: &str| format!("the {name} of token {token}, head {head}");
            keys.check(&what("key"), vector, &truth.k[part.clone()], &plain.k[part.clone()])?;
            values.check(&what("value"), vector, &truth.v[part.clone()], &plain.v[part])?;
        }
    }
    Ok(())
}

/// Keys or values after the launch. Tokens needn't fill the last page: there is poison elsewhere.
struct Cache {
    bytes: Vec<u8>,
    scales: Vec<u8>,
    head_dim: usize,
    format: reference::KvFormat,
}

impl Cache {
    fn read<D: Driver>(
        prepared: &Prepared<'_, D>,
        cache: &str,
        scales: &str,
        head_dim: usize,
        kv: KvFormat,
    ) -> Result<Cache, Failure> {
        let all = |name: &str| prepared.bytes(name, 0, prepared.len_bytes(name)?);
        let format = match kv {
            KvFormat::Bf16 => reference::KvFormat::Bf16,
            KvFormat::Int8 => reference::KvFormat::Int8,
            KvFormat::Fp8 => reference::KvFormat::Fp8,
        };
        let scales = if kv == KvFormat::Bf16 { Vec::new() } else { all(scales)? };
        Ok(Cache { bytes: all(cache)?, scales, head_dim, format })
    }

    fn check(&self, what: &str, vector: usize, truth: &[f64], plain: &[f32]) -> Result<(), Failure> {
        let row = self.head_dim * self.format.element_bytes();
        let bytes = &self.bytes[vector * row..(vector + 1) * row];
        let Some(expected) = kv_scale(self.format, truth) else {
            let words = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            return compare_bf16(what, &words.collect::<Vec<_>>(), truth, plain, FLOOR);
        };
        let word = &self.scales[4 * vector..4 * vector + 4];
        let scale = f64::from(f32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        let allowed = expected * RELATIVE + FLOOR.absolute;
        if !within(scale, expected, allowed) {
            return Err(Failure::Wrong(format!("the scale of {what} is {scale:e}, expected {expected:e}")));
        }
        for (index, (&element, &truth)) in self.format.elements(bytes).iter().zip(truth).enumerate() {
            let exact = truth / scale;
            // Twice, for what is rounded the other way by as little.
            let slack = 2.0 * (RELATIVE * exact.abs() + FLOOR.absolute / scale);
            let allowed = self.format.rounding_error(exact) + slack;
            if !within(element, exact, allowed) {
                let at = format!("element {index} of {what} is {element}");
                return Err(Failure::Wrong(format!("{at}, expected {exact} within {allowed:e}")));
            }
        }
        Ok(())
    }
}

/// A NaN is within nothing.
fn within(actual: f64, expected: f64, allowed: f64) -> bool {
    (actual - expected).abs() <= allowed
}
