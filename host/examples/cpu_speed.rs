//! Speed of the CPU device on the shapes of the bundled demo model, with random weights: best of several runs.
//!
//! `cargo run --release -p tilewright-host --example cpu_speed`
use std::time::Instant;

use tilewright_host::cpu::{CpuDevice, CpuMatrix, CpuTensor, CpuVector};
use tilewright_host::{
    ActivationBits, AttentionSpec, Batch, CacheSpec, CodeBits, DType, Device, HostMatrix, HostQuantized,
    KvDType, Outputs, QuantizedPart, QuantizedSpec, Result, RopeAppend,
};

const HIDDEN: usize = 384;
const INTER: usize = 1024;
const LAYERS: usize = 8;
const Q_HEADS: usize = 6;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const VOCAB: usize = 4096;
const PROMPT: usize = 1024;

/// How weights are stored.
#[derive(Clone, Copy, PartialEq)]
enum Weights {
    Bf16,
    /// Codes of that many bits, groups of 128.
    Quantized(CodeBits),
}

impl Weights {
    const ALL: [Weights; 3] =
        [Weights::Bf16, Weights::Quantized(CodeBits::Eight), Weights::Quantized(CodeBits::Four)];

    fn name(self) -> &'static str {
        match self {
            Weights::Bf16 => "bf16",
            Weights::Quantized(CodeBits::Eight) => "int8",
            Weights::Quantized(CodeBits::Four) => "int4",
        }
    }
}

/// A matrix of small numbers.
fn random(device: &CpuDevice, weights: Weights, rows: usize, cols: usize) -> Result<CpuMatrix> {
    let Weights::Quantized(bits) = weights else { return random_bf16(device, rows, cols) };
    let groups = cols.div_ceil(128);
    let mut state = (rows * 31 + cols) as u32 | 1;
    let mut code = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 & bits.largest()
    };
    let part = QuantizedPart::new(QuantizedSpec {
        rows,
        cols,
        bits,
        group: 128,
        codes: (0..rows * cols).map(|_| code()).collect(),
        scales: vec![0.1 / f32::from(bits.largest()); rows * groups],
        scale_type: DType::F32,
        zeros: vec![bits.middle(); rows * groups],
        permutation: None,
        pre_scale: None,
        activations: ActivationBits::Full,
    })?;
    device.quantized(&HostQuantized::new(vec![part])?)
}

fn random_bf16(device: &CpuDevice, rows: usize, cols: usize) -> Result<CpuMatrix> {
    let mut state = (rows * 31 + cols) as u32 | 1;
    let bytes: Vec<u8> = (0..rows * cols)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let x = (state as f32 / u32::MAX as f32 - 0.5) * 0.1;
            ((x.to_bits() >> 16) as u16).to_le_bytes()
        })
        .collect();
    device.matrix(&HostMatrix { parts: vec![(rows, &bytes)], cols, dtype: DType::Bf16 })
}

struct Layer {
    qkv: CpuMatrix,
    o: CpuMatrix,
    gate_up: CpuMatrix,
    down: CpuMatrix,
}

struct Model {
    device: CpuDevice,
    layers: Vec<Layer>,
    embedding: CpuMatrix,
    norm: CpuVector,
}

/// Milliseconds in each kind of operation.
#[derive(Default)]
struct Times {
    linear: f64,
    attention: f64,
    rest: f64,
}

impl Model {
    fn new(weights: Weights) -> Result<Self> {
        let device = CpuDevice::new();
        let layers = (0..LAYERS)
            .map(|_| {
                Ok(Layer {
                    qkv: random(&device, weights, (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN)?,
                    o: random(&device, weights, HIDDEN, Q_HEADS * HEAD_DIM)?,
                    gate_up: random(&device, weights, 2 * INTER, HIDDEN)?,
                    down: random(&device, weights, HIDDEN, INTER)?,
                })
            })
            .collect::<Result<_>>()?;
        let (embedding, norm) = (random_bf16(&device, VOCAB, HIDDEN)?, device.vector(&[1.0; HIDDEN])?);
        Ok(Model { device, layers, embedding, norm })
    }

    fn step(&self, batch: &Batch, cache: &mut <CpuDevice as Device>::Cache) -> Result<Times> {
        let (device, rows) = (&self.device, batch.tokens());
        let tensor = |cols| device.tensor(rows, cols);
        let (mut x, mut h, mut qkv) =
            (tensor(HIDDEN)?, tensor(HIDDEN)?, tensor((Q_HEADS + 2 * KV_HEADS) * HEAD_DIM)?);
        let (mut q, mut a, mut gate_up, mut act) =
            (tensor(HIDDEN)?, tensor(HIDDEN)?, tensor(2 * INTER)?, tensor(INTER)?);
        let mut last: CpuTensor = tensor(HIDDEN)?;
        let mut logits = device.logits(1, VOCAB)?;
        let inv_freq: Vec<f32> = (0..32).map(|i| 10000f32.powf(-i as f32 / 32.0)).collect();
        let rope = device.rope(&inv_freq, 1.0, 2048)?;
        let spec =
            AttentionSpec { q_heads: Q_HEADS, scale: 0.125, causal: true, window: None, softcap: None };
        let mut times = Times::default();
        let mut from = Instant::now();
        let mut lap = |sum: &mut f64| {
            *sum += from.elapsed().as_secs_f64() * 1e3;
            from = Instant::now();
        };
        let step = device.step(batch)?;
        device.embed(&self.embedding, &step, &mut x)?;
        for (index, layer) in self.layers.iter().enumerate() {
            device.rms_norm(&x, &self.norm, 1e-5, &mut h)?;
            lap(&mut times.rest);
            device.linear(&h, &layer.qkv, None, &mut qkv)?;
            lap(&mut times.linear);
            let args = RopeAppend { qkv: &qkv, qk_norm: None, rope: &rope, q_heads: Q_HEADS, layer: index };
            device.rope_append(args, &step, cache, &mut q)?;
            lap(&mut times.rest);
            device.attention(&q, cache, index, &step, &spec, &mut a)?;
            lap(&mut times.attention);
            device.linear_residual(&a, &layer.o, None, &mut x)?;
            lap(&mut times.linear);
            device.rms_norm(&x, &self.norm, 1e-5, &mut h)?;
            lap(&mut times.rest);
            device.linear(&h, &layer.gate_up, None, &mut gate_up)?;
            lap(&mut times.linear);
            device.silu_mul(&gate_up, &mut act)?;
            lap(&mut times.rest);
            device.linear_residual(&act, &layer.down, None, &mut x)?;
            lap(&mut times.linear);
        }
        device.select_outputs(&x, &step, &mut last)?;
        lap(&mut times.rest);
        device.project_logits(&last, &self.embedding, &mut logits)?;
        lap(&mut times.linear);
        device.argmax(&logits)?;
        lap(&mut times.rest);
        Ok(times)
    }
}

fn best(runs: usize, mut run: impl FnMut() -> Result<Times>) -> Result<(f64, Times)> {
    let mut best = (f64::INFINITY, Times::default());
    for _ in 0..runs {
        let times = run()?;
        let total = times.linear + times.attention + times.rest;
        if total < best.0 {
            best = (total, times);
        }
    }
    Ok(best)
}

fn main() -> Result<()> {
    println!("{}", CpuDevice::new().describe());
    for weights in Weights::ALL {
        println!("{} weights", weights.name());
        whole_model(weights)?;
    }
    println!("one product of 14336 x 4096 weights, more than the caches hold: us by rows");
    for weights in Weights::ALL {
        one_product(weights)?;
    }
    Ok(())
}

/// Products whose weights come from memory.
fn one_product(weights: Weights) -> Result<()> {
    const OUT: usize = 14336;
    const IN: usize = 4096;
    let device = CpuDevice::new();
    let w = random(&device, weights, OUT, IN)?;
    let table = random_bf16(&device, 1, IN)?;
    print!("{}:", weights.name());
    for rows in [1, 2, 4, 6, 8, 16, 64, 256] {
        let mut batch = Batch::default();
        batch.push(&vec![0; rows], 0, &[0], rows as u32, Outputs::None);
        let (mut x, mut out) = (device.tensor(rows, IN)?, device.tensor(rows, OUT)?);
        device.embed(&table, &device.step(&batch)?, &mut x)?;
        let mut best = f64::INFINITY;
        for _ in 0..(400 / rows).clamp(3, 20) {
            let start = Instant::now();
            device.linear(&x, &w, None, &mut out)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        print!(" {rows}: {:.0},", best * 1e6);
    }
    println!();
    Ok(())
}

fn whole_model(weights: Weights) -> Result<()> {
    let model = Model::new(weights)?;
    let spec = CacheSpec {
        layers: LAYERS,
        pages: 1,
        page_size: 2048,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        dtype: KvDType::Native,
    };
    let mut cache = model.device.cache(spec)?;
    let ids = vec![7; PROMPT];
    let mut prefill = Batch::default();
    prefill.push(&ids, 0, &[0], 2048, Outputs::Last);
    let mut decode = Batch::default();
    decode.push(&[7], PROMPT as u32 - 1, &[0], 2048, Outputs::Last);
    let weights = LAYERS * HIDDEN * (2 * Q_HEADS * HEAD_DIM + 2 * KV_HEADS * HEAD_DIM + 3 * INTER);
    for (name, batch, runs) in [("prefill", &prefill, 12), ("decode", &decode, 600)] {
        let (total, times) = best(runs, || model.step(batch, &mut cache))?;
        let tokens = batch.tokens() as f64;
        let flops = 2.0 * tokens * weights as f64 + 2.0 * (HIDDEN * VOCAB) as f64;
        println!(
            "{name}: {:.0} tokens/s, {total:.2} ms: products {:.2} ({:.0} GFLOP/s), attention {:.2}, rest {:.2}",
            tokens / total * 1e3,
            times.linear,
            flops / times.linear / 1e6,
            times.attention,
            times.rest,
        );
    }
    Ok(())
}
