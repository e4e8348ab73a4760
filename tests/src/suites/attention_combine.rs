use proptest::{collection::vec, prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{abi, attention_combine::ATTENTION_COMBINE};
use tilewright_reference::{Bound, Floor, combine, compare};

use super::mismatch;
use crate::{
    harness::{Failure, Harness, POISON, bf16_values, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct AttentionCombine;

#[derive(Debug, Clone)]
pub struct Case {
    head_dim: usize,
    q_heads: usize,
    /// Chunks of each sequence; those of one or none are not the kernel's.
    chunks: Vec<usize>,
    seed: u64,
}

const SPLIT_TOKENS: usize = 64;

impl Property for AttentionCombine {
    const KERNEL: &'static str = "attention_combine";
    const EMULATED_CASES: u32 = 200;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        (select(vec![64usize, 128]), 1..9usize, vec(0..9usize, 1..5), any::<u64>())
            .prop_map(|(head_dim, q_heads, chunks, seed)| Case { head_dim, q_heads, chunks, seed })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let corner = |chunks: &[usize]| Case { head_dim: 64, q_heads: 3, chunks: chunks.to_vec(), seed: 1 };
        vec![corner(&[0]), corner(&[1]), corner(&[2, 1, 33]), corner(&[5, 0, 2])]
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let seqs = shape.size("seqs", 2, 1, "sequences");
        Some(Case {
            head_dim: shape.one_of("head_dim", 128, &[64, 128], "size of a head"),
            q_heads: shape.size("q_heads", 8, 1, "query heads"),
            chunks: vec![shape.size("chunks", 8, 1, "chunks of each sequence"); seqs],
            seed: shape.inputs(),
        })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let mut random = Random::new(case.seed);
        let max_splits = case.chunks.iter().copied().max().unwrap_or(0).max(1);
        let rows = case.chunks.len() * case.q_heads;
        let mut lse = random.f32s(rows * max_splits, 4.0);
        let mut partial = random.f32s(rows * max_splits * case.head_dim, 1.0);
        let mut expected = (Vec::new(), Vec::new());
        for row in 0..rows {
            let chunks = case.chunks[row / case.q_heads];
            let lse = &mut lse[row * max_splits..][..max_splits];
            let partial = &mut partial[row * max_splits * case.head_dim..][..max_splits * case.head_dim];
            for chunk in 0..max_splits {
                let empty = chunk < chunks && random.below(5) == 0;
                if empty {
                    lse[chunk] = f32::NEG_INFINITY;
                }
                if empty || chunk >= chunks {
                    partial[chunk * case.head_dim..][..case.head_dim].fill(f32::NAN);
                }
            }
            lse[chunks..].fill(f32::NAN);
            if chunks > 1 {
                expected.0.extend(combine::<f64>(partial, &lse[..chunks], case.head_dim));
                expected.1.extend(combine::<f32>(partial, &lse[..chunks], case.head_dim));
            }
        }
        let run = || launch(harness, case, &partial, &lse, max_splits);
        let actual = run()?;
        same_bits("the second run", &actual, &run()?)?;

        let mut combined = Vec::new();
        let seq_bytes = case.q_heads * case.head_dim * 2;
        for (&chunks, bytes) in case.chunks.iter().zip(actual.chunks(seq_bytes)) {
            match chunks {
                0 | 1 => same_bits("a sequence of one chunk", &vec![POISON; seq_bytes], bytes)?,
                _ => combined.extend(bf16_values(bytes)),
            }
        }
        let shape = [combined.len() / case.head_dim, case.head_dim];
        let bound = Bound::from_plain(&shape, &expected.0, &expected.1, Floor::BF16.with_absolute(1e-6));
        compare("attention_combine", &combined, &expected.0, &bound).map_err(mismatch).map(drop)
    }
}

fn launch<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    partial: &[f32],
    lse: &[f32],
    max_splits: usize,
) -> Result<Vec<u8>, Failure> {
    let seqs = case.chunks.len() as u32;
    let ids: Vec<u32> = (0..=seqs).collect();
    let kv_lens: Vec<u32> =
        case.chunks.iter().map(|&chunks| (chunks * SPLIT_TOKENS).saturating_sub(chunks % 3) as u32).collect();
    let mut arena = harness.arena();
    let partial_out = arena.input_f32("partial_out", partial)?;
    let partial_lse = arena.input_f32("partial_lse", lse)?;
    let out = arena.poisoned("out", case.chunks.len() * case.q_heads * case.head_dim * 2)?;
    let seq_ids = arena.input_u32("seq_ids", &ids[..seqs as usize])?;
    let q_starts = arena.input_u32("q_starts", &ids)?;
    let kv_lens = arena.input_u32("kv_lens", &kv_lens)?;
    let params = abi::AttentionCombine {
        partial_out: arena.address(partial_out),
        partial_lse: arena.address(partial_lse),
        out: arena.address(out),
        seq_ids: arena.address(seq_ids),
        q_starts: arena.address(q_starts),
        kv_lens: arena.address(kv_lens),
        q_heads: case.q_heads as u32,
        head_dim: case.head_dim as u32,
        split_tokens: SPLIT_TOKENS as u32,
        max_splits: max_splits as u32,
    };
    arena.launch(&ATTENTION_COMBINE, [params.q_heads, seqs, 1], &params)?;
    arena.all_bytes(out)
}
