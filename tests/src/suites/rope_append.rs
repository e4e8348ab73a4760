use proptest::{prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{abi, rope_append::ROPE_APPEND};
use tilewright_reference::{
    Bound, Floor, RopeProblem, RopeScaling, compare, rope_frequencies, rope_table, split_and_rotate,
};

use super::mismatch;
use crate::{
    harness::{Arena, Failure, Handle, Harness, POISON, bf16_values, same_bits},
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
    /// Added to every slot's page.
    first_page: usize,
    seed: u64,
}

const POSITIONS: usize = 97;
const EPS: f32 = 1e-6;
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
        (1..5usize, 1..12usize, 1..5usize, head_dim, page_size, flags, any::<u64>())
            .prop_map(|(tokens, q_heads, kv_heads, head_dim, page_size, (q_norm, k_norm, llama3), seed)| {
                Case {
                    tokens: tokens.min(PAGES * page_size),
                    q_heads,
                    kv_heads,
                    head_dim,
                    page_size,
                    q_norm,
                    k_norm,
                    llama3,
                    first_page: 0,
                    seed,
                }
            })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let corner = |q_heads, head_dim, norm, first_page| Case {
            tokens: 3,
            q_heads,
            kv_heads: 1,
            head_dim,
            page_size: 64,
            q_norm: norm,
            k_norm: !norm,
            llama3: norm,
            first_page,
            seed: 1,
        };
        vec![
            corner(1, 16, true, 0),
            corner(9, 256, false, 0),
            corner(6, 128, true, 0),
            // 64 rows of 128 elements a page: page 300,000 begins past element 2^31.
            corner(2, 128, false, 300_000),
        ]
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
        Some(Case {
            tokens,
            q_heads: shape.size("q_heads", 8, 1, "query heads"),
            kv_heads: shape.size("kv_heads", 2, 1, "key heads"),
            head_dim,
            page_size,
            q_norm: shape.flag("q_norm", false, "whether query heads are normed"),
            k_norm: shape.flag("k_norm", false, "whether key heads are normed"),
            llama3: shape.flag("llama3", false, "whether frequencies are scaled as Llama 3.1's"),
            first_page: 0,
            seed: shape.inputs(),
        })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let input = Input::of(case);
        let actual = run(harness, case, &input)?;
        let again = run(harness, case, &input)?;
        for (name, first, second) in
            [("q", &actual.q, &again.q), ("k", &actual.k, &again.k), ("v", &actual.v, &again.v)]
        {
            same_bits(&format!("the second run's {name}"), first, second)?;
        }
        let problem = RopeProblem {
            qkv: &input.qkv,
            q_norm: input.q_norm.as_deref(),
            k_norm: input.k_norm.as_deref(),
            cos_sin: &input.cos_sin,
            positions: &input.positions,
            q_heads: case.q_heads,
            kv_heads: case.kv_heads,
            head_dim: case.head_dim,
            eps: EPS,
        };
        let (truth, plain) = (split_and_rotate::<f64>(&problem), split_and_rotate::<f32>(&problem));
        for (name, actual, truth, plain) in [
            ("rope_append q", &actual.q, &truth.q, &plain.q),
            ("rope_append k", &actual.k, &truth.k, &plain.k),
            ("rope_append v", &actual.v, &truth.v, &plain.v),
        ] {
            let shape = [case.tokens, truth.len() / case.tokens / case.head_dim, case.head_dim];
            // Cancellation in a rotation loses what f32 loses of its terms.
            let bound = Bound::from_plain(&shape, truth, plain, Floor::BF16.with_absolute(1e-6));
            compare(name, &bf16_values(actual), truth, &bound).map_err(mismatch)?;
        }
        Ok(())
    }
}

struct Input {
    qkv: Vec<f32>,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    cos_sin: Vec<f32>,
    positions: Vec<u32>,
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
        let frequencies = rope_frequencies(case.head_dim, 10_000.0, scaling);
        let heads = case.q_heads + 2 * case.kv_heads;
        let mut slots = random.shuffled(PAGES * case.page_size);
        slots.truncate(case.tokens);
        Input {
            qkv: random.bf16s(case.tokens * heads * case.head_dim, 1.5),
            q_norm: case.q_norm.then(|| random.f32s(case.head_dim, 1.0)),
            k_norm: case.k_norm.then(|| random.f32s(case.head_dim, 1.0)),
            cos_sin: rope_table(&frequencies, POSITIONS).iter().map(|&value| value as f32).collect(),
            positions: (0..case.tokens).map(|_| random.below(POSITIONS) as u32).collect(),
            slots,
        }
    }
}

/// Bytes of `[tokens, heads, head_dim]`.
struct Output {
    q: Vec<u8>,
    k: Vec<u8>,
    v: Vec<u8>,
}

fn run<D: Driver>(harness: &Harness<D>, case: &Case, input: &Input) -> Result<Output, Failure> {
    let mut arena = harness.arena();
    let page_bytes = case.kv_heads * case.page_size * case.head_dim * 2;
    let (first, live) = (case.first_page * page_bytes, PAGES * page_bytes);
    let qkv = arena.input_bf16("qkv", &input.qkv)?;
    let mut optional = |name, values: &Option<Vec<f32>>| match values {
        Some(values) => arena.input_f32(name, values).map(|handle| arena.address(handle)),
        None => Ok(0),
    };
    let (q_norm, k_norm) = (optional("q_norm", &input.q_norm)?, optional("k_norm", &input.k_norm)?);
    let cos_sin = arena.input_f32("cos_sin", &input.cos_sin)?;
    let positions = arena.input_u32("positions", &input.positions)?;
    let offset = (case.first_page * case.page_size) as u32;
    let slots: Vec<u32> = input.slots.iter().map(|slot| slot + offset).collect();
    let slots = arena.input_u32("slots", &slots)?;
    let q_out = arena.alloc("q_out", case.tokens * case.q_heads * case.head_dim * 2)?;
    let k_cache = arena.alloc("k_cache", first + live)?;
    let v_cache = arena.alloc("v_cache", first + live)?;
    arena.write(k_cache, first, &vec![POISON; live])?;
    arena.write(v_cache, first, &vec![POISON; live])?;
    let params = abi::RopeAppend {
        qkv: arena.address(qkv),
        q_norm,
        k_norm,
        cos_sin: arena.address(cos_sin),
        positions: arena.address(positions),
        slots: arena.address(slots),
        q_out: arena.address(q_out),
        k_cache: arena.address(k_cache),
        v_cache: arena.address(v_cache),
        tokens: case.tokens as u32,
        q_heads: case.q_heads as u32,
        kv_heads: case.kv_heads as u32,
        head_dim: case.head_dim as u32,
        page_size: case.page_size as u32,
        eps: EPS,
    };
    arena.launch(&ROPE_APPEND, [case.tokens as u32, 1, 1], &params)?;
    Ok(Output {
        q: arena.all_bytes(q_out)?,
        k: appended(&arena, k_cache, first, case, input)?,
        v: appended(&arena, v_cache, first, case, input)?,
    })
}

/// What was appended, in order of token; fails if anything beside it changed.
fn appended<D: Driver>(
    arena: &Arena<'_, D>,
    cache: Handle,
    first: usize,
    case: &Case,
    input: &Input,
) -> Result<Vec<u8>, Failure> {
    let row_bytes = case.head_dim * 2;
    let mut live = arena.bytes(cache, first, PAGES * case.kv_heads * case.page_size * row_bytes)?;
    let mut rows = Vec::new();
    for &slot in &input.slots {
        let (page, offset) = (slot as usize / case.page_size, slot as usize % case.page_size);
        for head in 0..case.kv_heads {
            let row = &mut live[((page * case.kv_heads + head) * case.page_size + offset) * row_bytes..]
                [..row_bytes];
            rows.extend_from_slice(row);
            row.fill(POISON);
        }
    }
    same_bits("slots that nobody appended to", &vec![POISON; live.len()], &live)?;
    Ok(rows)
}
