//! Rows of listed pages of a quantised cache as bf16, bit for bit; nothing else is read or written.

use proptest::{collection::vec, prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi::{self, KV_FP8, KV_INT8, WidenPage},
    kv_widen,
};
use tilewright_reference::KvFormat;

use super::sizes;
use crate::{
    harness::{Arena, Failure, Handle, Harness, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct KvWiden;

#[derive(Debug, Clone)]
pub struct Case {
    format: KvFormat,
    head_dim: usize,
    kv_heads: usize,
    page_size: usize,
    /// Keys of each sequence; `None` lists a page with all of its rows.
    keys: Vec<Option<usize>>,
    /// Added to every page.
    first_page: usize,
    seed: u64,
}

impl Property for KvWiden {
    const KERNEL: &'static str = "kv_widen";
    const EMULATED_CASES: u32 = 120;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let shape = (
            select(vec![KvFormat::Int8, KvFormat::Fp8]),
            select(vec![16usize, 64, 96, 128, 256]),
            1..4usize,
            select(vec![1usize, 7, 8, 16, 16, 32, 63, 64, 65, 128]),
        );
        let keys = prop_oneof![6 => sizes(64, 300).prop_map(Some), 1 => Just(Some(0)), 1 => Just(None)];
        (shape, vec(keys, 1..4), any::<u64>())
            .prop_map(|((format, head_dim, kv_heads, page_size), keys, seed)| Case {
                format,
                head_dim,
                kv_heads,
                page_size,
                keys,
                first_page: 0,
                seed,
            })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let plain = Case {
            format: KvFormat::Int8,
            head_dim: 64,
            kv_heads: 2,
            page_size: 16,
            keys: vec![Some(33), Some(1), Some(16)],
            first_page: 0,
            seed: 1,
        };
        vec![
            plain.clone(),
            Case { format: KvFormat::Fp8, head_dim: 128, ..plain.clone() },
            Case { keys: vec![Some(0), None], page_size: 130, ..plain.clone() },
            // Elements past 2^31, and bytes of what comes out past 2^32.
            Case { first_page: 700_000, page_size: 64, keys: vec![Some(70)], ..plain.clone() },
            Case { first_page: 700_000, page_size: 64, format: KvFormat::Fp8, keys: vec![None], ..plain },
        ]
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let keys = shape.size("keys", 256, 1, "keys of each sequence");
        let seqs = shape.size("seqs", 1, 1, "sequences");
        let formats = [KV_INT8, KV_FP8].map(|format| format as usize);
        let format = shape.one_of("format", KV_INT8 as usize, &formats, "1: int8, 2: fp8");
        let head_dim = shape.size("head_dim", 128, 16, "size of a head");
        let kv_heads = shape.size("kv_heads", 2, 1, "key heads");
        let page_size = shape.size("page_size", 16, 1, "tokens a page");
        let fits = shape.fits(&[("keys and values", &[2, seqs, keys + page_size, kv_heads, head_dim])]);
        Some(Case {
            format: if format == KV_INT8 as usize { KvFormat::Int8 } else { KvFormat::Fp8 },
            head_dim,
            kv_heads,
            page_size,
            keys: vec![Some(keys); if fits { seqs } else { 0 }],
            first_page: 0,
            seed: shape.inputs(),
        })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let input = Input::of(case);
        let actual = run(harness, case, &input)?;
        let planes = [&input.keys, &input.values];
        for ((what, plane), actual) in ["keys", "values"].iter().zip(planes).zip(&actual) {
            // The other rows of the output stay the poison that they were.
            let mut expected = vec![crate::harness::POISON; actual.len()];
            for (row, codes, scale) in &plane.rows {
                let bits = case.format.widened(codes, *scale);
                let bytes: Vec<u8> = bits.into_iter().flat_map(u16::to_le_bytes).collect();
                expected[row * case.head_dim * 2..][..bytes.len()].copy_from_slice(&bytes);
            }
            same_bits(&format!("kv_widen: {what} against the oracle"), &expected, actual)?;
        }
        let again = run(harness, case, &input)?;
        for (first, second) in actual.iter().zip(&again) {
            same_bits("kv_widen: the second run", first, second)?;
        }
        Ok(())
    }
}

/// The rows that hold something: their numbers among live pages, codes and scales. Others are never written.
struct Plane {
    rows: Vec<(usize, Vec<u8>, f32)>,
}

struct Input {
    list: Vec<WidenPage>,
    live_pages: usize,
    keys: Plane,
    values: Plane,
}

impl Input {
    fn of(case: &Case) -> Input {
        let mut random = Random::new(case.seed);
        // A page more than has keys, where pages are reserved before they are needed; and one that nobody lists.
        let pages_of = |keys: &Option<usize>| keys.map_or(1, |keys| keys.div_ceil(case.page_size) + 1);
        let live_pages = 1 + case.keys.iter().map(pages_of).sum::<usize>();
        let mut free = random.shuffled(live_pages);
        let (mut list, mut rows) = (Vec::new(), Vec::new());
        for keys in &case.keys {
            for index in 0..pages_of(keys) {
                let Some(page) = free.pop() else { break };
                let held = keys.map_or(case.page_size, |keys| {
                    keys.saturating_sub(index * case.page_size).min(case.page_size)
                });
                for head in 0..case.kv_heads {
                    let first = (page as usize * case.kv_heads + head) * case.page_size;
                    rows.extend(first..first + held);
                }
                list.push(WidenPage {
                    page: page + case.first_page as u32,
                    index: if keys.is_none() { 0 } else { index as u32 },
                    kv_len: keys.map_or(u32::MAX, |keys| keys as u32),
                    reserved: 0,
                });
            }
        }
        let mut plane = || Plane { rows: rows.iter().map(|&row| vector(case, row, &mut random)).collect() };
        Input { live_pages, keys: plane(), values: plane(), list }
    }
}

/// A row's codes, every one that the format has now and then, and its scale: 0, tiny, huge or plain.
fn vector(case: &Case, row: usize, random: &mut Random) -> (usize, Vec<u8>, f32) {
    let code = |random: &mut Random| loop {
        let code = random.bits() as u8;
        let absent = if case.format == KvFormat::Int8 { code == 0x80 } else { code & 0x7f == 0x7f };
        if !absent {
            return code;
        }
    };
    let codes = (0..case.head_dim).map(|_| code(random)).collect();
    let scale = match random.below(8) {
        0 => 0.0,
        1 => 2f32.powi(-110) / 448.0,
        2 => 1e30,
        _ => 0.001 + random.uniform(),
    };
    (row, codes, scale)
}

fn run<D: Driver>(harness: &Harness<D>, case: &Case, input: &Input) -> Result<[Vec<u8>; 2], Failure> {
    let mut arena = harness.arena();
    let page_rows = case.kv_heads * case.page_size;
    let (first, live) = (case.first_page * page_rows, input.live_pages * page_rows);
    let plane = |arena: &mut Arena<'_, D>, plane: &Plane| -> Result<[Handle; 3], Failure> {
        let codes = arena.alloc("codes", (first + live) * case.head_dim)?;
        let scales = arena.alloc("scales", (first + live) * 4)?;
        for (row, row_codes, scale) in &plane.rows {
            arena.write(codes, (first + row) * case.head_dim, row_codes)?;
            arena.write(scales, (first + row) * 4, &scale.to_le_bytes())?;
        }
        let out = arena.alloc("out", (first + live) * case.head_dim * 2)?;
        let poison = vec![crate::harness::POISON; live * case.head_dim * 2];
        arena.write(out, first * case.head_dim * 2, &poison)?;
        Ok([codes, scales, out])
    };
    let (keys, values) = (plane(&mut arena, &input.keys)?, plane(&mut arena, &input.values)?);
    let list = arena.input("pages", bytemuck::cast_slice(&input.list))?;
    let [k_codes, k_scales, k_out] = keys.map(|handle| arena.address(handle));
    let [v_codes, v_scales, v_out] = values.map(|handle| arena.address(handle));
    let params = abi::KvWiden {
        k_codes,
        v_codes,
        k_scales,
        v_scales,
        k_out,
        v_out,
        pages: arena.address(list),
        page_size: case.page_size as u32,
        kv_heads: case.kv_heads as u32,
        head_dim: case.head_dim as u32,
        parts: kv_widen::parts(case.page_size as u32),
    };
    let format = if case.format == KvFormat::Int8 { KV_INT8 } else { KV_FP8 };
    let spec = kv_widen::spec(format).ok_or("no entry for the format")?;
    let grid = kv_widen::grid(input.list.len() as u32, params.page_size, params.kv_heads)
        .ok_or("the grid is too large")?;
    if !grid.contains(&0) {
        arena.launch(spec, grid, &params)?;
    }
    let (from, bytes) = (first * case.head_dim * 2, live * case.head_dim * 2);
    Ok([arena.bytes(keys[2], from, bytes)?, arena.bytes(values[2], from, bytes)?])
}
