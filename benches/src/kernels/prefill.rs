use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_kernels::{
    abi,
    attention_prefill::{BLOCK_M, Element, spec},
};

use super::Kernel;
use crate::{
    prepared::Prepared,
    problem::{Prefill, Problem},
    random::{Kind, shuffled},
};

/// `mma.sync` and `cp.async`, from sm_80.
pub struct Baseline;

impl<D: Driver> Kernel<D> for Baseline {
    fn name(&self) -> &'static str {
        "attention_prefill"
    }

    fn takes(&self, problem: &Problem, _: &GpuInfo) -> bool {
        matches!(problem, Problem::Prefill(problem) if spec(Element::Bf16, problem.head_dim as u32).is_some())
    }

    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>> {
        let mut prepared = Prepared::new(driver);
        if let Problem::Prefill(problem) = problem {
            let Some(kernel) = spec(Element::Bf16, problem.head_dim as u32) else { return Ok(prepared) };
            let params = params(&mut prepared, problem, seed)?;
            let grid = [(problem.seq_len as u32).div_ceil(BLOCK_M), params.q_heads, problem.seqs as u32];
            prepared.launch(kernel, grid, &params);
        }
        Ok(prepared)
    }
}

/// The buffers and parameters that every prefill kernel over a bf16 cache takes.
pub(super) fn params<D: Driver>(
    prepared: &mut Prepared<'_, D>,
    problem: &Prefill,
    seed: u64,
) -> Result<abi::AttentionPrefill> {
    let Prefill { seqs, seq_len, q_heads, kv_heads, head_dim, causal, .. } = *problem;
    let page_size = problem.page_tokens();
    let pages = seq_len.div_ceil(page_size);
    let rows = seqs * seq_len * q_heads * head_dim;
    let cached = seqs * pages * page_size * kv_heads * head_dim;
    Ok(abi::AttentionPrefill {
        q: prepared.random("q", Kind::Bf16, rows, seed)?,
        k_cache: prepared.random("k_cache", Kind::Bf16, cached, seed)?,
        v_cache: prepared.random("v_cache", Kind::Bf16, cached, seed)?,
        out: prepared.output("out", rows * 2)?,
        seq_ids: prepared.u32s("seq_ids", (0..seqs as u32).collect())?,
        q_starts: prepared.u32s("q_starts", (0..=seqs).map(|seq| (seq * seq_len) as u32).collect())?,
        kv_lens: prepared.u32s("kv_lens", vec![seq_len as u32; seqs])?,
        block_table: prepared.u32s("block_table", shuffled(seqs * pages, seed))?,
        block_table_stride: pages as u32,
        page_size: page_size as u32,
        q_heads: q_heads as u32,
        kv_heads: kv_heads as u32,
        scale: 1.0 / (head_dim as f32).sqrt(),
        causal: u32::from(causal),
        ..abi::AttentionPrefill::default()
    })
}
