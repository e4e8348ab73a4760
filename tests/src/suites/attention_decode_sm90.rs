use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi::{self, KV_BF16, KV_FP8, KV_INT8},
    attention_decode_sm90::{TILE_KEYS, VARIANTS, launch},
};

use super::{
    attention_decode::{run_by, variants},
    attention_decode_case::{Case, Input, cases},
};
use crate::{
    harness::{Failure, Harness, POISON, bf16_values, same_bits},
    runner::Property,
    shape::Shape,
};

pub struct AttentionDecodeSm90;

/// Blocks of a launch: few, so that each has several items.
const BLOCKS: u32 = 3;

/// A case that the kernel serves.
fn served(case: Case) -> Case {
    let whole = case.page_size.is_multiple_of(TILE_KEYS as usize);
    Case { head_dim: 128, page_size: if whole { case.page_size } else { 48 }, ..case }
}

impl Property for AttentionDecodeSm90 {
    const KERNEL: &'static str = "attention_decode_sm90";
    const EMULATED_CASES: u32 = 60;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        cases().prop_map(served).boxed()
    }

    fn corners() -> Vec<Case> {
        let plain = served(Case::plain());
        let int8 = Case { format: KV_INT8, ..plain.clone() };
        let fp8 = Case { format: KV_FP8, ..plain.clone() };
        let mut corners = vec![
            plain.clone(),
            int8.clone(),
            fp8.clone(),
            Case {
                seqs: vec![(1, 15), (1, 16), (1, 17), (1, 63), (1, 64), (1, 65)],
                group: 7,
                ..plain.clone()
            },
            Case { seqs: vec![(1, 127), (1, 129)], kv_heads: 2, ..int8.clone() },
            // One chunk, two of which the second holds a key, and three.
            Case { seqs: vec![(1, 512), (1, 513), (1, 769)], ..plain.clone() },
            // No keys: zeros. Fewer keys than queries: the first see nothing.
            Case { seqs: vec![(1, 0), (1, 5), (3, 0), (9, 4)], ..plain.clone() },
            Case { seqs: vec![(9, 4), (5, 5), (2, 1)], tree: true, window: 2, ..int8.clone() },
            // Several tiles of rows, of which a sequence lacks the last.
            Case { seqs: vec![(1, 70), (3, 40)], group: 17, ..plain.clone() },
            // Chunks that the window leaves out, and one that it cuts.
            Case { seqs: vec![(1, 800), (1, 20)], window: 10, ..plain.clone() },
            Case { seqs: vec![(4, 900), (1, 1000)], window: 300, softcap: 2.0, ..fp8.clone() },
            Case { page_size: 64, seqs: vec![(1, 130)], first_page: 600_000, ..plain.clone() },
            Case { page_size: 64, seqs: vec![(1, 130)], first_page: 600_000, ..int8.clone() },
            // More items than a ring of theirs has places, all short.
            Case { seqs: (0..70).map(|seq| (1 + seq % 2, 3 + seq % 40)).collect(), ..plain.clone() },
        ];
        for format in [KV_BF16, KV_INT8, KV_FP8] {
            // Maxima so large that a log-sum-exp would lose the sums.
            corners.push(Case { seqs: vec![(1, 600), (2, 33)], deep: true, format, ..plain.clone() });
        }
        corners
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        Some(served(Case::shaped(shape)))
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let input = case.input();
        let all: Vec<u32> = (0..case.seqs.len() as u32).rev().collect();
        let masks = case.tree.then_some(&input.masks[..]);
        let actual = run(harness, case, &input, &all, masks, BLOCKS)?;
        case.compare(&input, &bf16_values(&actual))?;
        same_bits("another grid", &actual, &run(harness, case, &input, &all, masks, BLOCKS + 2)?)?;
        let plain = variants(case)[0];
        let by_plain = run_by(harness, case, &input, &all, plain, masks, |arena, blocks, params| {
            arena.launch(&plain.spec, [blocks, 1, 1], params)
        })?;
        same_bits("attention_decode", &actual, &by_plain)?;

        let seq = case.seqs.len() - 1;
        let alone = run(harness, case, &input, &[seq as u32], masks, BLOCKS)?;
        let at = |row: u32| row as usize * case.row_elems() * 2;
        let own = at(input.q_starts[seq])..at(input.q_starts[seq + 1]);
        same_bits("a sequence alone", &actual[own.clone()], &alone[own.clone()])?;
        let others = [&alone[..own.start], &alone[own.end..]].concat();
        same_bits("rows of sequences that were not launched", &vec![POISON; others.len()], &others)
    }
}

fn run<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    input: &Input,
    seq_ids: &[u32],
    masks: Option<&[u32]>,
    blocks: u32,
) -> Result<Vec<u8>, Failure> {
    let variant = VARIANTS.iter().find(|v| v.format == case.format).ok_or("no kernel of this format")?;
    run_by(harness, case, input, seq_ids, variant, masks, |arena, _, shared| {
        // A dead page before the live ones and one after them.
        let live = input.k_bytes.len() / (case.page_rows() * case.row_bytes());
        let pages = (case.first_page + live + 2) as u64;
        let kv = launch::kv_map(case.format, pages, shared.kv_heads, shared.page_size);
        let params = abi::AttentionDecodeSm90 {
            k_map: arena.tensor_map(&kv.at(shared.k_cache))?,
            v_map: arena.tensor_map(&kv.at(shared.v_cache))?,
            shared: *shared,
            reserved: 0,
        };
        arena.launch(&variant.spec, [blocks, 1, 1], &params)
    })
}
