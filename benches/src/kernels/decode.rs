use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_kernels::{
    abi::{self, DecodeSequence},
    attention_decode::{Variant, select, split::Rule},
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
}

/// As it is launched.
pub const TAKEN: AttentionDecode = AttentionDecode { name: "attention_decode", rule: None };

/// The same kernel under other rules of where sequences are cut, called by the chunk's keys and the most chunks, and by the short chunk's
/// keys where that isn't the chunk: timed where they are named.
pub const TRIALS: [AttentionDecode; 11] = [
    trial("attention_decode_256_512x32", 256, 512, 32),
    trial("attention_decode_384_512x32", 384, 512, 32),
    trial("attention_decode_512x32", 512, 512, 32),
    trial("attention_decode_384_640x32", 384, 640, 32),
    trial("attention_decode_384_768x32", 384, 768, 32),
    trial("attention_decode_384_896x32", 384, 896, 32),
    trial("attention_decode_256_768x48", 256, 768, 48),
    trial("attention_decode_384_768x48", 384, 768, 48),
    trial("attention_decode_512_768x48", 512, 768, 48),
    trial("attention_decode_256_1024x48", 256, 1024, 48),
    trial("attention_decode_1024x48", 1024, 1024, 48),
];

const fn trial(
    name: &'static str,
    short_chunk_tokens: u32,
    chunk_tokens: u32,
    max_chunks: u32,
) -> AttentionDecode {
    let rule = Rule { short_tokens: 1024, short_chunk_tokens, middle_tokens: 0, chunk_tokens, max_chunks };
    assert!(rule.holds());
    AttentionDecode { name, rule: Some(rule) }
}

impl<D: Driver> Kernel<D> for AttentionDecode {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, problem: &Problem, _: &GpuInfo) -> bool {
        matches!(problem, Problem::Decode(problem) if variant(problem).is_some())
    }

    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>> {
        let mut prepared = Prepared::new(driver);
        let Problem::Decode(problem) = problem else { return Ok(prepared) };
        let Some(variant) = variant(problem) else { return Ok(prepared) };
        let rule = self.rule.unwrap_or(Rule::of(variant.format));
        let (params, blocks) = params(&mut prepared, problem, seed, rule, variant.rows)?;
        let spec = variant.spec_for(rule.has_long_chunks(problem.context as u32));
        prepared.launch(spec, [blocks, 1, 1], &params);
        Ok(prepared)
    }
}

/// The entry that serves.
pub(super) fn variant(problem: &Decode) -> Option<&'static Variant> {
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

/// All buffers, and parameters under `rule` for an entry of `tile_rows` query rows; the blocks.
pub(super) fn params<D: Driver>(
    prepared: &mut Prepared<'_, D>,
    problem: &Decode,
    seed: u64,
    rule: Rule,
    tile_rows: u32,
) -> Result<(abi::AttentionDecode, u32)> {
    let Decode { seqs, context, q_heads, kv_heads, head_dim, .. } = *problem;
    let chunks = rule.chunks(context as u32);
    let row_tiles = (q_heads / kv_heads).div_ceil(tile_rows as usize);
    let blocks = seqs * chunks as usize * row_tiles * kv_heads;
    let rows = if chunks > 1 { blocks * tile_rows as usize } else { 0 };
    let params = abi::AttentionDecode {
        partial_out: prepared.output("partial_out", rows * head_dim * 4)?,
        partial_sums: prepared.output("partial_sums", rows * 8)?,
        counters: prepared.u32s("counters", vec![0; seqs * kv_heads * row_tiles])?,
        sequences: prepared.u32s("sequences", sequences(seqs as u32, context as u32, chunks))?,
        seqs: seqs as u32,
        row_tiles: row_tiles as u32,
        short_tokens: rule.short_tokens,
        short_chunk_tokens: rule.short_chunk_tokens,
        middle_tokens: rule.middle_tokens,
        chunk_tokens: rule.chunk_tokens,
        max_chunks: rule.max_chunks,
        ..tensors(prepared, problem, seed)?
    };
    Ok((params, blocks as u32))
}

/// The queries, the cache and its table, the output.
fn tensors<D: Driver>(
    prepared: &mut Prepared<'_, D>,
    problem: &Decode,
    seed: u64,
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
        block_table: prepared.u32s("block_table", shuffled(seqs * pages, seed))?,
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
