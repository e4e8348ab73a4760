//! The CPU device, operation by operation. Tensors get their contents by an embedding of random rows, caches by appending with a
//! rotation by nothing.

use criterion::{BenchmarkId, Criterion, Throughput};
use tilewright_benches::{
    Error, Result,
    kernels::{EPS, sample_row},
    problem::{Decode, Gemm, GemmWeights, KvFormat, Prefill, Problem, RopeAppend, Rows},
    random::{Kind, Random},
};
use tilewright_host::{
    AttentionSpec, Batch, CacheSpec, DType, Device, HostMatrix, Outputs, RopeAppend as Append,
    cpu::{CpuDevice, CpuMatrix, CpuTensor},
};
use tilewright_reference::{self as reference, AttentionProblem, Bound, Floor, GemmProblem, SampleSettings};

const PAGE: usize = 16;

/// A group an operation.
pub fn benchmarks(criterion: &mut Criterion) -> Result<()> {
    let device = CpuDevice::new();
    eprintln!("{}", device.describe());
    let attention = (8, 2, 64);
    let (q_heads, kv_heads, head_dim) = attention;
    let prefill =
        Prefill { seqs: 2, seq_len: 256, q_heads, kv_heads, head_dim, causal: true, page_size: Some(PAGE) };
    let decode =
        Decode { seqs: 4, context: 1024, q_heads, kv_heads, head_dim, page_size: PAGE, kv: KvFormat::Bf16 };
    let rope = RopeAppend { tokens: 256, q_heads, kv_heads, head_dim, page_size: PAGE, kv: KvFormat::Bf16 };
    let wide = Rows { rows: 256, cols: 1024 };
    let logits = Rows { rows: 4, cols: 32_768 };
    let problems = [
        ("attention_prefill", Problem::Prefill(prefill)),
        ("attention_decode", Problem::Decode(decode)),
        ("rope_append", Problem::RopeAppend(rope)),
        ("gemm_bf16", Problem::Gemm(Gemm { weights: GemmWeights::Bf16, m: 64, n: 512, k: 512 })),
        ("gemm_bf16", Problem::Gemm(Gemm { weights: GemmWeights::Bf16, m: 1, n: 2048, k: 512 })),
        ("rms_norm", Problem::RmsNorm(wide)),
        ("silu_mul", Problem::SiluMul(wide)),
        ("gather_rows", Problem::GatherRows(wide)),
        ("argmax", Problem::Argmax(logits)),
        ("sample", Problem::Sample(logits)),
    ];
    for (name, problem) in problems {
        // The operation's answer on a small problem, in full.
        drop(operation(&device, name, &problem.small(), true)?);
        let mut run = operation(&device, name, &problem, false)?;
        let cost = problem.cost();
        let mut group = criterion.benchmark_group(name);
        group.throughput(match problem.is_compute() || matches!(problem, Problem::Decode(_)) {
            true => Throughput::Elements(cost.flops),
            false => Throughput::Bytes(cost.bytes),
        });
        let mut failed = None;
        group.bench_function(BenchmarkId::new("cpu", parameters(&problem)), |bencher| {
            bencher.iter(|| {
                if let Err(error) = run() {
                    failed = Some(error);
                }
            });
        });
        group.finish();
        if let Some(error) = failed {
            return Err(error.into());
        }
    }
    Ok(())
}

fn parameters(problem: &Problem) -> String {
    match *problem {
        Problem::Prefill(p) => format!("{}x{}", p.seqs, p.seq_len),
        Problem::Decode(p) => format!("{}x{}", p.seqs, p.context),
        Problem::RopeAppend(p) => p.tokens.to_string(),
        Problem::Gemm(p) => format!("{}x{}x{}", p.m, p.n, p.k),
        Problem::RmsNorm(p) | Problem::SiluMul(p) | Problem::GatherRows(p) => {
            format!("{}x{}", p.rows, p.cols)
        }
        Problem::Argmax(p) | Problem::Sample(p) => format!("{}x{}", p.rows, p.cols),
        _ => String::new(),
    }
}

type Run<'d> = Box<dyn FnMut() -> tilewright_host::Result<()> + 'd>;

/// One problem on the device: what runs it, its answer checked if asked for.
fn operation<'d>(
    device: &'d CpuDevice,
    name: &'static str,
    problem: &Problem,
    checked: bool,
) -> Result<Run<'d>> {
    match *problem {
        Problem::Prefill(p) => attention(
            device,
            name,
            p.seqs,
            [p.seq_len, p.seq_len],
            [p.q_heads, p.kv_heads, p.head_dim],
            checked,
        ),
        Problem::Decode(p) => {
            attention(device, name, p.seqs, [1, p.context], [p.q_heads, p.kv_heads, p.head_dim], checked)
        }
        Problem::RopeAppend(p) => rope_append(device, name, p, checked),
        Problem::Gemm(p) => gemm(device, name, p, checked),
        Problem::Argmax(p) => tokens(device, name, p, checked, false),
        Problem::Sample(p) => tokens(device, name, p, checked, true),
        Problem::RmsNorm(p) | Problem::SiluMul(p) | Problem::GatherRows(p) => rows(device, name, p, checked),
        _ => Err(Error::UnknownCell { name: format!("{problem:?}"), hint: String::new() }),
    }
}

fn values(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let random = Random { kind: Kind::Bf16, seed };
    (0..rows * cols).map(|index| random.value(index)).collect()
}

fn matrix(device: &CpuDevice, rows: usize, cols: usize, seed: u64) -> Result<CpuMatrix> {
    let mut bytes = vec![0; rows * cols * 2];
    Random { kind: Kind::Bf16, seed }.fill(0, &mut bytes);
    Ok(device.matrix(&HostMatrix { parts: vec![(rows, &bytes)], cols, dtype: DType::Bf16 })?)
}

/// `tokens` of one sequence, their ids counted up.
fn span(batch: &mut Batch, tokens: usize, cached: usize, first_page: usize) {
    let ids: Vec<u32> = (0..tokens).map(|token| (batch.tokens() + token) as u32).collect();
    let pages: Vec<u32> =
        (0..(cached + tokens).div_ceil(PAGE)).map(|page| (first_page + page) as u32).collect();
    batch.push(&ids, cached as u32, &pages, PAGE as u32, Outputs::All);
}

/// A tensor whose values are those of [`values`].
fn tensor(device: &CpuDevice, rows: usize, cols: usize, seed: u64) -> Result<CpuTensor> {
    let table = matrix(device, rows, cols, seed)?;
    let mut batch = Batch::default();
    span(&mut batch, rows, 0, 0);
    let mut out = device.tensor(rows, cols)?;
    device.embed(&table, &device.step(&batch)?, &mut out)?;
    Ok(out)
}

fn compare(name: &'static str, actual: &[f32], truth: &[f64], plain: &[f32], cols: usize) -> Result<()> {
    let floor = Floor::BF16.with_absolute(1e-5);
    let bound = Bound::from_plain(&[truth.len() / cols, cols], truth, plain, floor);
    reference::compare(name, actual, truth, &bound)
        .map(drop)
        .map_err(|mismatch| wrong(name, mismatch.to_string()))
}

fn wrong(kernel: &'static str, what: String) -> Error {
    Error::Wrong { kernel, problem: "the small problem".into(), what }
}

fn attention<'d>(
    device: &'d CpuDevice,
    name: &'static str,
    seqs: usize,
    [queries, context]: [usize; 2],
    [q_heads, kv_heads, head_dim]: [usize; 3],
    checked: bool,
) -> Result<Run<'d>> {
    let pages = context.div_ceil(PAGE);
    let spec = CacheSpec { layers: 1, pages: seqs * pages, page_size: PAGE, kv_heads, head_dim };
    let mut cache = device.cache(spec)?;
    let (mut whole, mut batch) = (Batch::default(), Batch::default());
    for seq in 0..seqs {
        span(&mut whole, context, 0, seq * pages);
        span(&mut batch, queries, context - queries, seq * pages);
    }
    let heads = q_heads + 2 * kv_heads;
    let qkv = tensor(device, seqs * context, heads * head_dim, 1)?;
    let rope = device.rope(&vec![0.0; head_dim / 2], 1.0, context)?;
    let mut q = device.tensor(seqs * context, q_heads * head_dim)?;
    let append = Append { qkv: &qkv, qk_norm: None, rope: &rope, q_heads, layer: 0 };
    device.rope_append(append, &device.step(&whole)?, &mut cache, &mut q)?;
    let q = tensor(device, seqs * queries, q_heads * head_dim, 2)?;
    let step = device.step(&batch)?;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let spec = AttentionSpec { q_heads, scale, causal: true, window: None, softcap: None };
    let mut out = device.tensor(seqs * queries, q_heads * head_dim)?;
    let run = move |out: &mut CpuTensor| device.attention(&q, &cache, 0, &step, &spec, out);
    run(&mut out)?;
    if checked {
        let qkv = values(seqs * context, heads * head_dim, 1);
        // Keys and values of a head contiguous, as the oracle's pages of a whole sequence.
        let part = |first: usize| -> Vec<f32> {
            let vector = |seq: usize, head: usize, token: usize| {
                ((seq * context + token) * heads + first + head) * head_dim
            };
            let all = (0..seqs).flat_map(|seq| {
                (0..kv_heads).flat_map(move |head| (0..context).map(move |token| (seq, head, token)))
            });
            all.flat_map(|(seq, head, token)| qkv[vector(seq, head, token)..][..head_dim].to_vec()).collect()
        };
        let problem = AttentionProblem {
            q: &values(seqs * queries, q_heads * head_dim, 2),
            k_cache: &part(q_heads),
            v_cache: &part(q_heads + kv_heads),
            q_starts: &(0..=seqs).map(|seq| (seq * queries) as u32).collect::<Vec<_>>(),
            kv_lens: &vec![context as u32; seqs],
            block_table: &(0..seqs as u32).collect::<Vec<_>>(),
            block_table_stride: 1,
            page_size: context,
            q_heads,
            kv_heads,
            head_dim,
            scale,
            softcap: 0.0,
            causal: true,
            window: 0,
        };
        let (truth, plain) = (reference::attention::<f64>(&problem), reference::attention::<f32>(&problem));
        compare(name, &device.read(&out)?, &truth, &plain, head_dim)?;
    }
    Ok(Box::new(move || run(&mut out)))
}

fn rope_append<'d>(
    device: &'d CpuDevice,
    name: &'static str,
    problem: RopeAppend,
    checked: bool,
) -> Result<Run<'d>> {
    let RopeAppend { tokens, q_heads, kv_heads, head_dim, .. } = problem;
    let heads = q_heads + 2 * kv_heads;
    let frequencies = reference::rope_frequencies(head_dim, 10_000.0, reference::RopeScaling::Default);
    let single: Vec<f32> = frequencies.iter().map(|&frequency| frequency as f32).collect();
    let rope = device.rope(&single, 1.0, tokens)?;
    let qkv = tensor(device, tokens, heads * head_dim, 1)?;
    let pages = tokens.div_ceil(PAGE);
    let mut cache = device.cache(CacheSpec { layers: 1, pages, page_size: PAGE, kv_heads, head_dim })?;
    let mut batch = Batch::default();
    span(&mut batch, tokens, 0, 0);
    let step = device.step(&batch)?;
    let mut q = device.tensor(tokens, q_heads * head_dim)?;
    let mut run = move |q: &mut CpuTensor| {
        let append = Append { qkv: &qkv, qk_norm: None, rope: &rope, q_heads, layer: 0 };
        device.rope_append(append, &step, &mut cache, q)
    };
    run(&mut q)?;
    if checked {
        // The keys are checked by attention, which reads what this appends.
        let table: Vec<f32> =
            reference::rope_table(&frequencies, tokens).iter().map(|&value| value as f32).collect();
        let problem = reference::RopeProblem {
            qkv: &values(tokens, heads * head_dim, 1),
            q_norm: None,
            k_norm: None,
            cos_sin: &table,
            positions: &(0..tokens as u32).collect::<Vec<_>>(),
            q_heads,
            kv_heads,
            head_dim,
            eps: EPS,
        };
        let truth = reference::split_and_rotate::<f64>(&problem).q;
        let plain = reference::split_and_rotate::<f32>(&problem).q;
        compare(name, &device.read(&q)?, &truth, &plain, head_dim)?;
    }
    Ok(Box::new(move || run(&mut q)))
}

fn gemm<'d>(device: &'d CpuDevice, name: &'static str, problem: Gemm, checked: bool) -> Result<Run<'d>> {
    let Gemm { m, n, k, .. } = problem;
    let (x, w) = (tensor(device, m, k, 1)?, matrix(device, n, k, 2)?);
    let mut out = device.tensor(m, n)?;
    let run = move |out: &mut CpuTensor| device.linear(&x, &w, None, out);
    run(&mut out)?;
    if checked {
        let (a, w) = (values(m, k, 1), values(n, k, 2));
        let problem = GemmProblem { a: &a, w: &w, bias: None, residual: None, m, n, k, stores_bf16: false };
        let (truth, plain) = (reference::gemm::<f64>(&problem), reference::gemm::<f32>(&problem));
        compare(name, &device.read(&out)?, &truth, &plain, n)?;
    }
    Ok(Box::new(move || run(&mut out)))
}

fn rows<'d>(device: &'d CpuDevice, name: &'static str, shape: Rows, checked: bool) -> Result<Run<'d>> {
    let Rows { rows, cols } = shape;
    let wide = if name == "silu_mul" { 2 * cols } else { cols };
    let x = tensor(device, rows, wide, 1)?;
    let weights = values(1, cols, 2);
    let weight = device.vector(&weights)?;
    let table = matrix(device, rows, cols, 1)?;
    let mut batch = Batch::default();
    span(&mut batch, rows, 0, 0);
    let step = device.step(&batch)?;
    let mut out = device.tensor(rows, cols)?;
    let mut residual = tensor(device, rows, cols, 3)?;
    let mut run = move |out: &mut CpuTensor| match name {
        "rms_norm" => device.add_rms_norm(&x, &mut residual, &weight, EPS, out),
        "silu_mul" => device.silu_mul(&x, out),
        _ => device.embed(&table, &step, out),
    };
    run(&mut out)?;
    if checked {
        let (x, residual) = (values(rows, wide, 1), values(rows, cols, 3));
        let (truth, plain) = match name {
            "rms_norm" => (
                reference::rms_norm::<f64>(&x, Some(&residual), &weights, EPS).out,
                reference::rms_norm::<f32>(&x, Some(&residual), &weights, EPS).out,
            ),
            "silu_mul" => (reference::silu_mul::<f64>(&x, cols), reference::silu_mul::<f32>(&x, cols)),
            _ => (x.iter().map(|&value| f64::from(value)).collect(), x),
        };
        compare(name, &device.read(&out)?, &truth, &plain, cols)?;
    }
    Ok(Box::new(move || run(&mut out)))
}

/// `argmax`, or `sample` at the settings of the GPU's benchmark.
fn tokens<'d>(
    device: &'d CpuDevice,
    name: &'static str,
    shape: Rows,
    checked: bool,
    drawn: bool,
) -> Result<Run<'d>> {
    const WIDTH: usize = 64;
    let (x, w) = (tensor(device, shape.rows, WIDTH, 1)?, matrix(device, shape.cols, WIDTH, 2)?);
    let mut logits = device.logits(shape.rows, shape.cols)?;
    device.project_logits(&x, &w, &mut logits)?;
    let known = device.read_logits(&logits)?;
    let settings: Vec<_> = (0..shape.rows).map(sample_row).collect();
    let run = move || if drawn { device.sample(&logits, &settings) } else { device.argmax(&logits) };
    for (row, (token, logits)) in run()?.into_iter().zip(known.chunks(shape.cols)).enumerate() {
        let params = sample_row(row);
        let settings = SampleSettings {
            temperature: f64::from(params.temperature),
            top_p: f64::from(params.top_p),
            min_p: f64::from(params.min_p),
            uniform: f64::from(params.uniform),
            top_k: params.top_k as usize,
        };
        let may_be = if drawn {
            reference::sample_candidates(logits, &settings, 1e-4)
        } else {
            vec![reference::argmax(logits)]
        };
        if checked && !may_be.contains(&token) {
            return Err(wrong(name, format!("row {row}: token {token}, expected one of {may_be:?}")));
        }
    }
    Ok(Box::new(move || run().map(drop)))
}
