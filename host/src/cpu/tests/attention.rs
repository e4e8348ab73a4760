use super::*;
use crate::cpu::cache::Stored;
use crate::{AttentionSpec, Batch, CacheSpec, Error, KvDType, Outputs, RopeAppend};

/// A model's attention: what all cases share.
#[derive(Clone, Copy)]
struct Heads {
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// One sequence's queries, keys and values, `[tokens, heads, head_dim]`, unrotated.
struct Sequence {
    qkv: Vec<f32>,
    len: usize,
}

impl Sequence {
    fn new(numbers: &mut Numbers, len: usize, heads: Heads) -> Self {
        let mut qkv = numbers.floats(len * heads.row());
        qkv.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x * 2.0).to_f32());
        Sequence { qkv, len }
    }
}

impl Heads {
    fn row(&self) -> usize {
        (self.q_heads + 2 * self.kv_heads) * self.head_dim
    }

    /// All queries of a sequence against all its keys.
    fn reference(&self, sequence: &Sequence, spec: &AttentionSpec) -> Vec<f64> {
        let at = |token: usize, head: usize, i: usize| {
            f64::from(sequence.qkv[token * self.row() + head * self.head_dim + i])
        };
        let mut out = Vec::new();
        for p in 0..sequence.len {
            for head in 0..self.q_heads {
                let k_head = self.q_heads + head / (self.q_heads / self.kv_heads);
                let seen: Vec<usize> = (0..sequence.len)
                    .filter(|&j| !spec.causal || j <= p)
                    .filter(|&j| spec.window.is_none_or(|w| j + w > p && j < p + w))
                    .collect();
                let scores: Vec<f64> = seen
                    .iter()
                    .map(|&j| {
                        let dot: f64 = (0..self.head_dim).map(|i| at(p, head, i) * at(j, k_head, i)).sum();
                        let score = dot * f64::from(spec.scale);
                        spec.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..self.head_dim {
                    let v = |j| at(j, k_head + self.kv_heads, i);
                    out.push(seen.iter().zip(&weights).map(|(&j, w)| w / total * v(j)).sum());
                }
            }
        }
        out
    }

    /// The device's outputs of every token when each sequence is fed in chunks of `chunk` tokens, all sequences in one batch.
    fn run(
        &self,
        device: &CpuDevice,
        sequences: &[&Sequence],
        spec: &AttentionSpec,
        page_size: usize,
        chunk: usize,
    ) -> Vec<Vec<f32>> {
        self.run_over(device, KvDType::Native, sequences, spec, [page_size, chunk])
    }

    /// As [`Heads::run`], over a cache of `dtype`.
    fn run_over(
        &self,
        device: &CpuDevice,
        dtype: KvDType,
        sequences: &[&Sequence],
        spec: &AttentionSpec,
        [page_size, chunk]: [usize; 2],
    ) -> Vec<Vec<f32>> {
        let Heads { q_heads, kv_heads, head_dim } = *self;
        let per_sequence = sequences.iter().map(|s| s.len.div_ceil(page_size)).max().unwrap();
        let pages = per_sequence * sequences.len() + 1;
        let cache_spec = CacheSpec { layers: 2, pages, page_size, kv_heads, head_dim, dtype };
        let mut cache = device.cache(cache_spec).unwrap();
        for stored in &mut cache.layers {
            match stored {
                Stored::F32 { keys, values } => {
                    keys.fill(f32::NAN);
                    // Padding columns of values are never read back, but they are computed with.
                    values.fill(f32::NAN);
                }
                Stored::Codes { keys, values } => {
                    keys.scales.fill(f32::NAN);
                    values.scales.fill(f32::NAN);
                }
            }
        }
        // Pages of different sequences alternate, in descending order.
        let table = |index: usize| -> Vec<u32> {
            (0..per_sequence).map(|page| (pages - 1 - page * sequences.len() - index) as u32).collect()
        };
        let rope = device.rope(&vec![0.0; head_dim / 2], 1.0, 4096).unwrap();
        let mut out = vec![Vec::new(); sequences.len()];
        let mut done = 0;
        while sequences.iter().any(|s| s.len > done) {
            let mut batch = Batch::default();
            let mut rows = Vec::new();
            let mut who = Vec::new();
            for (index, s) in sequences.iter().enumerate() {
                let end = s.len.min(done + chunk);
                if done >= end {
                    continue;
                }
                let ids = vec![0; end - done];
                batch.push(&ids, done as u32, &table(index), page_size as u32, Outputs::Last);
                rows.extend_from_slice(&s.qkv[done * self.row()..end * self.row()]);
                who.extend(std::iter::repeat_n(index, end - done));
            }
            let step = device.step(&batch).unwrap();
            let qkv = tensor(device, batch.tokens(), self.row(), &rows);
            let mut q = tensor(device, batch.tokens(), q_heads * head_dim, &[]);
            let mut o = tensor(device, batch.tokens(), q_heads * head_dim, &[]);
            let args = RopeAppend { qkv: &qkv, qk_norm: None, rope: &rope, q_heads, layer: 1 };
            device.rope_append(args, &step, &mut cache, &mut q).unwrap();
            device.attention(&q, &cache, 1, &step, spec, &mut o).unwrap();
            for (row, index) in who.into_iter().enumerate() {
                out[index].extend_from_slice(o.row(row));
            }
            done += chunk;
        }
        out
    }
}

const CAUSAL: AttentionSpec =
    AttentionSpec { q_heads: 6, scale: 0.25, causal: true, window: None, softcap: None };

#[test]
fn every_mask_agrees_with_plain_loops() {
    let mut numbers = Numbers::new(4);
    let heads = [
        Heads { q_heads: 6, kv_heads: 2, head_dim: 32 },
        Heads { q_heads: 3, kv_heads: 3, head_dim: 64 },
        Heads { q_heads: 5, kv_heads: 1, head_dim: 24 },
    ];
    for device in devices() {
        for heads in heads {
            for (causal, window, softcap) in [
                (true, None, None),
                (false, None, None),
                (true, Some(16), None),
                (true, Some(1), None),
                (false, Some(5), None),
                (true, None, Some(3.0)),
                (true, Some(70), Some(20.0)),
            ] {
                let spec = AttentionSpec { q_heads: heads.q_heads, scale: 0.2, causal, window, softcap };
                let sequences =
                    [Sequence::new(&mut numbers, 131, heads), Sequence::new(&mut numbers, 7, heads)];
                let refs: Vec<&Sequence> = sequences.iter().collect();
                let found = heads.run(&device, &refs, &spec, 16, 200);
                for (found, sequence) in found.iter().zip(&sequences) {
                    let expected = heads.reference(sequence, &spec);
                    assert_close(&device, &format!("{spec:?}"), found, &expected, 2e-6);
                }
            }
        }
    }
}

#[test]
fn a_query_has_the_same_bits_in_any_chunking_batch_and_page_size() {
    let mut numbers = Numbers::new(5);
    let heads = Heads { q_heads: 6, kv_heads: 2, head_dim: 40 };
    let (a, b) = (Sequence::new(&mut numbers, 150, heads), Sequence::new(&mut numbers, 67, heads));
    for device in devices() {
        for spec in [CAUSAL, AttentionSpec { window: Some(21), ..CAUSAL }] {
            let whole = bits(&heads.run(&device, &[&a], &spec, 256, 150)[0]);
            for (page_size, chunk) in
                [(16, 150), (16, 1), (256, 1), (160, 97), (48, 7), (1, 33), (5, 1), (7, 64), (24, 150)]
            {
                for threads in [1, 3] {
                    let found =
                        with_threads(threads, || heads.run(&device, &[&b, &a], &spec, page_size, chunk));
                    assert!(
                        bits(&found[1]) == whole,
                        "pages of {page_size}, chunks of {chunk}, {threads} threads"
                    );
                }
            }
        }
    }
}

/// The value of an fp8 e4m3, by its definition.
fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa * 2f64.powi(-9),
        _ => (8.0 + mantissa) * 2f64.powi(exponent - 10),
    };
    if code < 0x80 { magnitude } else { -magnitude }
}

/// What a vector means once it is stored.
fn stored(x: &[f32], dtype: KvDType) -> Vec<f32> {
    let largest = x.iter().fold(0f32, |most, x| most.max(x.abs()));
    // Elements, and whether their codes are even.
    let elements: Vec<(f64, bool)> = match dtype {
        KvDType::Native => return x.to_vec(),
        KvDType::Int8 => (-127..=127).map(|code| (f64::from(code), code % 2 == 0)).collect(),
        KvDType::Fp8 => {
            (0..=255).filter(|code| code & 0x7f != 0x7f).map(|code| (e4m3(code), code % 2 == 0)).collect()
        }
    };
    let limit = elements.iter().fold(0f64, |most, x| most.max(x.0)) as f32;
    // The factor and its product are f32, so that it is them that may lie in the middle: of two as near the even one.
    let nearest = |x: f32| {
        let scaled = f64::from(x * (limit / largest));
        let key = |element: &(f64, bool)| ((element.0 - scaled).abs(), !element.1);
        let nearer = |a: &&(f64, bool), b: &&(f64, bool)| {
            let ((a, a_odd), (b, b_odd)) = (key(a), key(b));
            a.total_cmp(&b).then(a_odd.cmp(&b_odd))
        };
        elements.iter().min_by(nearer).map_or(0.0, |element| element.0)
    };
    x.iter().map(|&x| (nearest(x) * f64::from(largest) / f64::from(limit)) as f32).collect()
}

#[test]
fn caches_of_eight_bits_mean_the_nearest_elements() {
    let mut numbers = Numbers::new(14);
    let heads = Heads { q_heads: 6, kv_heads: 2, head_dim: 40 };
    let sequences: Vec<Sequence> = [1, 15, 70, 131].map(|len| Sequence::new(&mut numbers, len, heads)).into();
    let all: Vec<&Sequence> = sequences.iter().collect();
    let device = CpuDevice::new();
    for dtype in [KvDType::Int8, KvDType::Fp8] {
        for spec in [CAUSAL, AttentionSpec { window: Some(20), ..CAUSAL }] {
            let whole = heads.run_over(&device, dtype, &all, &spec, [16, 200]);
            for (sequence, found) in all.iter().zip(&whole) {
                let mut qkv = sequence.qkv.clone();
                for row in qkv.chunks_exact_mut(heads.row()) {
                    for vector in row[heads.q_heads * heads.head_dim..].chunks_exact_mut(heads.head_dim) {
                        vector.copy_from_slice(&stored(vector, dtype));
                    }
                }
                let expected = heads.reference(&Sequence { qkv, len: sequence.len }, &spec);
                assert_close(&device, &format!("{dtype:?}"), found, &expected, 1e-5);
            }
            // A vector's code depends on that vector alone, so that a prompt may be cut anywhere and pages may have any size.
            for cut in [[16, 1], [48, 7], [128, 64], [7, 13], [1, 64], [20, 33]] {
                let found = heads.run_over(&device, dtype, &all, &spec, cut);
                for (found, whole) in found.iter().zip(&whole) {
                    assert!(bits(found) == bits(whole), "{dtype:?}, pages and chunks of {cut:?}");
                }
            }
            let alone = heads.run_over(&device, dtype, &all[2..3], &spec, [16, 200]);
            assert!(bits(&alone[0]) == bits(&whole[2]), "{dtype:?} alone");
        }
    }
}

#[test]
fn a_cache_of_eight_bits_has_a_byte_an_element_and_a_scale_a_vector() {
    let device = CpuDevice::new();
    let spec =
        CacheSpec { layers: 3, pages: 5, page_size: 17, kv_heads: 2, head_dim: 20, dtype: KvDType::Int8 };
    let cache = device.cache(spec).unwrap();
    assert_eq!(device.cache_bytes(&cache), 3 * 2 * 5 * 17 * 2 * (20 + 4));
}

#[test]
fn bad_attention_arguments_are_named() {
    let device = CpuDevice::new();
    let spec =
        CacheSpec { layers: 1, pages: 2, page_size: 4, kv_heads: 2, head_dim: 16, dtype: KvDType::Native };
    let mut cache = device.cache(spec).unwrap();
    let mut batch = Batch::default();
    batch.push(&[1, 2, 3], 2, &[0, 1], 4, Outputs::All);
    let q = tensor(&device, 3, 64, &[0.0; 192]);
    let mut out = device.tensor(3, 64).unwrap();
    let good = AttentionSpec { q_heads: 4, ..CAUSAL };
    let mut refused = |cache: &crate::cpu::CpuCache, layer, batch: &Batch, spec: &AttentionSpec| {
        let step = device.step(batch).unwrap();
        match device.attention(&q, cache, layer, &step, spec, &mut out) {
            Err(Error::Shape { op: "attention", what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&cache, 1, &batch, &good), "layer");
    assert_eq!(refused(&cache, 0, &batch, &AttentionSpec { q_heads: 3, ..good }), "q_heads");
    assert_eq!(refused(&cache, 0, &batch, &AttentionSpec { q_heads: 2, ..good }), "q");
    assert_eq!(refused(&cache, 0, &batch, &AttentionSpec { window: Some(0), ..good }), "window");
    let mut bad = batch.clone();
    bad.spans[0].pages = vec![0];
    assert_eq!(refused(&cache, 0, &bad, &good), "pages of a span");
    bad.spans[0].pages = vec![0, 2];
    assert_eq!(refused(&cache, 0, &bad, &good), "pages of a span");
    let rope = device.rope(&[0.1; 8], 1.0, 8).unwrap();
    let qkv = tensor(&device, 3, 128, &[0.0; 384]);
    let mut q = device.tensor(3, 64).unwrap();
    for (what, slot, position) in [("slots", 8, 0), ("positions", 0, 8)] {
        let mut bad = batch.clone();
        (bad.slots[1], bad.positions[1]) = (slot, position);
        let step = device.step(&bad).unwrap();
        let args = RopeAppend { qkv: &qkv, qk_norm: None, rope: &rope, q_heads: 4, layer: 0 };
        let found = device.rope_append(args, &step, &mut cache, &mut q);
        assert!(matches!(found, Err(Error::Shape { what: named, .. }) if named == what));
    }
    for change in [
        |batch: &mut Batch| batch.spans[0].query_start = 1,
        |batch: &mut Batch| batch.spans[0].query_len = 2,
        |batch: &mut Batch| batch.spans[0].kv_len = 2,
        |batch: &mut Batch| batch.outputs[0] = 3,
        |batch: &mut Batch| batch.positions.truncate(2),
        |batch: &mut Batch| batch.slots.truncate(2),
    ] {
        let mut bad = batch.clone();
        change(&mut bad);
        assert!(matches!(device.step(&bad), Err(Error::Shape { op: "step", .. })));
    }
    assert!(matches!(device.cache(CacheSpec { pages: usize::MAX, ..spec }), Err(Error::OutOfMemory { .. })));
}

#[test]
fn wanted_rows_alone_have_the_same_bits() {
    let heads = Heads { q_heads: 6, kv_heads: 2, head_dim: 40 };
    let mut numbers = Numbers::new(6);
    for device in devices() {
        let mut batch = Batch::default();
        batch.push(&[0; 70], 0, &[0], 128, Outputs::Last);
        batch.push(&[0; 3], 0, &[1], 128, Outputs::None);
        batch.push(&[0; 17], 0, &[2], 128, Outputs::All);
        let step = device.step(&batch).unwrap();
        let qkv = numbers.floats(batch.tokens() * heads.row());
        let qkv = tensor(&device, batch.tokens(), heads.row(), &qkv);
        let cols = heads.q_heads * heads.head_dim;
        let mut cache = device
            .cache(CacheSpec {
                layers: 1,
                pages: 3,
                page_size: 128,
                kv_heads: 2,
                head_dim: heads.head_dim,
                dtype: KvDType::Native,
            })
            .unwrap();
        let rope = device.rope(&vec![0.1; heads.head_dim / 2], 1.0, 128).unwrap();
        let [mut q, mut all] = [(); 2].map(|()| tensor(&device, batch.tokens(), cols, &[]));
        let [mut chosen, mut q_alone, mut out] = [(); 3].map(|()| tensor(&device, 18, cols, &[]));
        let args = RopeAppend { qkv: &qkv, qk_norm: None, rope: &rope, q_heads: heads.q_heads, layer: 0 };
        device.rope_append(args, &step, &mut cache, &mut q).unwrap();
        device.attention(&q, &cache, 0, &step, &CAUSAL, &mut all).unwrap();
        device.select_outputs(&all, &step, &mut chosen).unwrap();

        let alone = device.wanted_alone(&step).unwrap().unwrap();
        device.select_outputs(&q, &step, &mut q_alone).unwrap();
        device.attention(&q_alone, &cache, 0, &alone, &CAUSAL, &mut out).unwrap();
        let [chosen, out] = [chosen, out].map(|tensor| device.read(&tensor).unwrap());
        assert_eq!(out.len(), 18 * cols);
        assert!(bits(&out) == bits(&chosen));
    }
}
