use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_kernels::{
    abi,
    attention_prefill::Element,
    attention_prefill_sm90::launch::{Span, box_rows, choose, kv_map, q_map, section_heads, work_list},
};

use super::{Kernel, prefill};
use crate::{
    prepared::Prepared,
    problem::{Prefill, Problem},
};

/// Copy engine and warpgroup products, compute capability 9.0.
pub struct Hopper;

impl<D: Driver> Kernel<D> for Hopper {
    fn name(&self) -> &'static str {
        "attention_prefill_sm90"
    }

    fn takes(&self, problem: &Problem, info: &GpuInfo) -> bool {
        matches!(problem, Problem::Prefill(Prefill { head_dim: 64 | 96 | 128 | 192 | 256, .. }))
            && info.compute_capability == (9, 0)
    }

    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>> {
        let mut prepared = Prepared::new(driver);
        let Problem::Prefill(problem) = problem else { return Ok(prepared) };
        let Prefill { seqs, seq_len, .. } = *problem;
        let shared = prefill::params(&mut prepared, problem, seed)?;
        let len = seq_len as u32;
        let spans: Vec<Span> = (0..seqs as u32).map(|seq| Span { seq, q_len: len, kv_len: len }).collect();
        let Some((tile, kernel)) = choose(Element::Bf16, problem.head_dim as u32, problem.causal, &spans)
        else {
            return Ok(prepared);
        };
        let work = work_list(tile, &spans);
        let boxes = box_rows(tile, shared.page_size, shared.block_table_stride).unwrap_or(tile.block_n);
        let pages = seqs as u64 * u64::from(shared.block_table_stride);
        let kv = kv_map(tile, pages, shared.kv_heads, shared.page_size, boxes);
        let q = q_map(tile, seqs as u64 * seq_len as u64, shared.q_heads);
        let params = abi::AttentionPrefillSm90 {
            q_map: driver.tensor_map(&q.at(shared.q))?,
            k_map: driver.tensor_map(&kv.at(shared.k_cache))?,
            v_map: driver.tensor_map(&kv.at(shared.v_cache))?,
            shared,
            work: prepared.u32s("work", work.as_flattened().to_vec())?,
            counters: prepared.u32s("counters", vec![0; 2])?,
            tiles: work.len() as u32,
            section_heads: section_heads(tile, shared.q_heads, shared.kv_heads, seqs as u64 * u64::from(len)),
            box_rows: boxes,
            reserved: 0,
        };
        prepared.launch(kernel, [driver.info().multiprocessors, 1, 1], &params);
        Ok(prepared)
    }
}
