use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi,
    abi::KernelSpec,
    attention_prefill_sm90::{
        HD64, HD64_SHORT, TILE_HD64, TILE_HD64_SHORT, Tile,
        launch::{self, Span},
    },
};

use super::{
    attention::{Case, Input, cases, upload},
    sizes,
};
use crate::{
    harness::{Failure, Harness, POISON, bf16_values, same_bits},
    runner::Property,
};

pub struct AttentionPrefillSm90;

/// Blocks of a launch: few, so that each has several items.
const BLOCKS: u32 = 3;

/// Pages that can't be cut into boxes become pages of 16.
fn with_boxes(case: Case) -> Case {
    let page_size = if case.page_size < 8 || !case.page_size.is_power_of_two() { 16 } else { case.page_size };
    Case { page_size, ..case }
}

impl Property for AttentionPrefillSm90 {
    const KERNEL: &'static str = "attention_prefill_sm90";
    const EMULATED_CASES: u32 = 30;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        cases(sizes(128, 260), 300).prop_map(with_boxes).boxed()
    }

    fn corners() -> Vec<Case> {
        let plain = Case {
            head_dim: 64,
            kv_heads: 1,
            group: 1,
            page_size: 16,
            seqs: vec![(1, 1)],
            causal: true,
            window: 0,
            softcap: 0.0,
            first_page: 0,
            seed: 1,
        };
        let wide = Case { head_dim: 128, ..plain.clone() };
        vec![
            plain.clone(),
            wide.clone(),
            Case { seqs: vec![(128, 128)], ..wide.clone() },
            Case { seqs: vec![(129, 257), (127, 127)], group: 2, ..wide.clone() },
            Case { seqs: vec![(193, 193), (191, 383)], ..plain.clone() },
            Case { seqs: vec![(130, 130)], causal: false, page_size: 128, ..wide.clone() },
            Case { seqs: vec![(17, 400)], window: 64, kv_heads: 2, group: 3, page_size: 64, ..plain.clone() },
            Case { seqs: vec![(70, 140)], window: 3, causal: false, page_size: 8, ..wide.clone() },
            // One page a sequence, of a size that is no multiple of anything.
            Case { seqs: vec![(90, 90)], page_size: 100, ..wide.clone() },
            // Fewer keys than queries, and none: the first queries see nothing.
            Case { seqs: vec![(9, 4), (3, 0), (2, 2)], ..plain.clone() },
            Case { seqs: vec![(2, 33)], softcap: 2.0, ..plain.clone() },
            Case { page_size: 64, seqs: vec![(3, 70)], first_page: 600_000, ..plain },
        ]
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let input = case.input();
        let all: Vec<u32> = (0..case.seqs.len() as u32).collect();
        let spans = spans(case, &all);
        let chosen =
            launch::choose(case.head_dim as u32, case.causal, &spans).ok_or("no kernel of this head dim")?;
        let actual = run(harness, case, &input, &all, chosen, BLOCKS)?;
        case.compare("attention_prefill_sm90", &input, &bf16_values(&actual), case.causal)?;
        same_bits("the second run", &actual, &run(harness, case, &input, &all, chosen, BLOCKS + 2)?)?;
        if case.head_dim == 64 {
            let other =
                if chosen.0 == TILE_HD64 { (TILE_HD64_SHORT, &HD64_SHORT) } else { (TILE_HD64, &HD64) };
            same_bits("the other tile", &actual, &run(harness, case, &input, &all, other, BLOCKS)?)?;
        }

        let seq = case.seqs.len() - 1;
        let alone = run(harness, case, &input, &[seq as u32], chosen, BLOCKS)?;
        let at = input.q_starts[seq] as usize * case.row_elems() * 2;
        same_bits("the last sequence alone", &actual[at..], &alone[at..])?;
        same_bits("rows of sequences that were not launched", &vec![POISON; at], &alone[..at])
    }
}

fn spans(case: &Case, seqs: &[u32]) -> Vec<Span> {
    let span = |&seq: &u32| {
        let (q_len, kv_len) = case.seqs[seq as usize];
        Span { seq, q_len: q_len as u32, kv_len: kv_len as u32 }
    };
    seqs.iter().map(span).collect()
}

fn run<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    input: &Input,
    seqs: &[u32],
    (tile, kernel): (Tile, &'static KernelSpec),
    blocks: u32,
) -> Result<Vec<u8>, Failure> {
    let mut arena = harness.arena();
    let uploaded = upload(&mut arena, case, input, seqs)?;
    let spans = spans(case, seqs);
    let work = launch::work_list(tile, &spans);
    let counters = arena.alloc("counters", 8)?;
    arena.write(counters, 0, &[0; 8])?;
    let g_work = arena.input_u32("work", work.as_flattened())?;
    let (page_size, q_heads, kv_heads) = (case.page_size as u32, case.q_heads() as u32, case.kv_heads as u32);
    let box_rows = launch::box_rows(tile, page_size, input.block_table_stride as u32)
        .ok_or_else(|| format!("pages of {page_size} can't be cut into boxes"))?;
    let tokens = u64::from(input.q_starts[case.seqs.len()]);
    let pages = (case.first_page + 1 + input.live_pages + 1) as u64;
    let kv_map = launch::kv_map(tile, pages, kv_heads, page_size, box_rows);
    let kv_tokens = spans.iter().map(|span| u64::from(span.kv_len)).sum();
    let shared = abi::AttentionPrefill {
        out: arena.address(uploaded.out),
        q_starts: arena.address(uploaded.q_starts),
        kv_lens: arena.address(uploaded.kv_lens),
        block_table: arena.address(uploaded.block_table),
        block_table_stride: input.block_table_stride as u32,
        page_size,
        q_heads,
        kv_heads,
        scale: case.scale(),
        softcap: case.softcap,
        causal: u32::from(case.causal),
        window: case.window,
        ..Default::default()
    };
    let params = abi::AttentionPrefillSm90 {
        q_map: arena.tensor_map(&launch::q_map(tile, tokens, q_heads).at(arena.address(uploaded.q)))?,
        k_map: arena.tensor_map(&kv_map.at(arena.address(uploaded.k_cache)))?,
        v_map: arena.tensor_map(&kv_map.at(arena.address(uploaded.v_cache)))?,
        shared,
        work: arena.address(g_work),
        tiles: work.len() as u32,
        section_heads: launch::section_heads(tile, q_heads, kv_heads, kv_tokens),
        box_rows,
        reserved: 0,
        counters: arena.address(counters),
    };
    arena.launch(kernel, [blocks, 1, 1], &params)?;
    same_bits("the counters", &[0; 8], &arena.all_bytes(counters)?)?;
    arena.all_bytes(uploaded.out)
}
