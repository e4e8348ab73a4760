use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_kernels::{
    abi::{self, KernelSpec},
    attention_prefill::Element,
    attention_prefill_sm90::{
        HD64, HD64_SHORT, TILE_HD64, TILE_HD64_SHORT, Tile,
        launch::{Span, box_rows, choose, kv_map, q_map, running_on, section_heads, work_list},
    },
};

use super::{Kernel, prefill};
use crate::{
    prepared::Prepared,
    problem::{Prefill, Problem},
};

/// Copy engine and warpgroup products, compute capability 9.0.
pub struct Hopper {
    name: &'static str,
    /// Whether items run into each other.
    on: bool,
    /// Of head dim 64: whether the tile is the one that the rule doesn't take.
    other_tile: bool,
}

/// As it is launched.
pub const TAKEN: Hopper = Hopper { name: "attention_prefill_sm90", on: false, other_tile: false };

/// With items that run into each other, and in the tiles of head dim 64 that the rule doesn't take.
pub const TRIALS: [Hopper; 3] = [
    Hopper { name: "attention_prefill_sm90_on", on: true, other_tile: false },
    Hopper { name: "attention_prefill_sm90_other", on: false, other_tile: true },
    Hopper { name: "attention_prefill_sm90_other_on", on: true, other_tile: true },
];

impl Hopper {
    fn kernel(&self, problem: &Prefill, spans: &[Span]) -> Option<(Tile, &'static KernelSpec)> {
        let (tile, kernel) = choose(Element::Bf16, problem.head_dim as u32, problem.causal, spans)?;
        let (tile, kernel) = match (self.other_tile, kernel.name) {
            (false, _) => (tile, kernel),
            (true, name) if name == HD64.name => (TILE_HD64_SHORT, &HD64_SHORT),
            (true, name) if name == HD64_SHORT.name => (TILE_HD64, &HD64),
            _ => return None,
        };
        let kernel = if self.on { running_on(kernel)? } else { kernel };
        Some((tile, kernel))
    }
}

fn spans(problem: &Prefill) -> Vec<Span> {
    let len = problem.seq_len as u32;
    (0..problem.seqs as u32).map(|seq| Span { seq, q_len: len, kv_len: len }).collect()
}

impl<D: Driver> Kernel<D> for Hopper {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, problem: &Problem, info: &GpuInfo) -> bool {
        let Problem::Prefill(problem) = problem else { return false };
        info.compute_capability == (9, 0) && self.kernel(problem, &spans(problem)).is_some()
    }

    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>> {
        let mut prepared = Prepared::new(driver);
        let Problem::Prefill(problem) = problem else { return Ok(prepared) };
        let Prefill { seqs, seq_len, .. } = *problem;
        let spans = spans(problem);
        let Some((tile, kernel)) = self.kernel(problem, &spans) else { return Ok(prepared) };
        let shared = prefill::params(&mut prepared, problem, seed)?;
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
            section_heads: section_heads(tile, shared.q_heads, shared.kv_heads, (seqs * seq_len) as u64),
            box_rows: boxes,
            reserved: 0,
        };
        prepared.launch(kernel, [driver.info().multiprocessors, 1, 1], &params);
        Ok(prepared)
    }
}
