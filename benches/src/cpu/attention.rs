use tilewright_host::{
    AttentionSpec, Batch, CacheSpec, Device, KvDType, RopeAppend as Append,
    cpu::{CpuDevice, CpuTensor},
};
use tilewright_reference::{self as reference, AttentionProblem};

use super::operations::{PAGE, Run, compare, span, tensor, values};
use crate::Result;

/// Attention of `queries` tokens at the end of `context` cached ones.
pub(super) fn attention<'d>(
    device: &'d CpuDevice,
    name: &'static str,
    seqs: usize,
    [queries, context]: [usize; 2],
    [q_heads, kv_heads, head_dim]: [usize; 3],
    checked: bool,
) -> Result<Run<'d>> {
    let pages = context.div_ceil(PAGE);
    let dtype = KvDType::Native;
    let spec = CacheSpec { layers: 1, pages: seqs * pages, page_size: PAGE, kv_heads, head_dim, dtype };
    let mut cache = device.cache(spec)?;
    let (mut whole, mut batch) = (Batch::default(), Batch::default());
    for seq in 0..seqs {
        span(&mut whole, context, 0, seq * pages);
        span(&mut batch, queries, context - queries, seq * pages);
    }
    let heads = q_heads + 2 * kv_heads;
    let qkv = tensor(device, seqs * context, heads * head_dim, 1)?;
    let rope = device.rope(&vec![0.0; head_dim / 2], 1.0, context)?;
    let mut q = device.tensor(seqs * context, q_heads * head_dim)?;
    let append = Append { qkv: &qkv, qk_norm: None, rope: &rope, q_heads, layer: 0 };
    device.rope_append(append, &device.step(&whole)?, &mut cache, &mut q)?;
    let q = tensor(device, seqs * queries, q_heads * head_dim, 2)?;
    let step = device.step(&batch)?;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let spec = AttentionSpec { q_heads, scale, causal: true, window: None, softcap: None };
    let mut out = device.tensor(seqs * queries, q_heads * head_dim)?;
    let run = move |out: &mut CpuTensor| device.attention(&q, &cache, 0, &step, &spec, out);
    run(&mut out)?;
    if checked {
        let qkv = values(seqs * context, heads * head_dim, 1);
        // Keys and values of a head contiguous, as the oracle's pages of a whole sequence.
        let part = |first: usize| -> Vec<f32> {
            let vector = |seq: usize, head: usize, token: usize| {
                ((seq * context + token) * heads + first + head) * head_dim
            };
            let all = (0..seqs).flat_map(|seq| {
                (0..kv_heads).flat_map(move |head| (0..context).map(move |token| (seq, head, token)))
            });
            all.flat_map(|(seq, head, token)| qkv[vector(seq, head, token)..][..head_dim].to_vec()).collect()
        };
        let problem = AttentionProblem {
            q: &values(seqs * queries, q_heads * head_dim, 2),
            k_cache: &part(q_heads),
            v_cache: &part(q_heads + kv_heads),
            q_starts: &(0..=seqs).map(|seq| (seq * queries) as u32).collect::<Vec<_>>(),
            kv_lens: &vec![context as u32; seqs],
            block_table: &(0..seqs as u32).collect::<Vec<_>>(),
            block_table_stride: 1,
            page_size: context,
            q_heads,
            kv_heads,
            head_dim,
            scale,
            softcap: 0.0,
            causal: true,
            window: 0,
        };
        let (truth, plain) = (reference::attention::<f64>(&problem), reference::attention::<f32>(&problem));
        compare(name, &device.read(&out)?, &truth, &plain, head_dim)?;
    }
    Ok(Box::new(move || run(&mut out)))
}
