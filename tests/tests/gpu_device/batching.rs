//! The same bits alone and in any batch, over a layer of a model with every operation of a step in it.

use half::{bf16, f16};
use tilewright_host::{
    ActivationBits, AttentionSpec, Batch, CacheSpec, CodeBits, DType, Device, HostMatrix, HostQuantized,
    KvDType, Outputs, QuantizedPart, QuantizedSpec, RopeAppend, gpu::GpuDevice,
};
use tilewright_tests::emulated::Emulated;

use super::setup::*;

const HIDDEN: usize = 64;
const INTER: usize = 136;
/// Odd for tiles.
const VOCAB: usize = 90;
/// That Hopper's products of logits take.
const EVEN_VOCAB: usize = 96;
const Q_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const PAGE: usize = 32;
const PAGES_EACH: usize = 9;

/// What a layer's weights are.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Bf16,
    /// 4 bits where there is a kernel: all but `down`, whose columns are no multiple of 64.
    Int4,
}

/// One layer with its embedding and head.
struct Layer<'d, D: Device> {
    device: &'d D,
    vocab: usize,
    embedding: D::Matrix,
    qkv: D::Matrix,
    o: D::Matrix,
    gate_up: D::Matrix,
    down: D::Matrix,
    norm: D::Vector,
    bias: D::Vector,
    rope: D::Rope,
    cache: D::Cache,
}

impl<'d, D: Device> Layer<'d, D> {
    fn new(device: &'d D, seqs: usize, vocab: usize, kind: Kind) -> Self {
        let table =
            |seed, rows: usize, cols: usize| matrix(device, &Numbers::new(seed).take(rows * cols, 0.3), cols);
        let weights = |seed, rows, cols| match kind {
            Kind::Bf16 => table(seed, rows, cols),
            Kind::Int4 => device.quantized(&int4(seed, rows, cols)).expect("a matrix"),
        };
        let vector = |seed, len| device.vector(&Numbers::new(seed).take(len, 1.0)).expect("a vector");
        let inv_freq: Vec<f32> = (0..HEAD_DIM / 2).map(|i| 0.8f32.powi(i as i32)).collect();
        let spec = CacheSpec {
            layers: 1,
            pages: seqs * PAGES_EACH,
            page_size: PAGE,
            kv_heads: 1,
            head_dim: HEAD_DIM,
            dtype: KvDType::Native,
        };
        Layer {
            device,
            vocab,
            embedding: table(1, vocab, HIDDEN),
            qkv: weights(2, (Q_HEADS + 2) * HEAD_DIM, HIDDEN),
            o: weights(3, HIDDEN, Q_HEADS * HEAD_DIM),
            gate_up: weights(4, 2 * INTER, HIDDEN),
            down: weights(5, HIDDEN, INTER),
            norm: vector(6, HIDDEN),
            bias: vector(7, (Q_HEADS + 2) * HEAD_DIM),
            rope: device.rope(&inv_freq, 1.0, PAGES_EACH * PAGE).expect("a table"),
            cache: device.cache(spec).expect("a cache"),
        }
    }

    /// Logits of every token of the batch.
    fn forward(&mut self, batch: &Batch) -> Vec<f32> {
        let (device, rows) = (self.device, batch.tokens());
        let tensor = |cols| device.tensor(rows, cols).expect("a tensor");
        let step = device.step(batch).expect("a step");
        let (mut h, mut x) = (tensor(HIDDEN), tensor(HIDDEN));
        device.embed(&self.embedding, &step, &mut h).expect("embed");
        device.rms_norm(&h, &self.norm, 1e-5, &mut x).expect("rms_norm");
        let mut qkv = tensor((Q_HEADS + 2) * HEAD_DIM);
        device.linear(&x, &self.qkv, Some(&self.bias), &mut qkv).expect("linear");
        let (mut q, mut attended) = (tensor(Q_HEADS * HEAD_DIM), tensor(Q_HEADS * HEAD_DIM));
        let args = RopeAppend { qkv: &qkv, qk_norm: None, rope: &self.rope, q_heads: Q_HEADS, layer: 0 };
        device.rope_append(args, &step, &mut self.cache, &mut q).expect("rope_append");
        let spec =
            AttentionSpec { q_heads: Q_HEADS, scale: 0.125, causal: true, window: None, softcap: None };
        device.attention(&q, &self.cache, 0, &step, &spec, &mut attended).expect("attention");
        device.linear(&attended, &self.o, None, &mut x).expect("linear");
        let (mut normed, mut gate_up, mut inter) = (tensor(HIDDEN), tensor(2 * INTER), tensor(INTER));
        device.add_rms_norm(&x, &mut h, &self.norm, 1e-5, &mut normed).expect("add_rms_norm");
        device.linear(&normed, &self.gate_up, None, &mut gate_up).expect("linear");
        device.silu_mul(&gate_up, &mut inter).expect("silu_mul");
        device.linear_residual(&inter, &self.down, None, &mut h).expect("linear_residual");
        device.select_outputs(&h, &step, &mut x).expect("select_outputs");
        let mut logits = device.logits(rows, self.vocab).expect("logits");
        device.project_logits(&x, &self.embedding, &mut logits).expect("project_logits");
        device.read_logits(&logits).expect("logits")
    }
}

/// 4-bit weights in groups of 32.
fn int4(seed: u64, rows: usize, cols: usize) -> HostQuantized {
    let groups = cols.div_ceil(32);
    let below_16 = |seed, count| -> Vec<u8> {
        Numbers::new(seed).take(count, 8.0).iter().map(|x| ((x + 8.0) as u8).min(15)).collect()
    };
    let part = QuantizedPart::new(QuantizedSpec {
        rows,
        cols,
        bits: CodeBits::Four,
        group: 32,
        codes: below_16(seed, rows * cols),
        scales: Numbers::new(seed + 100).take(rows * groups, 0.05),
        scale_type: DType::Bf16,
        zeros: below_16(seed + 200, rows * groups),
        permutation: None,
        pre_scale: None,
        activations: ActivationBits::Full,
    });
    HostQuantized::new(vec![part.expect("a valid part")]).expect("one part")
}

/// New tokens of four sequences in each step; the last one's keys pass a chunk of decode attention.
const STEPS: [[usize; 4]; 4] = [[9, 0, 64, 257], [1, 1, 2, 1], [1, 70, 1, 1], [2, 1, 0, 1]];

fn push(batch: &mut Batch, seq: usize, slot: usize, cached: usize, len: usize) {
    let ids: Vec<u32> = (cached..cached + len).map(|i| ((i * 7 + seq * 31) % VOCAB) as u32).collect();
    let pages: Vec<u32> = (0..PAGES_EACH).map(|page| (slot * PAGES_EACH + page) as u32).collect();
    match len {
        1 => batch.push_generated(&ids, cached as u32, &pages, PAGE as u32, Outputs::All),
        _ => batch.push(&ids, cached as u32, &pages, PAGE as u32, Outputs::All),
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_a_batch() {
    same_bits_alone_and_in_a_batch(&gpu(), VOCAB, Kind::Bf16);
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_a_batch_on_hopper() {
    let device = hopper();
    same_bits_alone_and_in_a_batch(&device, EVEN_VOCAB, Kind::Bf16);
    let launched = device.driver().take_launched();
    let baseline = launched.iter().find(|launched| launched.kernel.starts_with("gemm_bf16"));
    assert!(baseline.is_none(), "{baseline:?}");
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_a_batch_with_4_bit_weights() {
    let device = hopper();
    same_bits_alone_and_in_a_batch(&device, EVEN_VOCAB, Kind::Int4);
    let launched = device.driver().take_launched();
    assert!(launched.iter().any(|launched| launched.kernel == "dequantize_int4"));
}

/// Every operation must pass the classes of rows on to the next.
#[test]
fn each_class_keeps_to_its_kernels_through_a_layer() {
    let device = hopper();
    let mut layer = Layer::new(&device, 4, EVEN_VOCAB, Kind::Bf16);
    let mut launches = |spans: &[[usize; 3]]| {
        let mut batch = Batch::default();
        for &[seq, cached, len] in spans {
            push(&mut batch, seq, seq, cached, len);
        }
        device.driver().take_launched();
        layer.forward(&batch);
        let launched = device.driver().take_launched();
        let count = |families: &[&str]| {
            let is_one = |kernel: &str| families.iter().any(|family| kernel.starts_with(family));
            launched.iter().filter(|launched| is_one(launched.kernel)).count()
        };
        [&["gemm_few", "gemm_whole"][..], &["gemm_sm90"], &["gemm_bf16"]].map(count)
    };
    // Five products.
    assert_eq!(launches(&[[0, 0, 9], [1, 0, 2]]), [0, 5, 0]);
    assert_eq!(launches(&[[0, 9, 1], [1, 2, 1]]), [5, 0, 0]);
    assert_eq!(launches(&[[0, 10, 1], [2, 0, 70]]), [5, 5, 0]);
}

fn same_bits_alone_and_in_a_batch(device: &GpuDevice<Emulated>, vocab: usize, kind: Kind) {
    let mut together = Layer::new(device, 4, vocab, kind);
    let mut cached = [0usize; 4];
    let mut in_batch: [Vec<u32>; 4] = Default::default();
    for lens in STEPS {
        let mut batch = Batch::default();
        // Generated tokens come first.
        let mut order = [0, 1, 2, 3];
        order.sort_by_key(|&seq| lens[seq] != 1);
        for seq in order {
            push(&mut batch, seq, seq, cached[seq], lens[seq]);
            cached[seq] += lens[seq];
        }
        let logits = together.forward(&batch);
        for (span, seq) in batch.spans.iter().zip(order) {
            let rows = span.query_start as usize..(span.query_start + span.query_len) as usize;
            in_batch[seq].extend(bits(&logits[rows.start * vocab..rows.end * vocab]));
        }
    }
    for (seq, expected) in in_batch.iter().enumerate() {
        let (mut alone, mut cached, mut found) = (Layer::new(device, 1, vocab, kind), 0, Vec::new());
        for lens in STEPS {
            let mut batch = Batch::default();
            push(&mut batch, seq, 0, cached, lens[seq]);
            cached += lens[seq];
            found.extend(bits(&alone.forward(&batch)));
        }
        assert!(found == *expected, "sequence {seq} differs between alone and in a batch");
        assert!(found.iter().all(|&word| f32::from_bits(word).is_finite()));
    }
}

#[test]
fn checkpoints_are_rounded_to_nearest_even() {
    let device = gpu();
    let values: Vec<f32> = Numbers::new(9)
        .take(64, 1.0)
        .into_iter()
        .zip(0u32..)
        .map(|(v, i)| {
            // Ties and their neighbours, both ways.
            f32::from_bits(
                v.to_bits() & 0xffff_0000 | [0x7fff, 0x8000, 0x8001, 0x1_8000 & 0xffff][i as usize % 4],
            )
        })
        .collect();
    let ids: Vec<u32> = (0..8).collect();
    let mut batch = Batch::default();
    batch.push(&ids, 0, &[0], 8, Outputs::None);
    let step = device.step(&batch).expect("a step");
    let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
    let f16s: Vec<u8> = halves.iter().flat_map(|v| v.to_le_bytes()).collect();
    let from_f16: Vec<f32> = halves.iter().map(|v| v.to_f32()).collect();
    for (bytes, dtype, values) in [(f32s, DType::F32, &values), (f16s, DType::F16, &from_f16)] {
        let (first, rest) = bytes.split_at(3 * 8 * dtype.bytes());
        let weights = HostMatrix { parts: vec![(3, first), (5, rest)], cols: 8, dtype };
        let table = device.matrix(&weights).expect("a matrix");
        let mut out = device.tensor(8, 8).expect("a tensor");
        device.embed(&table, &step, &mut out).expect("an embedding");
        let expected: Vec<f32> = values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
        assert_eq!(bits(&device.read(&out).expect("activations")), bits(&expected), "{dtype:?}");
    }
}
