use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi::KV_BF16,
    attention_decode::BF16_HD128_ONCE,
    attention_decode_sm90::{BOX_ROWS, HD128_BY3, HD128_LANES, HD128_LANES_ONCE, VARIANTS, Variant},
};

use super::{
    attention_decode::{Entry, run, variants},
    attention_decode_case::{Case, cases},
};
use crate::{
    harness::{Failure, Harness, bf16_values, same_bits},
    runner::Property,
    shape::Shape,
};

pub struct AttentionDecodeSm90;

/// Blocks of a launch: few, so that each has several items.
const BLOCKS: u32 = 3;

/// bf16, in pages that can be cut into boxes.
fn with_boxes(case: Case) -> Case {
    let boxes = case.page_size.is_multiple_of(BOX_ROWS as usize);
    Case { format: KV_BF16, page_size: if boxes { case.page_size } else { 16 }, ..case }
}

impl Property for AttentionDecodeSm90 {
    const KERNEL: &'static str = "attention_decode_sm90";
    const EMULATED_CASES: u32 = 60;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        cases().prop_map(with_boxes).boxed()
    }

    fn corners() -> Vec<Case> {
        let plain = Case { page_size: 16, ..Case::plain() };
        let wide = Case { head_dim: 128, ..plain.clone() };
        vec![
            plain.clone(),
            wide.clone(),
            Case { seqs: vec![(1, 63), (1, 64), (1, 65)], group: 7, ..wide.clone() },
            // A box of a tile of two is past the end, and so may be its page.
            Case { seqs: vec![(1, 16), (1, 127), (1, 129)], kv_heads: 2, ..plain.clone() },
            // More tiles than the lanes look up at a time, and than the ring has stages.
            Case { seqs: vec![(1, 512), (1, 513), (1, 769)], ..plain.clone() },
            Case { seqs: vec![(1, 16_500)], ..wide.clone() },
            // No keys: zeros. Fewer keys than queries: the first see nothing.
            Case { seqs: vec![(1, 0), (1, 5), (3, 0), (9, 4)], ..plain.clone() },
            Case { seqs: vec![(9, 4), (5, 5), (2, 1)], tree: true, window: 2, ..wide.clone() },
            // More rows than the narrow entry, then than the wide one, has; tiles of rows that some sequences don't fill.
            Case { seqs: vec![(1, 70), (3, 40)], group: 17, ..wide.clone() },
            Case { seqs: vec![(16, 530), (1, 530), (7, 7)], group: 5, ..wide.clone() },
            // Chunks that the window leaves out, and one that it cuts.
            Case { seqs: vec![(1, 800), (1, 20)], window: 10, ..plain.clone() },
            Case { seqs: vec![(4, 900), (1, 1000)], window: 300, softcap: 2.0, ..wide.clone() },
            Case { page_size: 64, seqs: vec![(1, 130)], first_page: 600_000, ..plain.clone() },
            // The search among the sequences takes two rounds; more items than blocks, all short.
            Case { seqs: (0..70).map(|seq| (1 + seq % 2, 3 + seq % 5)).collect(), ..plain.clone() },
            // Maxima so large that a log-sum-exp would lose the sums.
            Case { seqs: vec![(1, 600), (2, 33)], deep: true, ..plain },
        ]
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let case = Case::shaped(shape);
        if case.format != KV_BF16 {
            shape.refuse(format!("format: expected 0 (bf16), found {}", case.format));
        }
        if !case.page_size.is_multiple_of(BOX_ROWS as usize) {
            shape.refuse(format!("page_size: expected a multiple of {BOX_ROWS}, found {}", case.page_size));
        }
        Some(with_boxes(case))
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let input = case.input();
        let all: Vec<u32> = (0..case.seqs.len() as u32).rev().collect();
        let masks = case.tree.then_some(&input.masks[..]);
        let all_entries = VARIANTS.iter().chain([&HD128_BY3, &HD128_LANES, &HD128_LANES_ONCE]);
        let serving: Vec<&Variant> =
            all_entries.filter(|v| v.plan.head_dim as usize == case.head_dim).collect();
        let actual = run(harness, case, &input, &all, Entry::Hopper(serving[0], BLOCKS), masks)?;
        case.compare(&input, &bf16_values(&actual))?;
        for variant in &serving {
            let again = run(harness, case, &input, &all, Entry::Hopper(variant, BLOCKS + 2), masks)?;
            same_bits(variant.spec.name, &actual, &again)?;
        }
        same_bits("attention_decode", &actual, &run(harness, case, &input, &all, variants(case)[0], masks)?)?;
        if case.head_dim == 128 {
            let entry = Entry::Baseline(&BF16_HD128_ONCE);
            same_bits(BF16_HD128_ONCE.spec.name, &actual, &run(harness, case, &input, &all, entry, masks)?)?;
        }

        // The last alone, whatever its mates, by more blocks than there is work for.
        let seq = case.seqs.len() - 1;
        let alone = run(harness, case, &input, &[seq as u32], Entry::Hopper(serving[0], 200), masks)?;
        let at = |row: u32| row as usize * case.row_elems() * 2;
        let own = at(input.q_starts[seq])..at(input.q_starts[seq + 1]);
        same_bits("a sequence alone", &actual[own.clone()], &alone[own])
    }
}
