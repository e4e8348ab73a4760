use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_kernels::{
    abi,
    attention_decode::{Variant, appending, split::Rule},
    rope_append,
};

use super::{Kernel, decode};
use crate::{
    prepared::Prepared,
    problem::{Decode, Problem},
};

/// Decode attention with the append of each sequence's newest key and value before it, which replayed steps make one launch of: that, and the
/// two launches. Buffers: those of decode attention, and what the append reads. Rotation is by no angle, and what is appended is in the
/// cache already, so that the problem stays that of attention.
pub struct Append {
    name: &'static str,
    as_one: bool,
}

/// Timed where they are named.
pub const TRIALS: [Append; 2] = [
    Append { name: "attention_decode_append", as_one: true },
    Append { name: "attention_decode_behind_append", as_one: false },
];

/// The entry of attention alone, and the one that appends.
fn variants(problem: &Decode) -> Option<[&'static Variant; 2]> {
    let apart = decode::variant(problem)?;
    let fits = problem.q_heads / problem.kv_heads <= apart.rows as usize;
    Some([apart, appending(apart.spec.name).filter(|_| fits)?])
}

impl<D: Driver> Kernel<D> for Append {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, problem: &Problem, _: &GpuInfo) -> bool {
        matches!(problem, Problem::Decode(problem) if variants(problem).is_some())
    }

    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>> {
        let mut prepared = Prepared::new(driver);
        let Problem::Decode(problem) = problem else { return Ok(prepared) };
        let Some([apart, one]) = variants(problem) else { return Ok(prepared) };
        let rule = Rule::of(apart.format);
        let (attention, blocks) = decode::params(&mut prepared, problem, seed, rule, apart.rows)?;
        let rope = rope(&mut prepared, problem, &attention)?;
        let long_chunks = rule.has_long_chunks(problem.context as u32);
        if self.as_one {
            let params = abi::AttentionDecodeAppend { rope, attention };
            prepared.launch(one.spec_for(long_chunks), [blocks, 1, 1], &params);
        } else {
            let grid = rope_append::grid(rope.tokens, rope.q_heads, rope.kv_heads, rope.head_dim);
            prepared.launch(&rope_append::BF16, grid, &rope);
            prepared.launch(apart.spec_for(long_chunks), [blocks, 1, 1], &attention);
        }
        Ok(prepared)
    }
}

/// What the append reads.
fn rope<D: Driver>(
    prepared: &mut Prepared<'_, D>,
    problem: &Decode,
    attention: &abi::AttentionDecode,
) -> Result<abi::RopeAppend> {
    let Decode { seqs, context, q_heads, kv_heads, head_dim, page_size, .. } = *problem;
    let (pages, last) = (context.div_ceil(page_size), context - 1);
    let table = prepared.integers("block_table")?.to_vec();
    let page_of = |seq: usize| table[seq * pages + last / page_size] as usize;
    let mut qkv = Vec::new();
    for seq in 0..seqs {
        qkv.extend(elements(prepared, "q", seq * q_heads * head_dim, q_heads * head_dim)?);
        for cache in ["k_cache", "v_cache"] {
            for head in 0..kv_heads {
                let row = (page_of(seq) * kv_heads + head) * page_size + last % page_size;
                qkv.extend(elements(prepared, cache, row * head_dim, head_dim)?);
            }
        }
    }
    let slots = (0..seqs).map(|seq| (page_of(seq) * page_size + last % page_size) as u32).collect();
    // Heads are even numbers of elements.
    let words = qkv.chunks_exact(2).map(|pair| u32::from(pair[1]) << 16 | u32::from(pair[0])).collect();
    let [ones, zeros] = [1.0, 0.0].map(|value| vec![value; head_dim / 2]);
    Ok(abi::RopeAppend {
        qkv: prepared.u32s("qkv", words)?,
        cos_sin: prepared.f32s("cos_sin", [ones, zeros].concat())?,
        positions: prepared.u32s("positions", vec![0; seqs])?,
        slots: prepared.u32s("slots", slots)?,
        q_out: attention.q,
        k_cache: attention.k_cache,
        v_cache: attention.v_cache,
        tokens: seqs as u32,
        q_heads: q_heads as u32,
        kv_heads: kv_heads as u32,
        head_dim: head_dim as u32,
        page_size: page_size as u32,
        ..abi::RopeAppend::default()
    })
}

/// The bf16 that a random buffer was filled with, from an element on.
fn elements<D: Driver>(
    prepared: &Prepared<'_, D>,
    name: &str,
    first: usize,
    count: usize,
) -> Result<Vec<u16>> {
    let contents = prepared.elements(name)?;
    Ok((first..first + count).map(|index| (contents.value(index).to_bits() >> 16) as u16).collect())
}
