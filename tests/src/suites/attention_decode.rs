use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi,
    attention_combine::ATTENTION_COMBINE,
    attention_decode::{HD64, HD128},
};

use super::attention::{Case, Input, Queries, cases, upload};
use crate::{
    harness::{Failure, Harness, POISON, bf16_values, same_bits},
    runner::Property,
    shape::Shape,
};

pub struct AttentionDecode;

impl Property for AttentionDecode {
    const KERNEL: &'static str = "attention_decode";
    const EMULATED_CASES: u32 = 120;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        cases(Just(1).boxed(), 400)
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
            Case { seqs: vec![(1, 63), (1, 64), (1, 65)], head_dim: 128, group: 7, ..plain.clone() },
            Case { seqs: vec![(1, 127), (1, 129)], split_tokens: 128, kv_heads: 2, ..plain.clone() },
            // A group of more than 16 takes several passes.
            Case { seqs: vec![(1, 70)], group: 17, ..plain.clone() },
            // Chunks that the window leaves empty.
            Case { seqs: vec![(1, 300), (1, 20)], window: 10, ..plain.clone() },
            Case { seqs: vec![(1, 200)], window: 73, softcap: 2.0, ..plain.clone() },
            Case { seqs: vec![(1, 0), (1, 5)], ..plain.clone() },
            Case { page_size: 64, seqs: vec![(1, 130)], first_page: 600_000, ..plain },
        ]
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        Some(Case::shaped(shape, Queries::One))
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let input = case.input();
        let all: Vec<u32> = (0..case.seqs.len() as u32).rev().collect();
        let actual = run(harness, case, &input, &all)?;
        case.compare("attention_decode", &input, &bf16_values(&actual), true)?;
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
    let longest = seq_ids.iter().map(|&seq| input.kv_lens[seq as usize]).max().unwrap_or(0);
    let max_splits = longest.div_ceil(case.split_tokens).max(1);
    let mut arena = harness.arena();
    let uploaded = upload(&mut arena, case, input, seq_ids)?;
    let partials = seq_ids.len() * case.q_heads() * max_splits as usize;
    let partial_out = arena.alloc("partial_out", partials * case.head_dim * 4)?;
    let partial_lse = arena.alloc("partial_lse", partials * 4)?;
    let params = abi::AttentionDecode {
        q: arena.address(uploaded.q),
        k_cache: arena.address(uploaded.k_cache),
        v_cache: arena.address(uploaded.v_cache),
        out: arena.address(uploaded.out),
        partial_out: arena.address(partial_out),
        partial_lse: arena.address(partial_lse),
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
        window: case.window,
        split_tokens: case.split_tokens,
        max_splits,
        reserved: 0,
    };
    let grid = [max_splits, case.kv_heads as u32, seq_ids.len() as u32];
    arena.launch(if case.head_dim == 64 { &HD64 } else { &HD128 }, grid, &params)?;
    if max_splits > 1 {
        let params = abi::AttentionCombine {
            partial_out: params.partial_out,
            partial_lse: params.partial_lse,
            out: params.out,
            seq_ids: params.seq_ids,
            q_starts: params.q_starts,
            kv_lens: params.kv_lens,
            q_heads: params.q_heads,
            head_dim: case.head_dim as u32,
            split_tokens: params.split_tokens,
            max_splits,
        };
        arena.launch(&ATTENTION_COMBINE, [params.q_heads, seq_ids.len() as u32, 1], &params)?;
    }
    arena.all_bytes(uploaded.out)
}
