use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_kernels::{
    abi::{self, KernelSpec},
    rope_append,
};
use tilewright_reference::{RopeScaling, rope_frequencies, rope_table};

use super::Kernel;
use crate::{
    prepared::Prepared,
    problem::{KvFormat, Problem, RopeAppend},
    random::{Kind, shuffled},
};

/// To a cache of any format. Buffers: `qkv`, `cos_sin`, `positions`, `slots`, `q_out`, `k_cache`, `v_cache`, and `k_scales` and
/// `v_scales` of a quantised one.
pub struct Baseline;

fn spec(kv: KvFormat) -> Option<&'static KernelSpec> {
    rope_append::spec(match kv {
        KvFormat::Bf16 => abi::KV_BF16,
        KvFormat::Int8 => abi::KV_INT8,
        KvFormat::Fp8 => abi::KV_FP8,
    })
}

impl<D: Driver> Kernel<D> for Baseline {
    fn name(&self) -> &'static str {
        "rope_append"
    }

    fn takes(&self, problem: &Problem, _: &GpuInfo) -> bool {
        matches!(problem, Problem::RopeAppend(problem) if spec(problem.kv).is_some())
    }

    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>> {
        let mut prepared = Prepared::new(driver);
        let Problem::RopeAppend(problem) = problem else { return Ok(prepared) };
        let Some(spec) = spec(problem.kv) else { return Ok(prepared) };
        let params = params(&mut prepared, problem, seed)?;
        let grid = rope_append::grid(params.tokens, params.q_heads, params.kv_heads, params.head_dim);
        prepared.launch(spec, grid, &params);
        Ok(prepared)
    }
}

/// The buffers and parameters of one sequence that is appended to an empty cache.
fn params<D: Driver>(
    prepared: &mut Prepared<'_, D>,
    problem: &RopeAppend,
    seed: u64,
) -> Result<abi::RopeAppend> {
    let RopeAppend { tokens, q_heads, kv_heads, head_dim, page_size, kv } = *problem;
    let pages = shuffled(tokens.div_ceil(page_size), seed);
    let slots = (0..tokens)
        .map(|token| pages[token / page_size] * page_size as u32 + (token % page_size) as u32)
        .collect();
    let frequencies = rope_frequencies(head_dim, 500_000.0, RopeScaling::Default);
    let table = rope_table(&frequencies, tokens).iter().map(|&value| value as f32).collect();
    let vectors = pages.len() * page_size * kv_heads;
    let cache_bytes = vectors * head_dim * if kv == KvFormat::Bf16 { 2 } else { 1 };
    let mut params = abi::RopeAppend {
        qkv: prepared.random("qkv", Kind::Bf16, tokens * (q_heads + 2 * kv_heads) * head_dim, seed)?,
        cos_sin: prepared.f32s("cos_sin", table)?,
        positions: prepared.u32s("positions", (0..tokens as u32).collect())?,
        slots: prepared.u32s("slots", slots)?,
        q_out: prepared.output("q_out", tokens * q_heads * head_dim * 2)?,
        k_cache: prepared.output("k_cache", cache_bytes)?,
        v_cache: prepared.output("v_cache", cache_bytes)?,
        tokens: tokens as u32,
        q_heads: q_heads as u32,
        kv_heads: kv_heads as u32,
        head_dim: head_dim as u32,
        page_size: page_size as u32,
        ..abi::RopeAppend::default()
    };
    if kv != KvFormat::Bf16 {
        params.k_scales = prepared.output("k_scales", vectors * 4)?;
        params.v_scales = prepared.output("v_scales", vectors * 4)?;
    }
    Ok(params)
}
