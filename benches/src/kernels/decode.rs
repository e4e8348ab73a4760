use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_kernels::{
    abi,
    attention_combine::ATTENTION_COMBINE,
    attention_decode::{HD64, HD128},
};

use super::Kernel;
use crate::{
    prepared::Prepared,
    problem::{Decode, KvFormat, Problem},
    random::{Kind, shuffled},
};

/// Keys of a chunk, as the GPU device launches it.
const SPLIT_TOKENS: usize = 256;

/// Split over the keys, `mma.sync` and `cp.async`, then the combine.
pub struct Baseline;

impl<D: Driver> Kernel<D> for Baseline {
    fn name(&self) -> &'static str {
        "attention_decode"
    }

    fn takes(&self, problem: &Problem, _: &GpuInfo) -> bool {
        matches!(problem, Problem::Decode(Decode { head_dim: 64 | 128, kv: KvFormat::Bf16, .. }))
    }

    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>> {
        let mut prepared = Prepared::new(driver);
        let Problem::Decode(problem) = problem else { return Ok(prepared) };
        let Decode { seqs, context, q_heads, head_dim, .. } = *problem;
        let max_splits = context.div_ceil(SPLIT_TOKENS);
        let partials = seqs * q_heads * max_splits;
        let mut params = params(&mut prepared, problem, seed)?;
        params.partial_out = prepared.output("partial_out", partials * head_dim * 4)?;
        params.partial_lse = prepared.output("partial_lse", partials * 4)?;
        params.split_tokens = SPLIT_TOKENS as u32;
        params.max_splits = max_splits as u32;
        let kernel = if head_dim == 64 { &HD64 } else { &HD128 };
        prepared.launch(kernel, [params.max_splits, params.kv_heads, seqs as u32], &params);
        if max_splits > 1 {
            let combine = abi::AttentionCombine {
                partial_out: params.partial_out,
                partial_lse: params.partial_lse,
                out: params.out,
                seq_ids: params.seq_ids,
                q_starts: params.q_starts,
                kv_lens: params.kv_lens,
                q_heads: params.q_heads,
                head_dim: head_dim as u32,
                split_tokens: params.split_tokens,
                max_splits: params.max_splits,
            };
            prepared.launch(&ATTENTION_COMBINE, [params.q_heads, seqs as u32, 1], &combine);
        }
        Ok(prepared)
    }
}

/// The buffers and parameters that every decode kernel over a bf16 cache takes; no partial results.
pub(super) fn params<D: Driver>(
    prepared: &mut Prepared<'_, D>,
    problem: &Decode,
    seed: u64,
) -> Result<abi::AttentionDecode> {
    let Decode { seqs, context, q_heads, kv_heads, head_dim, page_size, .. } = *problem;
    let pages = context.div_ceil(page_size);
    let rows = seqs * q_heads * head_dim;
    let cached = seqs * pages * page_size * kv_heads * head_dim;
    Ok(abi::AttentionDecode {
        q: prepared.random("q", Kind::Bf16, rows, seed)?,
        k_cache: prepared.random("k_cache", Kind::Bf16, cached, seed)?,
        v_cache: prepared.random("v_cache", Kind::Bf16, cached, seed)?,
        out: prepared.output("out", rows * 2)?,
        seq_ids: prepared.u32s("seq_ids", (0..seqs as u32).collect())?,
        q_starts: prepared.u32s("q_starts", (0..=seqs as u32).collect())?,
        kv_lens: prepared.u32s("kv_lens", vec![context as u32; seqs])?,
        block_table: prepared.u32s("block_table", shuffled(seqs * pages, seed))?,
        block_table_stride: pages as u32,
        page_size: page_size as u32,
        q_heads: q_heads as u32,
        kv_heads: kv_heads as u32,
        scale: 1.0 / (head_dim as f32).sqrt(),
        ..abi::AttentionDecode::default()
    })
}
