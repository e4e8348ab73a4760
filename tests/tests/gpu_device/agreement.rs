//! Every operation against the CPU device in f32.
//!
//! Inputs are exact in bf16, so that an operation without intermediate rounding is off by its output's rounding, half a unit
//! in the last place: `2^-9` of it. Bounds are twice that, plus a floor for sums whose terms cancel: what rounding f32 sums
//! differently (and, in attention, weights to bf16) can move.

use tilewright_host::{
    AttentionSpec, Batch, CacheSpec, Device, Gelu, KvDType, LogitChange, LogitChanges, Outputs, RopeAppend,
    SampleRow, Tensor as _, cpu::CpuDevice, gpu::select_tile,
};

use tilewright_reference::{LogitPenalty, adjusted_logit};

use super::setup::*;

/// Twice the relative error of rounding to bf16.
const TWO_ROUNDINGS: f32 = 1.0 / 256.0;

/// Runs `work` on both devices: the GPU's answer, then the CPU's.
macro_rules! both {
    (|$device:ident| $work:expr) => {{
        fn on<D: Device>(device: &D, work: impl Fn(&D) -> Vec<f32>) -> Vec<f32> {
            work(device)
        }
        (on(&gpu(), |$device| $work), on(&CpuDevice::new(), |$device| $work))
    }};
}

#[test]
fn gathers_are_exact() {
    let values = Numbers::new(1).take(11 * 24, 4.0);
    let (found, expected) = both!(|device| {
        let x = tensor(device, &values, 24);
        let mut batch = Batch::default();
        batch.push_generated(&[5], 3, &[1], 16, Outputs::Last);
        batch.push(&[1, 2, 3, 4], 0, &[0], 16, Outputs::Last);
        batch.push(&[6, 7, 8, 9, 9, 9], 0, &[2], 16, Outputs::All);
        let step = device.step(&batch).expect("a step");
        let mut out = device.tensor(16, 24).expect("a tensor");
        device.select_outputs(&x, &step, &mut out).expect("a selection");
        assert_eq!(out.rows(), 8);
        device.read(&out).expect("activations")
    });
    assert_eq!(bits(&found), bits(&expected));
    assert_eq!(bits(&found[24..48]), bits(&values[4 * 24..5 * 24]));
}

#[test]
fn norms() {
    for (rows, cols) in [(1, 8), (3, 96), (5, 2056)] {
        let (x, r) = (Numbers::new(2).take(rows * cols, 3.0), Numbers::new(3).take(rows * cols, 2.0));
        let weight = Numbers::new(4).take(cols, 1.5);
        let (found, expected) = both!(|device| {
            let (x, mut residual) = (tensor(device, &x, cols), tensor(device, &r, cols));
            let weight = device.vector(&weight).expect("a vector");
            let mut out = device.tensor(rows, cols).expect("a tensor");
            device.rms_norm(&x, &weight, 1e-5, &mut out).expect("a norm");
            let mut all = device.read(&out).expect("activations");
            device.add_rms_norm(&x, &mut residual, &weight, 1e-5, &mut out).expect("a norm");
            all.extend(device.read(&out).expect("activations"));
            all.extend(device.read(&residual).expect("activations"));
            all
        });
        assert_close(&format!("norms of {rows} x {cols}"), &found, &expected, TWO_ROUNDINGS, 1e-5);
    }
}

#[test]
fn layer_norms_and_activations_of_encoders() {
    for (rows, cols) in [(1, 8), (3, 96), (5, 2056)] {
        let x = Numbers::new(2).take(rows * cols, 3.0);
        let (weight, bias) = (Numbers::new(4).take(cols, 1.5), Numbers::new(5).take(cols, 1.0));
        let (found, expected) = both!(|device| {
            let mut written = device.tensor(rows + 1, cols).expect("a tensor");
            device.write(&x, &mut written).expect("rows of the host");
            assert_eq!(written.rows(), rows);
            let mut all = device.read(&written).expect("activations");
            let vector = |values: &[f32]| device.vector(values).expect("a vector");
            let (weight, bias) = (vector(&weight), vector(&bias));
            let mut out = device.tensor(rows, cols).expect("a tensor");
            for bias in [None, Some(&bias)] {
                device.layer_norm(&written, &weight, bias, 1e-5, &mut out).expect("a norm");
                all.extend(device.read(&out).expect("activations"));
            }
            for form in [Gelu::Erf, Gelu::Tanh] {
                device.gelu(&written, form, &mut out).expect("an activation");
                all.extend(device.read(&out).expect("activations"));
            }
            all
        });
        assert_close(&format!("encoders' {rows} x {cols}"), &found, &expected, TWO_ROUNDINGS, 1e-5);
    }
}

#[test]
fn softmax_of_scores_written_down() {
    for (heads, tokens) in [(1, 8), (3, 24), (1, 136)] {
        let x = Numbers::new(11).take(heads * tokens * tokens, 30.0);
        let (found, expected) = both!(|device| {
            let mut scores = device.tensor(heads * tokens, tokens).expect("a tensor");
            device.write(&x, &mut scores).expect("rows of the host");
            device.causal_softmax(0.125, &mut scores).expect("weights");
            device.read(&scores).expect("activations")
        });
        assert_close(&format!("softmax of {heads} x {tokens}"), &found, &expected, TWO_ROUNDINGS, 1e-30);
    }
}

#[test]
fn embeddings_take_their_places() {
    let (table, places) = (Numbers::new(1).take(11 * 24, 4.0), Numbers::new(2).take(9 * 24, 1.0));
    let (found, expected) = both!(|device| {
        let mut batch = Batch::default();
        batch.push_generated(&[5], 3, &[1], 16, Outputs::Last);
        batch.push(&[10, 0, 10, 4], 5, &[0], 16, Outputs::Last);
        let step = device.step(&batch).expect("a step");
        let mut out = device.tensor(16, 24).expect("a tensor");
        let (table, places) = (matrix(device, &table, 24), matrix(device, &places, 24));
        device.embed_sum(&table, &places, &step, &mut out).expect("an embedding");
        assert_eq!(out.rows(), 5);
        device.read(&out).expect("activations")
    });
    assert_close("embed_sum", &found, &expected, TWO_ROUNDINGS, 0.0);
    assert_eq!(expected[..24], std::array::from_fn::<f32, 24, _>(|i| table[5 * 24 + i] + places[3 * 24 + i]));
}

#[test]
fn silu() {
    let (rows, inter) = (3, 136);
    let x = Numbers::new(5).take(rows * 2 * inter, 8.0);
    let (found, expected) = both!(|device| {
        let mut out = device.tensor(rows, inter).expect("a tensor");
        device.silu_mul(&tensor(device, &x, 2 * inter), &mut out).expect("a product");
        device.read(&out).expect("activations")
    });
    assert_close("silu_mul", &found, &expected, TWO_ROUNDINGS, 1e-5);
}

#[test]
fn products_on_every_tile() {
    let multiprocessors = tilewright_host::gpu::Driver::info(gpu().driver()).multiprocessors;
    let mut tiles = Vec::new();
    for (m, n, k) in [(1, 72, 64), (16, 136, 40), (17, 264, 24), (65, 192, 72), (300, 520, 40)] {
        tiles.extend(select_tile(m as u32, n as u32, multiprocessors).map(|tile| tile.spec.name));
        let (x, w) = (Numbers::new(6).take(m * k, 1.0), Numbers::new(7).take(n * k, 1.0));
        let (bias, residual) = (Numbers::new(8).take(n, 2.0), Numbers::new(9).take(m * n, 2.0));
        let (found, expected) = both!(|device| {
            let (x, w, bias) =
                (tensor(device, &x, k), matrix(device, &w, k), device.vector(&bias).expect("bias"));
            let mut out = device.tensor(m, n).expect("a tensor");
            device.linear(&x, &w, None, &mut out).expect("a product");
            let mut all = device.read(&out).expect("activations");
            device.linear(&x, &w, Some(&bias), &mut out).expect("a product");
            all.extend(device.read(&out).expect("activations"));
            let mut sum = tensor(device, &residual, n);
            device.linear_residual(&x, &w, Some(&bias), &mut sum).expect("a product");
            all.extend(device.read(&sum).expect("activations"));
            all
        });
        assert_close(&format!("linear {m} x {n} x {k}"), &found, &expected, TWO_ROUNDINGS, 1e-5);
    }
    tiles.sort_unstable();
    tiles.dedup();
    assert_eq!(tiles.len(), 3, "tiles chosen: {tiles:?}");
}

#[test]
fn logits_and_tokens() {
    let (rows, vocab, k) = (5, 331, 48);
    let (x, w) = (Numbers::new(10).take(rows * k, 1.0), Numbers::new(11).take(vocab * k, 1.0));
    let samples: Vec<SampleRow> = [
        (1, 1.0, 0.0, 0.99),
        (0, 1.0, 0.0, 0.3),
        (9, 0.9, 0.0, 0.7),
        (0, 0.8, 0.05, 0.1),
        (40, 0.5, 0.01, 0.0),
    ]
    .map(|(top_k, top_p, min_p, uniform)| SampleRow {
        temperature: 0.7,
        top_p,
        min_p,
        uniform,
        top_k,
        reserved: 0,
    })
    .to_vec();
    let (found, expected) = both!(|device| {
        let mut logits = device.logits(8, vocab).expect("logits");
        device.project_logits(&tensor(device, &x, k), &matrix(device, &w, k), &mut logits).expect("logits");
        let mut all = device.read_logits(&logits).expect("logits");
        let sampled = device.sample(&logits, &samples).expect("tokens");
        let largest = device.argmax(&logits).expect("tokens");
        // One candidate leaves nothing to draw.
        assert_eq!(sampled[0], largest[0]);
        all.extend(largest.into_iter().chain(sampled).map(|token| token as f32));
        all
    });
    let (found_logits, found_tokens) = found.split_at(rows * vocab);
    let (expected_logits, expected_tokens) = expected.split_at(rows * vocab);
    assert_close("logits", found_logits, expected_logits, 1e-5, 1e-5);
    assert_eq!(found_tokens, expected_tokens);
}

#[test]
fn adjusted_logits() {
    let (rows, vocab, k) = (4, 331, 48);
    let (x, w) = (Numbers::new(12).take(rows * k, 1.0), Numbers::new(13).take(vocab * k, 1.0));
    let penalty = LogitPenalty { repetition: Some(1.3), less: Some(0.7), bias: None };
    let asked: [Vec<(u32, LogitPenalty)>; 4] = [
        (0..vocab as u32).map(|token| (token, penalty)).collect(),
        Vec::new(),
        vec![(7, LogitPenalty { bias: Some(f32::NEG_INFINITY), ..penalty }), (330, penalty)],
        vec![(0, LogitPenalty { repetition: None, less: None, bias: Some(2.5) })],
    ];
    let mut changes = LogitChanges::default();
    for (row, asked) in asked.iter().enumerate() {
        let change = |(token, asked): &(u32, LogitPenalty)| {
            let none = LogitChange::none(*token);
            LogitChange {
                repetition: asked.repetition.unwrap_or(none.repetition),
                less: asked.less.unwrap_or(none.less),
                bias: asked.bias.unwrap_or(none.bias),
                ..none
            }
        };
        changes.push(row as u32, &asked.iter().map(change).collect::<Vec<_>>());
    }
    let changed = |before: Vec<f32>| {
        let mut expected = before;
        for (row, asked) in asked.iter().enumerate() {
            for (token, asked) in asked {
                let logit = &mut expected[row * vocab + *token as usize];
                *logit = adjusted_logit(*logit, asked);
            }
        }
        expected
    };
    let after = both!(|device| {
        let mut logits = device.logits(8, vocab).expect("logits");
        device.project_logits(&tensor(device, &x, k), &matrix(device, &w, k), &mut logits).expect("logits");
        let expected = changed(device.read_logits(&logits).expect("logits"));
        device.adjust_logits(&mut logits, &changes).expect("changes");
        let after = device.read_logits(&logits).expect("logits");
        // A device's own logits, changed to the bit.
        assert_eq!(bits(&after), bits(&expected));
        after
    });
    assert_eq!((after.0[2 * vocab + 7], after.1[2 * vocab + 7]), (f32::NEG_INFINITY, f32::NEG_INFINITY));
}

/// A cache in three parts: prompts, then more of some and a token of others, then a token of all.
struct Dialogue {
    head_dim: usize,
    q_heads: usize,
    kv_heads: usize,
    page_size: usize,
    norm: bool,
    spec: fn(usize) -> AttentionSpec,
    dtype: KvDType,
}

impl Dialogue {
    /// New tokens of each of three sequences in each step. Where attention is causal, those of the last are drafts: a chain, a tree.
    const STEPS: [[usize; 3]; 4] = [[70, 1, 300], [3, 1, 1], [1, 1, 1], [3, 6, 1]];
    const MASKS: [&[u32]; 3] = [&[1, 3, 7], &[1, 2, 5, 10, 17, 42], &[1]];

    fn run<D: Device>(&self, device: &D) -> Vec<f32> {
        let &Dialogue { head_dim, q_heads, kv_heads, page_size, dtype, .. } = self;
        let pages_each = 304usize.div_ceil(page_size);
        let spec = CacheSpec { layers: 2, pages: 3 * pages_each, page_size, kv_heads, head_dim, dtype };
        let mut cache = device.cache(spec).expect("a cache");
        let inv_freq: Vec<f32> =
            (0..head_dim / 2).map(|i| 1e4f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let rope = device.rope(&inv_freq, 1.0, 304).expect("a table");
        let norms = [12, 13].map(|seed| {
            let weight = Numbers::new(seed).take(head_dim, 1.5);
            device.vector(&weight).expect("a vector")
        });
        let cols = (q_heads + 2 * kv_heads) * head_dim;
        let (mut cached, mut all) = ([0usize; 3], Vec::new());
        for (turn, lens) in Self::STEPS.iter().enumerate() {
            let mut batch = Batch::default();
            // Generated tokens come first.
            let mut order = [0, 1, 2];
            order.sort_by_key(|&seq| lens[seq] != 1);
            for seq in order {
                let len = lens[seq];
                // Pages in descending order, sequences interleaved.
                let pages: Vec<u32> = (0..pages_each).rev().map(|page| (3 * page + seq) as u32).collect();
                let (ids, page_size) = (vec![0; len], page_size as u32);
                if turn == 3 && (self.spec)(q_heads).causal {
                    batch.push_drafts(&ids, cached[seq] as u32, &pages, page_size, Self::MASKS[seq]);
                } else if len == 1 {
                    batch.push_generated(&ids, cached[seq] as u32, &pages, page_size, Outputs::Last);
                } else {
                    batch.push(&ids, cached[seq] as u32, &pages, page_size, Outputs::Last);
                }
                cached[seq] += len;
            }
            let step = device.step(&batch).expect("a step");
            let x = Numbers::new(20 + turn as u64).take(batch.tokens() * cols, 1.0);
            let qkv = tensor(device, &x, cols);
            let mut q = device.tensor(batch.tokens(), q_heads * head_dim).expect("a tensor");
            let mut out = device.tensor(batch.tokens(), q_heads * head_dim).expect("a tensor");
            let qk_norm = self.norm.then_some((&norms[0], &norms[1], 1e-6));
            let args = RopeAppend { qkv: &qkv, qk_norm, rope: &rope, q_heads, layer: 1 };
            device.rope_append(args, &step, &mut cache, &mut q).expect("an append");
            device.attention(&q, &cache, 1, &step, &(self.spec)(q_heads), &mut out).expect("attention");
            all.extend(device.read(&q).expect("queries"));
            all.extend(device.read(&out).expect("activations"));
        }
        all
    }

    fn check(&self, what: &str) {
        // Scores of rotated bf16 queries and keys are off by about sqrt(head_dim) roundings of their terms, which the softmax
        // passes on relative to the spread of the values (1).
        assert_close(what, &self.run(&gpu()), &self.run(&CpuDevice::new()), TWO_ROUNDINGS, 1.0 / 128.0);
    }
}

fn causal(q_heads: usize) -> AttentionSpec {
    AttentionSpec { q_heads, scale: 0.125, causal: true, window: None, softcap: None }
}

#[test]
fn attention_with_heads_of_64() {
    Dialogue {
        head_dim: 64,
        q_heads: 4,
        kv_heads: 2,
        page_size: 16,
        norm: false,
        spec: causal,
        dtype: KvDType::Native,
    }
    .check("causal");
}

#[test]
fn attention_with_heads_of_128_and_norms() {
    let spec = |q_heads| AttentionSpec { scale: 0.08, ..causal(q_heads) };
    Dialogue {
        head_dim: 128,
        q_heads: 3,
        kv_heads: 1,
        page_size: 304,
        norm: true,
        spec,
        dtype: KvDType::Native,
    }
    .check("contiguous, norms");
}

#[test]
fn attention_through_a_window() {
    let spec = |q_heads| AttentionSpec { window: Some(20), ..causal(q_heads) };
    Dialogue {
        head_dim: 64,
        q_heads: 2,
        kv_heads: 2,
        page_size: 7,
        norm: false,
        spec,
        dtype: KvDType::Native,
    }
    .check("window");
}

#[test]
fn attention_both_ways_with_capped_scores() {
    let spec = |q_heads| AttentionSpec { causal: false, softcap: Some(2.0), ..causal(q_heads) };
    Dialogue {
        head_dim: 64,
        q_heads: 2,
        kv_heads: 1,
        page_size: 64,
        norm: false,
        spec,
        dtype: KvDType::Native,
    }
    .check("full, softcap");
}

#[test]
fn attention_over_caches_of_eight_bits() {
    for (dtype, head_dim, page_size) in
        [(KvDType::Int8, 64, 16), (KvDType::Fp8, 128, 7), (KvDType::Int8, 64, 304)]
    {
        // Both devices quantise the same numbers but for the order of rotation's sums, so that now and then an element is a step off.
        let dialogue =
            Dialogue { head_dim, q_heads: 4, kv_heads: 2, page_size, norm: false, spec: causal, dtype };
        dialogue.check(&format!("{dtype:?}, heads of {head_dim}, pages of {page_size}"));
        // It is no other cache: bf16 differs by more than rounding.
        let exact = Dialogue { dtype: KvDType::Native, ..dialogue }.run(&CpuDevice::new());
        let found = dialogue.run(&CpuDevice::new());
        assert!(exact.iter().zip(&found).any(|(a, b)| (a - b).abs() > 1e-3), "{dtype:?}");
    }
}
