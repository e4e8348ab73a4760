use proptest::{prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi,
    attention_prefill::{BLOCK_M, Element, spec},
};

use super::{
    attention::{Case as Base, Input, cases},
    attention_layout::{Case, Layout, only, upload},
    half::Half,
    sizes,
};
use crate::{
    agreement::Scalar,
    harness::{Failure, Harness, POISON, f32_values, same_bits},
    runner::Property,
    shape::Shape,
};

pub struct AttentionPrefill;

impl Property for AttentionPrefill {
    const KERNEL: &'static str = "attention_prefill";
    const EMULATED_CASES: u32 = 50;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let base = cases(sizes(BLOCK_M as usize, 140), 200);
        let head_dim = select(vec![64usize, 64, 96, 128, 128, 192, 256]);
        let half = prop_oneof![2 => Just(Half::Bf16), 1 => Just(Half::F16)];
        let layout = select(vec![Layout::Paged, Layout::Shifted, Layout::Contiguous]);
        let deep = prop_oneof![4 => Just(false), 1 => Just(true)];
        (base, head_dim, half, layout, deep)
            .prop_map(|(base, head_dim, half, layout, deep)| {
                // Large heads are slow to emulate, and differ in the size of a tile alone.
                let group = if head_dim > 128 { base.group.min(2) } else { base.group };
                Case { base: Base { head_dim, group, ..base }, half, layout, deep }
            })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let base = Base {
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
        let mut corners: Vec<Case> = [
            base.clone(),
            Base { seqs: vec![(64, 64)], head_dim: 128, ..base.clone() },
            Base { seqs: vec![(63, 127), (65, 129)], group: 2, ..base.clone() },
            Base { seqs: vec![(65, 65)], causal: false, page_size: 100, ..base.clone() },
            Base { seqs: vec![(17, 150)], window: 64, kv_heads: 2, group: 3, ..base.clone() },
            Base { seqs: vec![(70, 140)], window: 3, causal: false, ..base.clone() },
            // Fewer keys than queries, and none: the first queries see nothing. And no queries at all.
            Base { seqs: vec![(9, 4), (3, 0), (0, 5), (2, 2), (0, 0)], ..base.clone() },
            Base { seqs: vec![(2, 33)], softcap: 2.0, ..base.clone() },
            // 64 keys of 64 elements a page: page 600,000 begins past element 2^31.
            Base { page_size: 64, seqs: vec![(3, 70)], first_page: 600_000, ..base.clone() },
        ]
        .map(|base| Case { base, half: Half::Bf16, layout: Layout::Paged, deep: false })
        .into();
        let ragged: Vec<(usize, usize)> =
            (0..37).map(|i| (i * 7 % 20 + 1, i * 7 % 20 + 1 + i * 11 % 60)).collect();
        let of = |base, half, layout, deep| Case { base, half, layout, deep };
        corners.extend([
            of(Base { seqs: ragged, ..base.clone() }, Half::Bf16, Layout::Contiguous, false),
            of(Base { seqs: vec![(33, 65), (20, 20)], ..base.clone() }, Half::F16, Layout::Shifted, true),
            of(Base { seqs: vec![(30, 60)], ..base.clone() }, Half::Bf16, Layout::Paged, true),
            of(Base { seqs: vec![(0, 3), (5, 40)], ..base.clone() }, Half::F16, Layout::Contiguous, false),
        ]);
        for head_dim in [96, 192, 256] {
            let large = Base { head_dim, seqs: vec![(65, 97), (3, 31)], ..base.clone() };
            corners.push(of(large.clone(), Half::Bf16, Layout::Paged, false));
            corners.push(of(Base { causal: false, ..large }, Half::F16, Layout::Shifted, false));
        }
        corners
    }

    fn scalar(case: &Case, buffer: &str) -> Scalar {
        case.scalar(buffer)
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        Some(Case::shaped(shape, &[64, 96, 128, 192, 256]))
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let input = case.input();
        let all: Vec<u32> = (0..case.base.seqs.len() as u32).rev().collect();
        let (out, lse) = run(harness, case, &input, &all, true)?;
        case.compare("attention_prefill", &input, &out, &f32_values(&lse))?;
        let (again, lse_again) = run(harness, case, &input, &all, true)?;
        same_bits("the second run", &out, &again)?;
        same_bits("the second run's lse", &lse, &lse_again)?;

        let mut alone: Vec<usize> = vec![case.base.seqs.len() / 2, case.base.seqs.len() - 1];
        alone.dedup();
        for seq in alone {
            // The last one without the log-sum-exp, which must make no difference and leave its place alone.
            let with_lse = seq + 1 < case.base.seqs.len();
            let (own_out, own_lse) = run(harness, case, &input, &[seq as u32], with_lse)?;
            only(&format!("out of sequence {seq} alone"), case, &input, seq, &out, &own_out)?;
            if with_lse {
                only(&format!("lse of sequence {seq} alone"), case, &input, seq, &lse, &own_lse)?;
            } else {
                same_bits("an lse that wasn't asked for", &vec![POISON; own_lse.len()], &own_lse)?;
            }
        }
        Ok(())
    }
}

/// Bytes of `out` and of `lse`.
fn run<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    input: &Input,
    seq_ids: &[u32],
    with_lse: bool,
) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let (mut arena, placed, base) = (harness.arena(), case.placed(input), &case.base);
    let uploaded = upload(&mut arena, case, input, &placed, seq_ids)?;
    let params = abi::AttentionPrefill {
        q: arena.address(uploaded.q),
        k_cache: arena.address(uploaded.k_cache),
        v_cache: arena.address(uploaded.v_cache),
        out: arena.address(uploaded.out),
        seq_ids: arena.address(uploaded.seq_ids),
        q_starts: arena.address(uploaded.q_starts),
        kv_lens: arena.address(uploaded.kv_lens),
        block_table: arena.address(uploaded.block_table),
        lse: if with_lse { arena.address(uploaded.lse) } else { 0 },
        kv_row_starts: uploaded.kv_row_starts.map_or(0, |starts| arena.address(starts)),
        block_table_stride: placed.stride as u32,
        page_size: placed.page_size as u32,
        q_heads: base.q_heads() as u32,
        kv_heads: base.kv_heads as u32,
        scale: base.scale(),
        softcap: base.softcap,
        causal: u32::from(base.causal),
        window: base.window,
    };
    let longest = seq_ids.iter().map(|&seq| base.seqs[seq as usize].0).max().unwrap_or(0);
    let grid = [(longest as u32).div_ceil(BLOCK_M), params.q_heads, seq_ids.len() as u32];
    let element = if case.half == Half::Bf16 { Element::Bf16 } else { Element::F16 };
    let spec = spec(element, base.head_dim as u32).ok_or("no entry for the head")?;
    if !grid.contains(&0) {
        arena.launch(spec, grid, &params)?;
    }
    Ok((arena.all_bytes(uploaded.out)?, arena.all_bytes(uploaded.lse)?))
}
