use proptest::{prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi::{self, KernelSpec},
    attention_prefill::Element,
    attention_prefill_sm90::{
        HD64, HD64_F16, HD64_SHORT, HD64_SHORT_F16, TILE_HD64, TILE_HD64_SHORT, Tile,
        launch::{self, Span},
    },
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

pub struct AttentionPrefillSm90;

/// What a launch may choose without changing a bit of the output.
#[derive(Clone, Copy)]
struct Choice {
    blocks: u32,
    with_lse: bool,
    /// Whether a section is one key head's query heads, where the launcher would take as many as the L2 holds.
    narrow_sections: bool,
}

/// Few blocks, so that each has several items.
const CHOICE: Choice = Choice { blocks: 3, with_lse: true, narrow_sections: false };

/// Pages that can't be cut into boxes become pages of 16.
fn with_boxes(base: Base) -> Base {
    // A tile of the largest heads would be more than 32 boxes of 8 rows.
    let least = if base.head_dim > 128 { 16 } else { 8 };
    let page_size =
        if base.page_size < least || !base.page_size.is_power_of_two() { 16 } else { base.page_size };
    Base { page_size, ..base }
}

fn element(case: &Case) -> Element {
    if case.half == Half::Bf16 { Element::Bf16 } else { Element::F16 }
}

impl Property for AttentionPrefillSm90 {
    const KERNEL: &'static str = "attention_prefill_sm90";
    const EMULATED_CASES: u32 = 25;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let head_dim = select(vec![64usize, 64, 96, 128, 128, 192, 256]);
        let base = (cases(sizes(128, 260), 300), head_dim).prop_map(|(base, head_dim)| {
            // Large heads are slow to emulate, and differ in the size of a tile alone.
            let group = if head_dim > 128 { base.group.min(2) } else { base.group };
            with_boxes(Base { head_dim, group, ..base })
        });
        let half = prop_oneof![2 => Just(Half::Bf16), 1 => Just(Half::F16)];
        let layout = select(vec![Layout::Paged, Layout::Contiguous]);
        let deep = prop_oneof![4 => Just(false), 1 => Just(true)];
        (base, half, layout, deep)
            .prop_map(|(base, half, layout, deep)| Case { base, half, layout, deep })
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
        let wide = Base { head_dim: 128, ..base.clone() };
        let mut corners: Vec<Case> = [
            base.clone(),
            wide.clone(),
            Base { seqs: vec![(128, 128)], ..wide.clone() },
            Base { seqs: vec![(129, 257), (127, 127)], group: 2, ..wide.clone() },
            Base { seqs: vec![(193, 193), (191, 383)], ..base.clone() },
            Base { seqs: vec![(130, 130)], causal: false, page_size: 128, ..wide.clone() },
            Base { seqs: vec![(17, 400)], window: 64, kv_heads: 2, group: 3, page_size: 64, ..base.clone() },
            Base { seqs: vec![(70, 140)], window: 3, causal: false, page_size: 8, ..wide.clone() },
            // One page a sequence, of a size that is no multiple of anything.
            Base { seqs: vec![(90, 90)], page_size: 100, ..wide.clone() },
            // Fewer keys than queries, and none: the first queries see nothing. And no queries at all.
            Base { seqs: vec![(9, 4), (3, 0), (0, 5), (2, 2), (0, 0)], ..base.clone() },
            Base { seqs: vec![(2, 33)], softcap: 2.0, ..base.clone() },
            Base { page_size: 64, seqs: vec![(3, 70)], first_page: 600_000, ..base.clone() },
            // More keys than a sequence's own queries see, in two tiles of queries of either size.
            Base { seqs: vec![(236, 493), (31, 49), (256, 317)], window: 61, ..base.clone() },
        ]
        .map(|base| Case { base, half: Half::Bf16, layout: Layout::Paged, deep: false })
        .into();
        let ragged: Vec<(usize, usize)> =
            (0..37).map(|i| (i * 7 % 20 + 1, i * 7 % 20 + 1 + i * 11 % 60)).collect();
        let of = |base, half, layout, deep| Case { base, half, layout, deep };
        corners.extend([
            of(Base { seqs: ragged, ..base.clone() }, Half::Bf16, Layout::Contiguous, false),
            of(Base { seqs: vec![(33, 65), (20, 20)], ..wide.clone() }, Half::F16, Layout::Paged, true),
            of(Base { seqs: vec![(30, 60)], ..base.clone() }, Half::Bf16, Layout::Paged, true),
            // Rows that see nothing but -1e30: exponents that one rounding throws off by more than f32 holds.
            of(Base { seqs: vec![(40, 40)], window: 2, ..base.clone() }, Half::Bf16, Layout::Paged, true),
            of(Base { seqs: vec![(0, 3), (150, 180)], ..wide }, Half::F16, Layout::Contiguous, false),
            // Tiles of keys that one warpgroup passes by while others work on them.
            of(
                Base { seqs: vec![(257, 257), (255, 255)], group: 2, ..base.clone() },
                Half::F16,
                Layout::Contiguous,
                false,
            ),
        ]);
        // Around the tiles of 80 and of 96 keys. Four items and more for three blocks: a query tile is used again.
        for (head_dim, tile) in [(96, 128), (192, 96), (256, 80)] {
            let large = Base {
                head_dim,
                seqs: vec![(129, tile + 1), (3, 2 * tile), (1, 1)],
                group: 2,
                ..base.clone()
            };
            corners.push(of(large.clone(), Half::Bf16, Layout::Paged, false));
            let full =
                Base { causal: false, seqs: vec![(65, tile - 1), (2, 300)], page_size: 64, ..large.clone() };
            corners.push(of(full, Half::F16, Layout::Contiguous, false));
            let deep = Base { window: 2, seqs: vec![(40, 40)], group: 1, page_size: 128, ..large };
            corners.push(of(deep, Half::Bf16, Layout::Paged, true));
        }
        corners
    }

    fn scalar(case: &Case, buffer: &str) -> Scalar {
        case.scalar(buffer)
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let case = Case::shaped(shape, &[64, 96, 128, 192, 256]);
        Some(Case { base: with_boxes(case.base), ..case })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let input = case.input();
        let all: Vec<u32> = (0..case.base.seqs.len() as u32).collect();
        let chosen =
            launch::choose(element(case), case.base.head_dim as u32, case.base.causal, &spans(case, &all))
                .ok_or("no kernel of this head dim")?;
        let (out, lse) = run(harness, case, &input, &all, chosen, CHOICE)?;
        case.compare("attention_prefill_sm90", &input, &out, &f32_values(&lse))?;
        let other = Choice { blocks: CHOICE.blocks + 2, narrow_sections: true, ..CHOICE };
        let (again, lse_again) = run(harness, case, &input, &all, chosen, other)?;
        same_bits("the second run", &out, &again)?;
        same_bits("the second run's lse", &lse, &lse_again)?;
        if case.base.head_dim == 64 {
            let (other, _) = run(harness, case, &input, &all, the_other(case, chosen.0), CHOICE)?;
            same_bits("the other tile", &out, &other)?;
        }

        let seq = case.base.seqs.len() - 1;
        let without_lse = Choice { with_lse: false, ..CHOICE };
        let (own_out, own_lse) = run(harness, case, &input, &[seq as u32], chosen, without_lse)?;
        only("the last sequence alone", case, &input, seq, &out, &own_out)?;
        same_bits("an lse that wasn't asked for", &vec![POISON; own_lse.len()], &own_lse)
    }
}

/// Of the two tiles of head dim 64, the one that isn't `tile`.
fn the_other(case: &Case, tile: Tile) -> (Tile, &'static KernelSpec) {
    match (tile == TILE_HD64, case.half) {
        (true, Half::Bf16) => (TILE_HD64_SHORT, &HD64_SHORT),
        (true, Half::F16) => (TILE_HD64_SHORT, &HD64_SHORT_F16),
        (false, Half::Bf16) => (TILE_HD64, &HD64),
        (false, Half::F16) => (TILE_HD64, &HD64_F16),
    }
}

fn spans(case: &Case, seqs: &[u32]) -> Vec<Span> {
    let span = |&seq: &u32| {
        let (q_len, kv_len) = case.base.seqs[seq as usize];
        Span { seq, q_len: q_len as u32, kv_len: kv_len as u32 }
    };
    seqs.iter().map(span).collect()
}

/// Bytes of `out` and of `lse`.
fn run<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    input: &Input,
    seqs: &[u32],
    (tile, kernel): (Tile, &'static KernelSpec),
    choice: Choice,
) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let (mut arena, placed, base) = (harness.arena(), case.placed(input), &case.base);
    let uploaded = upload(&mut arena, case, input, &placed, seqs)?;
    let spans = spans(case, seqs);
    let work = launch::work_list(tile, &spans);
    let counters = arena.alloc("counters", 8)?;
    arena.write(counters, 0, &[0; 8])?;
    let g_work = arena.input_u32("work", work.as_flattened())?;
    let (page_size, q_heads, kv_heads) =
        (placed.page_size as u32, base.q_heads() as u32, base.kv_heads as u32);
    let box_rows = launch::box_rows(tile, page_size, placed.stride as u32)
        .ok_or_else(|| format!("pages of {page_size} can't be cut into boxes"))?;
    let tokens = u64::from(input.q_starts[base.seqs.len()]);
    let kv_map = launch::kv_map(tile, placed.device_pages(case) as u64, kv_heads, page_size, box_rows);
    let shared = abi::AttentionPrefill {
        out: arena.address(uploaded.out),
        q_starts: arena.address(uploaded.q_starts),
        kv_lens: arena.address(uploaded.kv_lens),
        block_table: arena.address(uploaded.block_table),
        lse: if choice.with_lse { arena.address(uploaded.lse) } else { 0 },
        kv_row_starts: uploaded.kv_row_starts.map_or(0, |starts| arena.address(starts)),
        block_table_stride: placed.stride as u32,
        page_size,
        q_heads,
        kv_heads,
        scale: base.scale(),
        softcap: base.softcap,
        causal: u32::from(base.causal),
        window: base.window,
        ..Default::default()
    };
    let params = abi::AttentionPrefillSm90 {
        q_map: arena
            .tensor_map(&launch::q_map(tile, tokens.max(1), q_heads).at(arena.address(uploaded.q)))?,
        k_map: arena.tensor_map(&kv_map.at(arena.address(uploaded.k_cache)))?,
        v_map: arena.tensor_map(&kv_map.at(arena.address(uploaded.v_cache)))?,
        shared,
        work: arena.address(g_work),
        counters: arena.address(counters),
        tiles: work.len() as u32,
        section_heads: match choice.narrow_sections {
            true => base.group as u32,
            false => {
                let kv_tokens = spans.iter().map(|span| u64::from(span.kv_len)).sum();
                launch::section_heads(tile, q_heads, kv_heads, kv_tokens)
            }
        },
        box_rows,
        reserved: 0,
    };
    arena.launch(kernel, [choice.blocks, 1, 1], &params)?;
    same_bits("the counters", &[0; 8], &arena.all_bytes(counters)?)?;
    Ok((arena.all_bytes(uploaded.out)?, arena.all_bytes(uploaded.lse)?))
}
