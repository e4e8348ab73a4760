use rayon::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_reference::{AttentionProblem, Floor, attention};

use super::{Extent, Failure, compare_bf16, finite_bf16, inputs};
use crate::{
    prepared::Prepared,
    problem::{Decode, Prefill},
};

/// What both shapes of attention have in common.
struct Shape {
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    page_size: usize,
    /// Of the block table.
    pages: usize,
}

/// A query: its row in `q` and `out`, its sequence and the keys it sees.
struct Query {
    row: usize,
    head: usize,
    seq: usize,
    visible: usize,
}

pub(super) fn prefill<D: Driver>(
    prepared: &Prepared<'_, D>,
    problem: &Prefill,
    extent: Extent,
) -> Result<(), Failure> {
    let Prefill { seqs, seq_len, q_heads, kv_heads, head_dim, causal, .. } = *problem;
    let page_size = problem.page_tokens();
    let pages = seq_len.div_ceil(page_size);
    let shape = Shape { q_heads, kv_heads, head_dim, page_size, pages };
    let queries = extent.of(seqs * seq_len * q_heads).into_iter().map(|vector| {
        let (row, head) = (vector / q_heads, vector % q_heads);
        let visible = if causal { row % seq_len + 1 } else { seq_len };
        Query { row, head, seq: row / seq_len, visible }
    });
    check(prepared, &shape, queries)
}

pub(super) fn decode<D: Driver>(
    prepared: &Prepared<'_, D>,
    problem: &Decode,
    extent: Extent,
) -> Result<(), Failure> {
    let Decode { seqs, context, q_heads, kv_heads, head_dim, page_size, .. } = *problem;
    let shape = Shape { q_heads, kv_heads, head_dim, page_size, pages: context.div_ceil(page_size) };
    let queries = extent.of(seqs * q_heads).into_iter().map(|vector| {
        let (row, head) = (vector / q_heads, vector % q_heads);
        Query { row, head, seq: row, visible: context }
    });
    check(prepared, &shape, queries)
}

fn check<D: Driver>(
    prepared: &Prepared<'_, D>,
    shape: &Shape,
    queries: impl Iterator<Item = Query>,
) -> Result<(), Failure> {
    let out = finite_bf16(prepared, "out")?;
    for query in queries {
        let kv_head = query.head * shape.kv_heads / shape.q_heads;
        let k = gather(prepared, shape, ["k_cache", "k_scale"], &query, kv_head)?;
        let v = gather(prepared, shape, ["v_cache", "v_scale"], &query, kv_head)?;
        let first = (query.row * shape.q_heads + query.head) * shape.head_dim;
        let vector = first..first + shape.head_dim;
        // One query of one head over the keys it sees, contiguous.
        let problem = AttentionProblem {
            q: &inputs(prepared, "q", vector.clone())?,
            k_cache: &k,
            v_cache: &v,
            q_starts: &[0, 1],
            kv_lens: &[query.visible as u32],
            block_table: &[0],
            block_table_stride: 1,
            page_size: query.visible,
            q_heads: 1,
            kv_heads: 1,
            head_dim: shape.head_dim,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            softcap: 0.0,
            causal: true,
            window: 0,
        };
        let (truth, plain) = (attention::<f64>(&problem), attention::<f32>(&problem));
        let name = format!("row {} of head {}", query.row, query.head);
        compare_bf16(&name, &out[vector], &truth, &plain, Floor::BF16)?;
    }
    Ok(())
}

/// The keys or values that a query sees, `[visible, head_dim]`, scales applied where there are any.
fn gather<D: Driver>(
    prepared: &Prepared<'_, D>,
    shape: &Shape,
    [cache, scales]: [&str; 2],
    query: &Query,
    kv_head: usize,
) -> Result<Vec<f32>, Failure> {
    let table = prepared.integers("block_table")?;
    let (cache, scales) = (prepared.elements(cache)?, prepared.elements(scales).ok());
    let mut gathered = vec![0.0; query.visible * shape.head_dim];
    gathered.par_chunks_mut(shape.head_dim).enumerate().for_each(|(key, out)| {
        let page = table[query.seq * shape.pages + key / shape.page_size] as usize;
        let vector = (page * shape.kv_heads + kv_head) * shape.page_size + key % shape.page_size;
        let scale = scales.map_or(1.0, |scales| scales.value(vector));
        for (index, out) in out.iter_mut().enumerate() {
            *out = scale * cache.value(vector * shape.head_dim + index);
        }
    });
    Ok(gathered)
}
