use tilewright_host::gpu::Driver;
use tilewright_reference::{Floor, RopeProblem, split_and_rotate};

use super::{Extent, Failure, compare_bf16, finite_bf16, inputs};
use crate::{kernels::EPS, prepared::Prepared, problem::RopeAppend};

pub(super) fn check<D: Driver>(
    prepared: &Prepared<'_, D>,
    problem: &RopeAppend,
    extent: Extent,
) -> Result<(), Failure> {
    let RopeAppend { tokens, q_heads, kv_heads, head_dim, page_size, .. } = *problem;
    let cols = (q_heads + 2 * kv_heads) * head_dim;
    let (positions, slots) = (prepared.integers("positions")?, prepared.integers("slots")?);
    let q_out = finite_bf16(prepared, "q_out")?;
    // Tokens needn't fill the last page, so the caches may hold poison elsewhere.
    let caches = [bf16_bits(prepared, "k_cache")?, bf16_bits(prepared, "v_cache")?];
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
        // Cancellation in a rotation loses what f32 loses of its terms.
        let floor = Floor::BF16.with_absolute(1e-6);
        let width = q_heads * head_dim;
        let actual = &q_out[token * width..(token + 1) * width];
        compare_bf16(&format!("the queries of token {token}"), actual, &truth.q, &plain.q, floor)?;
        let (page, offset) = (slots[token] as usize / page_size, slots[token] as usize % page_size);
        for (name, cache, truth, plain) in
            [("key", &caches[0], &truth.k, &plain.k), ("value", &caches[1], &truth.v, &plain.v)]
        {
            for head in 0..kv_heads {
                let first = ((page * kv_heads + head) * page_size + offset) * head_dim;
                let part = head * head_dim..(head + 1) * head_dim;
                let what = format!("the {name} of token {token}, head {head}");
                let actual = &cache[first..first + head_dim];
                compare_bf16(&what, actual, &truth[part.clone()], &plain[part], floor)?;
            }
        }
    }
    Ok(())
}

fn bf16_bits<D: Driver>(prepared: &Prepared<'_, D>, name: &str) -> Result<Vec<u16>, Failure> {
    let bytes = prepared.bytes(name, 0, prepared.len_bytes(name)?)?;
    Ok(bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect())
}
