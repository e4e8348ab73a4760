use std::ops::Range;

use proptest::{prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{abi, rope_append};
use tilewright_reference::{
    Bound, Floor, KvFormat, RopeProblem, RopeScaling, compare, kv_scale, round_bf16, split_and_rotate,
};

use super::{
    mismatch,
    rotation::{EPS, Rotation},
};
use crate::{
    agreement::Scalar,
    harness::{Arena, Failure, Handle, Harness, POISON, bf16_bytes, bf16_values, f32_values, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct RopeAppend;

#[derive(Debug, Clone)]
pub struct Case {
    tokens: usize,
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    page_size: usize,
    q_norm: bool,
    k_norm: bool,
    llama3: bool,
    format: KvFormat,
    values: Values,
    /// Added to every slot's page.
    first_page: usize,
    seed: u64,
}

/// What the projection holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Values {
    Normal,
    /// Heads of zeros between others, and some of values near the smallest there are.
    Tiny,
    /// Heads of one large element among small ones, which quantise to little or nothing.
    Peaked,
}

/// Pages that slots are drawn from.
const PAGES: usize = 4;

impl Property for RopeAppend {
    const KERNEL: &'static str = "rope_append";
    const EMULATED_CASES: u32 = 200;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let head_dim = select(vec![16usize, 32, 48, 64, 80, 128, 192, 256]);
        let page_size = select(vec![1usize, 7, 16, 64]);
        let flags = (any::<bool>(), any::<bool>(), any::<bool>());
        let format = select(vec![KvFormat::Bf16, KvFormat::Int8, KvFormat::Fp8]);
        let values =
            prop_oneof![4 => Just(Values::Normal), 1 => Just(Values::Tiny), 1 => Just(Values::Peaked)];
        let heads = (prop_oneof![3 => 1..12usize, 1 => 12..50usize], 1..6usize);
        let tokens = prop_oneof![8 => 1..6usize, 1 => Just(37usize)];
        (tokens, heads, head_dim, page_size, flags, format, values, any::<u64>())
            .prop_map(
                |(tokens, heads, head_dim, page_size, (q_norm, k_norm, llama3), format, values, seed)| {
                    let (q_heads, kv_heads) = heads;
                    Case {
                        tokens: tokens.min(PAGES * page_size),
                        q_heads,
                        kv_heads,
                        head_dim,
                        page_size,
                        q_norm,
                        k_norm,
                        llama3,
                        format,
                        values,
                        first_page: 0,
                        seed,
                    }
                },
            )
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let plain = Case {
            tokens: 3,
            q_heads: 6,
            kv_heads: 1,
            head_dim: 128,
            page_size: 64,
            q_norm: false,
            k_norm: false,
            llama3: false,
            format: KvFormat::Bf16,
            values: Values::Normal,
            first_page: 0,
            seed: 1,
        };
        let mut corners = vec![
            Case { q_heads: 1, head_dim: 16, q_norm: true, ..plain.clone() },
            Case { q_heads: 9, head_dim: 256, k_norm: true, ..plain.clone() },
            Case { q_heads: 32, kv_heads: 8, llama3: true, ..plain.clone() },
            // 64 rows of 128 elements a page: page 300,000 begins past element 2^31.
            Case { q_heads: 2, first_page: 300_000, ..plain.clone() },
        ];
        for format in [KvFormat::Int8, KvFormat::Fp8] {
            let quantised = Case { format, ..plain.clone() };
            corners.extend([
                Case { q_heads: 1, head_dim: 16, ..quantised.clone() },
                Case { q_heads: 13, kv_heads: 4, head_dim: 80, k_norm: true, ..quantised.clone() },
                Case { values: Values::Tiny, ..quantised.clone() },
                Case { values: Values::Peaked, head_dim: 64, page_size: 7, ..quantised.clone() },
                // Past byte 2^32.
                Case { q_heads: 2, first_page: 600_000, ..quantised },
            ]);
        }
        corners
    }

    fn scalar(case: &Case, buffer: &str) -> Scalar {
        match (buffer, case.format) {
            ("k_scales" | "v_scales", _) => Scalar::F32,
            ("k_cache" | "v_cache", KvFormat::Int8) => Scalar::Int8,
            ("k_cache" | "v_cache", KvFormat::Fp8) => Scalar::Fp8,
            _ => Scalar::Bf16,
        }
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let page_size = shape.size("page_size", 16, 1, "tokens a page");
        let tokens = shape.size("tokens", 4, 1, "tokens appended");
        if tokens > PAGES * page_size {
            shape.refuse(format!("tokens: expected at most {PAGES} pages of {page_size}, found {tokens}"));
        }
        let head_dim = shape.size("head_dim", 128, 16, "size of a head, at most 256");
        if head_dim > 256 {
            shape.refuse(format!("head_dim: expected at most 256, found {head_dim}"));
        }
        let q_heads = shape.size("q_heads", 8, 1, "query heads");
        let kv_heads = shape.size("kv_heads", 2, 1, "key heads");
        shape.fits(&[
            ("qkv", &[tokens, q_heads + 2 * kv_heads, head_dim]),
            ("the caches", &[2 * PAGES, page_size, kv_heads, head_dim]),
        ]);
        Some(Case {
            tokens,
            q_heads,
            kv_heads,
            head_dim,
            page_size,
            q_norm: shape.flag("q_norm", false, "whether query heads are normed"),
            k_norm: shape.flag("k_norm", false, "whether key heads are normed"),
            llama3: shape.flag("llama3", false, "whether frequencies are scaled as Llama 3.1's"),
            format: KvFormat::Bf16,
            values: Values::Normal,
            first_page: 0,
            seed: shape.inputs(),
        })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let input = Input::of(case);
        let actual = run(harness, case, &input, 0..case.tokens)?;
        let again = run(harness, case, &input, 0..case.tokens)?;
        actual.same_as(&again, "the second run")?;
        let last = case.tokens - 1;
        let alone = run(harness, case, &input, last..case.tokens)?;
        actual.rows(case, last).same_as(&alone, "the last token alone")?;

        let problem = RopeProblem {
            qkv: &input.qkv,
            q_norm: input.rotation.q_norm.as_deref(),
            k_norm: input.rotation.k_norm.as_deref(),
            cos_sin: &input.rotation.cos_sin,
            positions: &input.rotation.positions,
            q_heads: case.q_heads,
            kv_heads: case.kv_heads,
            head_dim: case.head_dim,
            eps: EPS,
        };
        let (truth, plain) = (split_and_rotate::<f64>(&problem), split_and_rotate::<f32>(&problem));
        check_bf16("rope_append q", case, &actual.q, &truth.q, &plain.q)?;
        if case.format == KvFormat::Bf16 {
            check_bf16("rope_append k", case, &actual.k, &truth.k, &plain.k)?;
            return same_bits("rope_append v", &bf16_bytes(&plain.v), &actual.v);
        }
        // Keys are normed and rotated in f32, values come as they are.
        check_quantised("rope_append k", case, &actual.k, &actual.k_scales, &truth.k, 2e-6)?;
        check_quantised("rope_append v", case, &actual.v, &actual.v_scales, &truth.v, 3e-7)
    }
}

fn check_bf16(name: &str, case: &Case, actual: &[u8], truth: &[f64], plain: &[f32]) -> Result<(), Failure> {
    let shape = [case.tokens, truth.len() / case.tokens / case.head_dim, case.head_dim];
    // Cancellation in a rotation loses what f32 loses of its terms.
    let bound = Bound::from_plain(&shape, truth, plain, Floor::BF16.with_absolute(1e-6));
    compare(name, &bf16_values(actual), truth, &bound).map_err(mismatch).map(drop)
}

/// Each scale must be that of its vector within `error` of it, and each element, before the scale, as near to its value as an
/// element can be, or further by `error` of the largest at most: where f32 and f64 fall on different sides of a tie.
fn check_quantised(
    name: &str,
    case: &Case,
    elements: &[u8],
    scales: &[u8],
    truth: &[f64],
    error: f64,
) -> Result<(), Failure> {
    let vectors = || truth.chunks(case.head_dim);
    let expected: Vec<f64> = vectors().filter_map(|vector| kv_scale(case.format, vector)).collect();
    let shape = [case.tokens, case.kv_heads];
    let bound = Bound { shape: shape.to_vec(), limits: expected.iter().map(|scale| scale * error).collect() };
    compare(&format!("{name} scales"), &f32_values(scales), &expected, &bound).map_err(mismatch)?;
    let largest = case.format.largest().ok_or("a format without scales")?;
    let (mut unscaled, mut limits) = (Vec::new(), Vec::new());
    for (vector, &scale) in vectors().zip(&expected) {
        for value in vector {
            let value = if scale == 0.0 { 0.0 } else { value / scale };
            unscaled.push(value);
            limits.push(case.format.rounding_error(value) + largest * error);
        }
    }
    let actual: Vec<f32> = case.format.elements(elements).iter().map(|&value| value as f32).collect();
    let bound = Bound { shape: [&shape[..], &[case.head_dim]].concat(), limits };
    compare(&format!("{name} elements"), &actual, &unscaled, &bound).map_err(mismatch).map(drop)
}

struct Input {
    qkv: Vec<f32>,
    rotation: Rotation,
    /// Within the live pages.
    slots: Vec<u32>,
}

impl Input {
    fn of(case: &Case) -> Input {
        let mut random = Random::new(case.seed);
        let scaling = if case.llama3 {
            let (low, high) = (1.0, 4.0);
            RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context: 64.0,
            }
        } else {
            RopeScaling::Default
        };
        let heads = case.q_heads + 2 * case.kv_heads;
        let mut slots = random.shuffled(PAGES * case.page_size);
        slots.truncate(case.tokens);
        let mut qkv = random.bf16s(case.tokens * heads * case.head_dim, 1.5);
        for head in qkv.chunks_mut(case.head_dim) {
            match (case.values, random.below(3)) {
                (Values::Normal, _) => {}
                (Values::Tiny, 0) => head.fill(0.0),
                (Values::Tiny, 1) => {
                    head.iter_mut().for_each(|value| *value = round_bf16(*value * 2f32.powi(-120)))
                }
                (Values::Tiny, _) => {}
                (Values::Peaked, _) => {
                    let peak = random.below(head.len());
                    head.iter_mut().for_each(|value| *value *= 2f32.powi(-9));
                    head[peak] = if random.below(2) == 0 { 96.0 } else { -96.0 };
                }
            }
        }
        let normed = [case.q_norm, case.k_norm];
        let rotation = Rotation::draw(&mut random, case.head_dim, scaling, normed, case.tokens);
        Input { qkv, rotation, slots }
    }
}

/// What tokens left behind.
struct Output {
    /// bf16 `[tokens, q_heads, head_dim]`.
    q: Vec<u8>,
    /// Elements `[tokens, kv_heads, head_dim]`.
    k: Vec<u8>,
    v: Vec<u8>,
    /// f32 `[tokens, kv_heads]`; nothing where the format has no scales.
    k_scales: Vec<u8>,
    v_scales: Vec<u8>,
}

impl Output {
    fn parts(&self) -> [(&'static str, &Vec<u8>); 5] {
        [
            ("q", &self.q),
            ("k", &self.k),
            ("v", &self.v),
            ("k_scales", &self.k_scales),
            ("v_scales", &self.v_scales),
        ]
    }

    fn same_as(&self, other: &Output, what: &str) -> Result<(), Failure> {
        for ((name, own), (_, others)) in self.parts().into_iter().zip(other.parts()) {
            same_bits(&format!("{what}: {name}"), own, others)?;
        }
        Ok(())
    }

    /// What `token` left.
    fn rows(&self, case: &Case, token: usize) -> Output {
        let of = |bytes: &Vec<u8>| {
            let row = bytes.len() / case.tokens;
            bytes[token * row..(token + 1) * row].to_vec()
        };
        let [q, k, v, k_scales, v_scales] = self.parts().map(|(_, bytes)| of(bytes));
        Output { q, k, v, k_scales, v_scales }
    }
}

fn spec(format: KvFormat) -> Option<&'static abi::KernelSpec> {
    rope_append::spec(match format {
        KvFormat::Bf16 => abi::KV_BF16,
        KvFormat::Int8 => abi::KV_INT8,
        KvFormat::Fp8 => abi::KV_FP8,
    })
}

fn run<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    input: &Input,
    tokens: Range<usize>,
) -> Result<Output, Failure> {
    let mut arena = harness.arena();
    let row = (case.q_heads + 2 * case.kv_heads) * case.head_dim;
    let qkv = arena.input_bf16("qkv", &input.qkv[tokens.start * row..tokens.end * row])?;
    let rotation = input.rotation.params(&mut arena, tokens.clone())?;
    let offset = (case.first_page * case.page_size) as u32;
    let live_slots = &input.slots[tokens.clone()];
    let slots: Vec<u32> = live_slots.iter().map(|slot| slot + offset).collect();
    let slots = arena.input_u32("slots", &slots)?;
    let q_out = arena.alloc("q_out", tokens.len() * case.q_heads * case.head_dim * 2)?;
    let row_bytes = case.head_dim * case.format.element_bytes();
    let k = Cache::new(&mut arena, case, "k_cache", row_bytes)?;
    let v = Cache::new(&mut arena, case, "v_cache", row_bytes)?;
    let scale_bytes = if case.format == KvFormat::Bf16 { 0 } else { 4 };
    let k_scales = Cache::new(&mut arena, case, "k_scales", scale_bytes)?;
    let v_scales = Cache::new(&mut arena, case, "v_scales", scale_bytes)?;
    let params = abi::RopeAppend {
        qkv: arena.address(qkv),
        slots: arena.address(slots),
        q_out: arena.address(q_out),
        k_cache: k.address(&arena),
        v_cache: v.address(&arena),
        k_scales: k_scales.address(&arena),
        v_scales: v_scales.address(&arena),
        q_heads: case.q_heads as u32,
        kv_heads: case.kv_heads as u32,
        head_dim: case.head_dim as u32,
        page_size: case.page_size as u32,
        ..rotation
    };
    let grid = rope_append::grid(params.tokens, params.q_heads, params.kv_heads, params.head_dim);
    arena.launch(spec(case.format).ok_or("no entry for the format")?, grid, &params)?;
    Ok(Output {
        q: arena.all_bytes(q_out)?,
        k: k.appended(&arena, case, live_slots)?,
        v: v.appended(&arena, case, live_slots)?,
        k_scales: k_scales.appended(&arena, case, live_slots)?,
        v_scales: v_scales.appended(&arena, case, live_slots)?,
    })
}

/// `[pages, kv_heads, page_size]` rows of which the live pages are poison before the launch.
struct Cache {
    handle: Option<Handle>,
    row_bytes: usize,
    /// Byte offset of the live pages.
    first: usize,
}

impl Cache {
    /// Nothing at all where rows have no bytes.
    fn new<D: Driver>(
        arena: &mut Arena<'_, D>,
        case: &Case,
        name: &'static str,
        row_bytes: usize,
    ) -> Result<Cache, Failure> {
        let page_bytes = case.kv_heads * case.page_size * row_bytes;
        let (first, live) = (case.first_page * page_bytes, PAGES * page_bytes);
        if row_bytes == 0 {
            return Ok(Cache { handle: None, row_bytes, first });
        }
        let handle = arena.alloc(name, first + live)?;
        arena.write(handle, first, &vec![POISON; live])?;
        Ok(Cache { handle: Some(handle), row_bytes, first })
    }

    fn address<D: Driver>(&self, arena: &Arena<'_, D>) -> u64 {
        self.handle.map_or(0, |handle| arena.address(handle))
    }

    /// What was appended, in order of token; fails if anything beside it changed.
    fn appended<D: Driver>(
        &self,
        arena: &Arena<'_, D>,
        case: &Case,
        slots: &[u32],
    ) -> Result<Vec<u8>, Failure> {
        let Some(handle) = self.handle else { return Ok(Vec::new()) };
        let rows_of_pages = PAGES * case.kv_heads * case.page_size;
        let mut live = arena.bytes(handle, self.first, rows_of_pages * self.row_bytes)?;
        let mut rows = Vec::new();
        for &slot in slots {
            let (page, offset) = (slot as usize / case.page_size, slot as usize % case.page_size);
            for head in 0..case.kv_heads {
                let row = (page * case.kv_heads + head) * case.page_size + offset;
                let row = &mut live[row * self.row_bytes..][..self.row_bytes];
                rows.extend_from_slice(row);
                row.fill(POISON);
            }
        }
        same_bits("slots that nobody appended to", &vec![POISON; live.len()], &live)?;
        Ok(rows)
    }
}
