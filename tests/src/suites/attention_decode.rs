use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi::{self, DecodeSequence, KV_BF16, KV_FP8, KV_INT8},
    attention_decode::{VARIANTS, Variant, split::Rule},
};

use super::attention_decode_case::{Case, Input, cases};
use crate::{
    harness::{Arena, Failure, Handle, Harness, POISON, bf16_values, same_bits},
    runner::Property,
    shape::Shape,
};

pub struct AttentionDecode;

impl Property for AttentionDecode {
    const KERNEL: &'static str = "attention_decode";
    const EMULATED_CASES: u32 = 120;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        cases()
    }

    fn corners() -> Vec<Case> {
        let plain = Case::plain();
        let int8 = Case { format: KV_INT8, ..plain.clone() };
        let fp8 = Case { format: KV_FP8, ..plain.clone() };
        let mut corners = vec![
            plain.clone(),
            int8.clone(),
            fp8.clone(),
            Case { seqs: vec![(1, 63), (1, 64), (1, 65)], head_dim: 128, group: 7, ..plain.clone() },
            Case { seqs: vec![(1, 127), (1, 129)], kv_heads: 2, ..plain.clone() },
            // One chunk, two of which the second holds a key, and three.
            Case { seqs: vec![(1, 512), (1, 513), (1, 769)], ..plain.clone() },
            // No keys: zeros. Fewer keys than queries: the first see nothing.
            Case { seqs: vec![(1, 0), (1, 5), (3, 0), (9, 4)], ..plain.clone() },
            Case { seqs: vec![(9, 4), (5, 5), (2, 1)], tree: true, window: 2, ..plain.clone() },
            // More rows than the narrow entry, then than the wide one, has.
            Case { seqs: vec![(1, 70), (3, 40)], group: 17, ..plain.clone() },
            Case { seqs: vec![(16, 530), (1, 530), (7, 7)], group: 5, head_dim: 128, ..plain.clone() },
            // Chunks that the window leaves out, and one that it cuts.
            Case { seqs: vec![(1, 800), (1, 20)], window: 10, ..plain.clone() },
            Case { seqs: vec![(4, 900), (1, 1000)], window: 300, softcap: 2.0, ..plain.clone() },
            Case { page_size: 64, seqs: vec![(1, 130)], first_page: 600_000, ..plain.clone() },
            Case { page_size: 64, seqs: vec![(1, 130)], first_page: 600_000, head_dim: 128, ..int8.clone() },
            // The search among the sequences takes two rounds.
            Case { seqs: (0..70).map(|seq| (1 + seq % 2, 3 + seq % 5)).collect(), ..plain.clone() },
            // Chunks longer than the shortest; the join takes several strides.
            Case { seqs: vec![(1, 16_500)], ..plain.clone() },
            // The long chunks of 8-bit caches: one and a key, and more than three of four.
            Case { seqs: vec![(1, 1025), (2, 3200)], ..int8.clone() },
            Case { seqs: vec![(1, 1024), (1, 2049)], window: 1500, ..fp8.clone() },
        ];
        for format in [KV_BF16, KV_INT8, KV_FP8] {
            // Maxima so large that a log-sum-exp would lose the sums.
            corners.push(Case { seqs: vec![(1, 600), (2, 33)], deep: true, format, ..plain.clone() });
            // Values' scales that a warp's unit has to follow, over several tiles of each.
            let seqs = vec![(1, 512), (3, 700)];
            corners.push(Case { seqs, wide_scales: true, head_dim: 128, format, ..plain.clone() });
            // The keys of a tile with the largest scales are seen by some of its rows only.
            let seqs = vec![(8, 26), (4, 15), (16, 60)];
            corners.push(Case { seqs, window: 3, wide_scales: true, kv_heads: 2, format, ..plain.clone() });
        }
        corners
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        Some(Case::shaped(shape))
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let input = case.input();
        let all: Vec<u32> = (0..case.seqs.len() as u32).rev().collect();
        let masks = case.tree.then_some(&input.masks[..]);
        let [narrow, wide] = variants(case);
        let actual = run(harness, case, &input, &all, narrow, masks)?;
        case.compare(&input, &bf16_values(&actual))?;
        same_bits("the second run", &actual, &run(harness, case, &input, &all, narrow, masks)?)?;
        same_bits("the wide entry", &actual, &run(harness, case, &input, &all, wide, Some(&input.masks))?)?;

        // The first and the last alone, whatever their mates.
        for seq in [0, case.seqs.len() - 1] {
            let alone = run(harness, case, &input, &[seq as u32], narrow, masks)?;
            let at = |row: u32| row as usize * case.row_elems() * 2;
            let own = at(input.q_starts[seq])..at(input.q_starts[seq + 1]);
            same_bits("a sequence alone", &actual[own.clone()], &alone[own.clone()])?;
            let others = [&alone[..own.start], &alone[own.end..]].concat();
            same_bits("rows of sequences that were not launched", &vec![POISON; others.len()], &others)?;
        }
        Ok(())
    }
}

/// The entries that serve a case, by rows.
fn variants(case: &Case) -> [&'static Variant; 2] {
    let serves = |v: &&Variant| v.format == case.format && v.head_dim as usize == case.head_dim;
    let mut all: Vec<&Variant> = VARIANTS.iter().filter(serves).collect();
    all.sort_by_key(|v| v.rows);
    [all[0], all[all.len() - 1]]
}

/// The records of `seq_ids`, and the items of them all.
fn sequences(input: &Input, seq_ids: &[u32], rule: Rule) -> Vec<DecodeSequence> {
    let mut first_item = 0;
    let mut records = Vec::new();
    for &seq in seq_ids {
        let (query_start, end) = (input.q_starts[seq as usize], input.q_starts[seq as usize + 1]);
        let kv_len = input.kv_lens[seq as usize];
        let row_and_queries = seq << DecodeSequence::QUERY_BITS | (end - query_start);
        records.push(DecodeSequence { first_item, query_start, kv_len, row_and_queries });
        first_item += rule.chunks(kv_len);
    }
    records.push(DecodeSequence { first_item, ..DecodeSequence::default() });
    records
}

/// A plane of the cache: a dead page before and after the live ones, which nobody writes.
pub(super) fn plane<D: Driver>(
    arena: &mut Arena<'_, D>,
    case: &Case,
    name: &'static str,
    row_bytes: usize,
    live: &[u8],
) -> Result<Handle, Failure> {
    let (first, page_bytes) = (case.first_page + 1, case.page_rows() * row_bytes);
    let handle = arena.alloc(name, first * page_bytes + live.len() + page_bytes)?;
    arena.write(handle, first * page_bytes, live)?;
    Ok(handle)
}

/// Parameters of sequences but for queries, cache and masks, the items' blocks, and the output; for entries of `tile_rows` query rows.
pub(super) fn params<D: Driver>(
    arena: &mut Arena<'_, D>,
    case: &Case,
    input: &Input,
    seq_ids: &[u32],
    tile_rows: u32,
) -> Result<(abi::AttentionDecode, u32, Handle), Failure> {
    let first_page = case.first_page as u32 + 1;
    let table: Vec<u32> = input.block_table.iter().map(|&page| page.saturating_add(first_page)).collect();
    let rule = Rule::of(case.format);
    let records = sequences(input, seq_ids, rule);
    let items = records[seq_ids.len()].first_item;
    let longest = seq_ids.iter().map(|&seq| case.seqs[seq as usize].0).max().unwrap_or(1);
    let row_tiles = (longest * case.group).div_ceil(tile_rows as usize) as u32;
    let blocks = (items * row_tiles) as usize * case.kv_heads;
    let partial_rows = blocks * tile_rows as usize;
    let handles = [
        arena.poisoned("out", input.q.len() * 2)?,
        arena.alloc("partial_out", partial_rows * case.head_dim * 4)?,
        arena.alloc("partial_sums", partial_rows * 8)?,
        // Zeros that the launch must leave.
        arena.input_u32("counters", &vec![0; seq_ids.len() * case.kv_heads * row_tiles as usize])?,
        arena.input("sequences", bytemuck::cast_slice(&records))?,
        arena.input_u32("block_table", &table)?,
    ];
    let [out, partial_out, partial_sums, counters, records, table] =
        handles.map(|handle| arena.address(handle));
    let params = abi::AttentionDecode {
        out,
        partial_out,
        partial_sums,
        counters,
        sequences: records,
        block_table: table,
        seqs: seq_ids.len() as u32,
        block_table_stride: input.block_table_stride as u32,
        page_size: case.page_size as u32,
        q_heads: case.q_heads() as u32,
        kv_heads: case.kv_heads as u32,
        row_tiles,
        scale: case.scale(),
        softcap: case.softcap,
        window: case.window,
        short_tokens: rule.short_tokens,
        short_chunk_tokens: rule.short_chunk_tokens,
        middle_tokens: rule.middle_tokens,
        chunk_tokens: rule.chunk_tokens,
        max_chunks: rule.max_chunks,
        ..abi::AttentionDecode::default()
    };
    Ok((params, blocks as u32, handles[0]))
}

fn run<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    input: &Input,
    seq_ids: &[u32],
    variant: &'static Variant,
    masks: Option<&[u32]>,
) -> Result<Vec<u8>, Failure> {
    let mut arena = harness.arena();
    // Queries of other sequences are NaN.
    let row = case.row_elems();
    let mut q = vec![f32::NAN; input.q.len()];
    for &seq in seq_ids {
        let rows =
            input.q_starts[seq as usize] as usize * row..input.q_starts[seq as usize + 1] as usize * row;
        q[rows.clone()].copy_from_slice(&input.q[rows]);
    }
    let handles = [
        arena.input_bf16("q", &q)?,
        plane(&mut arena, case, "k_cache", case.row_bytes(), &input.k_bytes)?,
        plane(&mut arena, case, "v_cache", case.row_bytes(), &input.v_bytes)?,
        plane(&mut arena, case, "k_scales", 4, bytemuck::cast_slice(&input.k_scales))?,
        plane(&mut arena, case, "v_scales", 4, bytemuck::cast_slice(&input.v_scales))?,
    ];
    let tree_masks = match masks {
        Some(masks) => {
            let handle = arena.input_u32("tree_masks", masks)?;
            arena.address(handle)
        }
        None => 0,
    };
    let [q, k_cache, v_cache, k_scales, v_scales] = handles.map(|handle| arena.address(handle));
    let (params, blocks, out) = params(&mut arena, case, input, seq_ids, variant.rows)?;
    let params = abi::AttentionDecode { q, k_cache, v_cache, k_scales, v_scales, tree_masks, ..params };
    // A few blocks more than there is work for.
    arena.launch(&variant.spec, [blocks + 3, 1, 1], &params)?;
    arena.all_bytes(out)
}
