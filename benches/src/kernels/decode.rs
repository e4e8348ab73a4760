use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_kernels::{
    abi::{self, DecodeSequence},
    attention_decode::{BF16_HD128_ONCE, Variant, select, split::Rule},
    attention_decode_sm90::{self, HD128_BY3, HD128_LANES, HD128_LANES_ONCE},
};

use super::Kernel;
use crate::{
    prepared::Prepared,
    problem::{Decode, KvFormat, Problem},
    random::{Kind, shuffled},
};

/// One launch, split over the keys by each sequence's length and joined by its last block.
pub struct AttentionDecode {
    name: &'static str,
    /// Instead of the cache's own.
    rule: Option<Rule>,
    /// Instead of the entry that serves.
    variant: Option<&'static Variant>,
    pages: Pages,
}

/// The block table of that many pages, from a seed.
type Pages = fn(usize, u64) -> Vec<u32>;

/// Pages that follow each other in the cache, to see what scattered ones cost.
fn in_order(count: usize, _: u64) -> Vec<u32> {
    (0..count as u32).collect()
}

/// As it is launched.
pub const TAKEN: AttentionDecode =
    AttentionDecode { name: "attention_decode", rule: None, variant: None, pages: shuffled };

/// The same kernel letting go of keys and values first, with pages in order, and under other rules of where sequences are cut, called by the chunk's keys and the most chunks: timed where they are named.
/// Those without short chunks cut sequences of 513 to 1024 keys like longer ones.
pub const TRIALS: [AttentionDecode; 10] = [
    AttentionDecode {
        name: "attention_decode_once",
        rule: None,
        variant: Some(&BF16_HD128_ONCE),
        pages: shuffled,
    },
    AttentionDecode { name: "attention_decode_in_order", rule: None, variant: None, pages: in_order },
    trial("attention_decode_640x48", 1024, 640, 48),
    trial("attention_decode_896x48", 1024, 896, 48),
    trial("attention_decode_512x32", 1024, 512, 32),
    trial("attention_decode_512x48", 1024, 512, 48),
    trial("attention_decode_768x48", 1024, 768, 48),
    trial("attention_decode_1024x32", 1024, 1024, 32),
    trial("attention_decode_1024x48", 1024, 1024, 48),
    trial("attention_decode_1024x48_no_short", 0, 1024, 48),
];

const fn trial(name: &'static str, short_tokens: u32, chunk_tokens: u32, max_chunks: u32) -> AttentionDecode {
    let rule = Rule { short_tokens, chunk_tokens, max_chunks };
    assert!(rule.holds());
    AttentionDecode { name, rule: Some(rule), variant: None, pages: shuffled }
}

impl AttentionDecode {
    fn variant(&self, problem: &Decode) -> Option<&'static Variant> {
        let taken = variant(problem)?;
        let variant = self.variant.unwrap_or(taken);
        let of_a_kind = |v: &Variant| (v.format, v.head_dim, v.rows);
        (of_a_kind(variant) == of_a_kind(taken)).then_some(variant)
    }
}

impl<D: Driver> Kernel<D> for AttentionDecode {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, problem: &Problem, _: &GpuInfo) -> bool {
        matches!(problem, Problem::Decode(problem) if self.variant(problem).is_some())
    }

    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>> {
        let mut prepared = Prepared::new(driver);
        let Problem::Decode(problem) = problem else { return Ok(prepared) };
        let Some(variant) = self.variant(problem) else { return Ok(prepared) };
        let rule = self.rule.unwrap_or(Rule::of(variant.format));
        let (params, items) = cut(&mut prepared, problem, seed, (rule, self.pages), variant.rows)?;
        prepared.launch(&variant.spec, [items, 1, 1], &params);
        Ok(prepared)
    }
}

/// Blocks that go from item to item, bf16, compute capability 9.0; the same bits.
pub struct Hopper {
    name: &'static str,
    /// Instead of the one that serves.
    variant: Option<&'static attention_decode_sm90::Variant>,
    pages: Pages,
}

/// As it would be launched, of three blocks a multiprocessor, with tiles by lanes, that letting go of them first, and the first and the third with pages in order.
pub const HOPPER: [Hopper; 6] = [
    hopper("attention_decode_sm90", None, shuffled),
    hopper("attention_decode_sm90_by3", Some(&HD128_BY3), shuffled),
    hopper("attention_decode_sm90_lanes", Some(&HD128_LANES), shuffled),
    hopper("attention_decode_sm90_lanes_once", Some(&HD128_LANES_ONCE), shuffled),
    hopper("attention_decode_sm90_in_order", None, in_order),
    hopper("attention_decode_sm90_lanes_in_order", Some(&HD128_LANES), in_order),
];

const fn hopper(
    name: &'static str,
    variant: Option<&'static attention_decode_sm90::Variant>,
    pages: Pages,
) -> Hopper {
    Hopper { name, variant, pages }
}

impl Hopper {
    fn variant(&self, problem: &Decode) -> Option<&'static attention_decode_sm90::Variant> {
        let group = (problem.q_heads / problem.kv_heads) as u32;
        let taken = attention_decode_sm90::select(problem.head_dim as u32, group, problem.page_size as u32)?;
        let variant = self.variant.unwrap_or(taken);
        let serves = problem.kv == KvFormat::Bf16 && variant.plan.head_dim == taken.plan.head_dim;
        (serves && variant.plan.rows >= group).then_some(variant)
    }
}

impl<D: Driver> Kernel<D> for Hopper {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, problem: &Problem, info: &GpuInfo) -> bool {
        let serves = matches!(problem, Problem::Decode(problem) if self.variant(problem).is_some());
        serves && info.compute_capability == (9, 0)
    }

    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>> {
        let mut prepared = Prepared::new(driver);
        let Problem::Decode(problem) = problem else { return Ok(prepared) };
        let Some(variant) = self.variant(problem) else { return Ok(prepared) };
        let (shared, items) =
            cut(&mut prepared, problem, seed, (Rule::SIXTEEN_BITS, self.pages), variant.plan.rows)?;
        let Decode { seqs, context, kv_heads, page_size, .. } = *problem;
        let map = variant.plan.map((seqs * context.next_multiple_of(page_size) * kv_heads) as u64);
        let params = abi::AttentionDecodeSm90 {
            k_map: driver.tensor_map(&map.at(shared.k_cache))?,
            v_map: driver.tensor_map(&map.at(shared.v_cache))?,
            shared,
            queue: prepared.u32s("queue", vec![0; 2])?,
            items,
            reserved: 0,
        };
        let resident = driver.info().multiprocessors * variant.spec.min_blocks;
        prepared.launch(&variant.spec, [items.min(resident), 1, 1], &params);
        Ok(prepared)
    }
}

/// All buffers and parameters, for entries of `tile_rows` query rows under `rule`, and the items of the launch.
fn cut<D: Driver>(
    prepared: &mut Prepared<'_, D>,
    problem: &Decode,
    seed: u64,
    (rule, pages): (Rule, Pages),
    tile_rows: u32,
) -> Result<(abi::AttentionDecode, u32)> {
    let Decode { seqs, context, q_heads, kv_heads, head_dim, .. } = *problem;
    let chunks = rule.chunks(context as u32);
    let row_tiles = (q_heads / kv_heads).div_ceil(tile_rows as usize);
    let items = seqs * chunks as usize * row_tiles * kv_heads;
    let rows = if chunks > 1 { items * tile_rows as usize } else { 0 };
    let params = abi::AttentionDecode {
        partial_out: prepared.output("partial_out", rows * head_dim * 4)?,
        partial_sums: prepared.output("partial_sums", rows * 8)?,
        counters: prepared.u32s("counters", vec![0; seqs * kv_heads * row_tiles])?,
        sequences: prepared.u32s("sequences", sequences(seqs as u32, context as u32, chunks))?,
        seqs: seqs as u32,
        row_tiles: row_tiles as u32,
        short_tokens: rule.short_tokens,
        chunk_tokens: rule.chunk_tokens,
        max_chunks: rule.max_chunks,
        ..params(prepared, problem, seed, pages)?
    };
    Ok((params, items as u32))
}

fn variant(problem: &Decode) -> Option<&'static Variant> {
    let format = match problem.kv {
        KvFormat::Bf16 => abi::KV_BF16,
        KvFormat::Int8 => abi::KV_INT8,
        KvFormat::Fp8 => abi::KV_FP8,
    };
    select(format, problem.head_dim as u32, (problem.q_heads / problem.kv_heads) as u32)
}

/// The records of sequences of one query each, as words.
fn sequences(seqs: u32, context: u32, chunks: u32) -> Vec<u32> {
    let record = |seq: u32| [seq * chunks, seq, context, seq << DecodeSequence::QUERY_BITS | 1];
    (0..=seqs).flat_map(record).collect()
}

/// The queries, the cache and its table, the output.
fn params<D: Driver>(
    prepared: &mut Prepared<'_, D>,
    problem: &Decode,
    seed: u64,
    table: Pages,
) -> Result<abi::AttentionDecode> {
    let Decode { seqs, context, q_heads, kv_heads, head_dim, page_size, kv } = *problem;
    let pages = context.div_ceil(page_size);
    let vectors = seqs * pages * page_size * kv_heads;
    let kind = match kv {
        KvFormat::Bf16 => Kind::Bf16,
        KvFormat::Int8 => Kind::I8,
        KvFormat::Fp8 => Kind::Fp8,
    };
    let mut params = abi::AttentionDecode {
        q: prepared.random("q", Kind::Bf16, seqs * q_heads * head_dim, seed)?,
        k_cache: prepared.random("k_cache", kind, vectors * head_dim, seed)?,
        v_cache: prepared.random("v_cache", kind, vectors * head_dim, seed)?,
        out: prepared.output("out", seqs * q_heads * head_dim * 2)?,
        block_table: prepared.u32s("block_table", table(seqs * pages, seed))?,
        block_table_stride: pages as u32,
        page_size: page_size as u32,
        q_heads: q_heads as u32,
        kv_heads: kv_heads as u32,
        scale: 1.0 / (head_dim as f32).sqrt(),
        ..abi::AttentionDecode::default()
    };
    if kv != KvFormat::Bf16 {
        params.k_scales = prepared.random("k_scale", Kind::Scale, vectors, seed)?;
        params.v_scales = prepared.random("v_scale", Kind::Scale, vectors, seed)?;
    }
    Ok(params)
}
