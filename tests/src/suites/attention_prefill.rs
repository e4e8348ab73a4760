use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi,
    attention_prefill::{BLOCK_M, HD64, HD128},
};

use super::{
    attention::{Case, Input, Queries, cases, upload},
    sizes,
};
use crate::{
    harness::{Failure, Harness, POISON, bf16_values, same_bits},
    runner::Property,
    shape::Shape,
};

pub struct AttentionPrefill;

impl Property for AttentionPrefill {
    const KERNEL: &'static str = "attention_prefill";
    const EMULATED_CASES: u32 = 60;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        cases(sizes(BLOCK_M as usize, 140), 200)
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
            split_tokens: 64,
            first_page: 0,
            seed: 1,
        };
        vec![
            plain.clone(),
            Case { seqs: vec![(64, 64)], head_dim: 128, ..plain.clone() },
            Case { seqs: vec![(63, 127), (65, 129)], group: 2, ..plain.clone() },
            Case { seqs: vec![(65, 65)], causal: false, page_size: 100, ..plain.clone() },
            Case { seqs: vec![(17, 150)], window: 64, kv_heads: 2, group: 3, ..plain.clone() },
            Case { seqs: vec![(70, 140)], window: 3, causal: false, ..plain.clone() },
            // Fewer keys than queries, and none: the first queries see nothing.
            Case { seqs: vec![(9, 4), (3, 0), (2, 2)], ..plain.clone() },
            Case { seqs: vec![(2, 33)], softcap: 2.0, ..plain.clone() },
            // 64 keys of 64 elements a page: page 600,000 begins past element 2^31.
            Case { page_size: 64, seqs: vec![(3, 70)], first_page: 600_000, ..plain },
        ]
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        Some(Case::shaped(shape, Queries::Many))
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let input = case.input();
        let all: Vec<u32> = (0..case.seqs.len() as u32).rev().collect();
        let actual = run(harness, case, &input, &all)?;
        case.compare("attention_prefill", &input, &bf16_values(&actual), case.causal)?;
        same_bits("the second run", &actual, &run(harness, case, &input, &all)?)?;

        let seq = case.seqs.len() - 1;
        let alone = run(harness, case, &input, &[seq as u32])?;
        let at = input.q_starts[seq] as usize * case.row_elems() * 2;
        same_bits("the last sequence alone", &actual[at..], &alone[at..])?;
        same_bits("rows of sequences that were not launched", &vec![POISON; at], &alone[..at])
    }
}

fn run<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    input: &Input,
    seq_ids: &[u32],
) -> Result<Vec<u8>, Failure> {
    let mut arena = harness.arena();
    let uploaded = upload(&mut arena, case, input, seq_ids)?;
    let params = abi::AttentionPrefill {
        q: arena.address(uploaded.q),
        k_cache: arena.address(uploaded.k_cache),
        v_cache: arena.address(uploaded.v_cache),
        out: arena.address(uploaded.out),
        seq_ids: arena.address(uploaded.seq_ids),
        q_starts: arena.address(uploaded.q_starts),
        kv_lens: arena.address(uploaded.kv_lens),
        block_table: arena.address(uploaded.block_table),
        block_table_stride: input.block_table_stride as u32,
        page_size: case.page_size as u32,
        q_heads: case.q_heads() as u32,
        kv_heads: case.kv_heads as u32,
        scale: case.scale(),
        softcap: case.softcap,
        causal: u32::from(case.causal),
        window: case.window,
    };
    let longest = seq_ids.iter().map(|&seq| case.seqs[seq as usize].0).max().unwrap_or(0);
    let grid = [(longest as u32).div_ceil(BLOCK_M), case.q_heads() as u32, seq_ids.len() as u32];
    arena.launch(if case.head_dim == 64 { &HD64 } else { &HD128 }, grid, &params)?;
    arena.all_bytes(uploaded.out)
}
