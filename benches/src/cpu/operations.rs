//! One problem on the CPU device: what runs it, its answer held against the oracle first. Inputs come of `embed`, which copies random rows;
//! caches are filled by appending with a rotation by nothing.

use tilewright_host::{
    ActivationBits, Batch, CacheSpec, CodeBits, DType, Device, HostMatrix, HostQuantized, KvDType, Outputs,
    QuantizedPart, QuantizedSpec, RopeAppend as Append,
    cpu::{CpuDevice, CpuMatrix, CpuTensor},
};
use tilewright_reference::{self as reference, Bound, Floor, GemmProblem};

use super::attention::attention;
use crate::{
    Error, Result,
    check::sample_settings,
    kernels::{EPS, sample_row},
    problem::{Gemm, GemmWeights, Problem, RopeAppend, Rows},
    random::{Kind, Random},
};

/// Tokens a page.
pub(super) const PAGE: usize = 16;
/// Inputs that share a scale in weights of four bits.
const GROUP: usize = 128;

/// Runs the problem once.
pub type Run<'d> = Box<dyn FnMut() -> tilewright_host::Result<()> + 'd>;

/// The operation that a problem is, as it is reported.
pub fn name(problem: &Problem) -> &'static str {
    match problem {
        Problem::Prefill(_) | Problem::Decode(_) => "attention",
        Problem::RopeAppend(_) => "rope_append",
        Problem::Gemm(_) => "linear",
        Problem::RmsNorm(_) => "add_rms_norm",
        Problem::SiluMul(_) => "silu_mul",
        Problem::GatherRows(_) => "embed",
        Problem::Argmax(_) => "argmax",
        Problem::Sample(_) => "sample",
    }
}

/// A problem on the device: what runs it, its answer checked if asked for.
///
/// # Errors
/// [`Error::Wrong`] where the answer isn't the oracle's; the device's.
pub fn operation<'d>(device: &'d CpuDevice, problem: &Problem, checked: bool) -> Result<Run<'d>> {
    let name = name(problem);
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
    }
}

pub(super) fn values(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let random = Random { kind: Kind::Bf16, seed };
    (0..rows * cols).map(|index| random.value(index)).collect()
}

fn matrix(device: &CpuDevice, rows: usize, cols: usize, seed: u64) -> Result<CpuMatrix> {
    let mut bytes = vec![0; rows * cols * 2];
    Random { kind: Kind::Bf16, seed }.fill(0, &mut bytes);
    Ok(device.matrix(&HostMatrix { parts: vec![(rows, &bytes)], cols, dtype: DType::Bf16 })?)
}

/// `tokens` of one sequence, their ids counted up.
pub(super) fn span(batch: &mut Batch, tokens: usize, cached: usize, first_page: usize) {
    let ids: Vec<u32> = (0..tokens).map(|token| (batch.tokens() + token) as u32).collect();
    let pages: Vec<u32> =
        (0..(cached + tokens).div_ceil(PAGE)).map(|page| (first_page + page) as u32).collect();
    batch.push(&ids, cached as u32, &pages, PAGE as u32, Outputs::All);
}

/// A tensor whose values are those of [`values`].
pub(super) fn tensor(device: &CpuDevice, rows: usize, cols: usize, seed: u64) -> Result<CpuTensor> {
    let table = matrix(device, rows, cols, seed)?;
    let mut batch = Batch::default();
    span(&mut batch, rows, 0, 0);
    let mut out = device.tensor(rows, cols)?;
    device.embed(&table, &device.step(&batch)?, &mut out)?;
    Ok(out)
}

pub(super) fn compare(
    name: &'static str,
    actual: &[f32],
    truth: &[f64],
    plain: &[f32],
    cols: usize,
) -> Result<()> {
    held(name, actual, truth, &bound(truth, plain, cols))
}

fn bound(truth: &[f64], plain: &[f32], cols: usize) -> Bound {
    Bound::from_plain(&[truth.len() / cols, cols], truth, plain, Floor::BF16.with_absolute(1e-5))
}

fn held(name: &'static str, actual: &[f32], truth: &[f64], bound: &Bound) -> Result<()> {
    reference::compare(name, actual, truth, bound)
        .map(drop)
        .map_err(|mismatch| wrong(name, mismatch.to_string()))
}

/// An activation halfway between two steps may be rounded to either: in f32 and in f64 it may not be halfway to the same side.
fn allow_ties(bound: &mut Bound, x: &[f32], weights: &[f64], k: usize) {
    /// How near to halfway, in steps.
    const NEAR: f64 = 1e-4;
    let n = weights.len() / k;
    for (x, limits) in x.chunks_exact(k).zip(bound.limits.chunks_exact_mut(n)) {
        let step = x.iter().fold(0.0_f64, |largest, x| largest.max(f64::from(x.abs()))) / 127.0;
        let is_tie = |x: f32| ((f64::from(x) / step).rem_euclid(1.0) - 0.5).abs() < NEAR;
        for at in (0..k).filter(|&at| step > 0.0 && is_tie(x[at])) {
            limits
                .iter_mut()
                .zip(weights.chunks_exact(k))
                .for_each(|(limit, row)| *limit += step * row[at].abs());
        }
    }
}

fn wrong(kernel: &'static str, what: String) -> Error {
    Error::Wrong { kernel, problem: "the small problem".into(), what }
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
    let dtype = KvDType::Native;
    let mut cache =
        device.cache(CacheSpec { layers: 1, pages, page_size: PAGE, kv_heads, head_dim, dtype })?;
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
    let Gemm { m, n, k, weights } = problem;
    let x = tensor(device, m, k, 1)?;
    let (w, quantized) = match weights {
        GemmWeights::Bf16 => (matrix(device, n, k, 2)?, None),
        _ => {
            let weights = quantized(weights, n, k)?;
            (device.quantized(&weights)?, Some(weights))
        }
    };
    let mut out = device.tensor(m, n)?;
    let run = move |out: &mut CpuTensor| device.linear(&x, &w, None, out);
    run(&mut out)?;
    if let Some(weights) = quantized.filter(|_| checked) {
        let part = &weights.parts()[0];
        let eight_bits = part.activations == ActivationBits::Eight;
        let (a, w) = (values(m, k, 1), dequantized(part));
        let truth = reference::quantized_gemm::<f64>(&a, &w, k, eight_bits).0;
        let plain = reference::quantized_gemm::<f32>(&a, &w, k, eight_bits).0;
        let mut bound = bound(&truth, &plain, n);
        if eight_bits {
            allow_ties(&mut bound, &a, &w, k);
        }
        held(name, &device.read(&out)?, &truth, &bound)?;
    } else if checked {
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
        "add_rms_norm" => device.add_rms_norm(&x, &mut residual, &weight, EPS, out),
        "silu_mul" => device.silu_mul(&x, out),
        _ => device.embed(&table, &step, out),
    };
    run(&mut out)?;
    if checked {
        let (x, residual) = (values(rows, wide, 1), values(rows, cols, 3));
        let (truth, plain) = match name {
            "add_rms_norm" => (
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
        let may_be = if drawn {
            reference::sample_candidates(logits, &sample_settings(row), 1e-4)
        } else {
            vec![reference::argmax(logits)]
        };
        if checked && !may_be.contains(&token) {
            return Err(wrong(name, format!("row {row}: token {token}, expected one of {may_be:?}")));
        }
    }
    Ok(Box::new(move || run().map(drop)))
}

/// Weights of random codes.
fn quantized(weights: GemmWeights, rows: usize, cols: usize) -> Result<HostQuantized> {
    let (bits, group, activations) = match weights {
        GemmWeights::Int4 | GemmWeights::Int4F16 => (CodeBits::Four, GROUP.min(cols), ActivationBits::Full),
        _ => (CodeBits::Eight, cols, ActivationBits::Eight),
    };
    let mut codes = vec![0; rows * cols];
    Random { kind: Kind::I8, seed: 2 }.fill(0, &mut codes);
    // Signed bytes close to normal become codes about the middle one.
    codes.iter_mut().for_each(|code| *code = (*code ^ 0x80) >> (8 - bits.bits()));
    let groups = rows * cols.div_ceil(group);
    let part = QuantizedPart::new(QuantizedSpec {
        rows,
        cols,
        bits,
        group,
        codes,
        scales: (0..groups).map(|index| 0.01 + 0.01 * (index % 7) as f32).collect(),
        scale_type: DType::F32,
        zeros: vec![bits.middle(); groups],
        permutation: None,
        pre_scale: None,
        activations,
    })?;
    Ok(HostQuantized::new(vec![part])?)
}

/// What the codes stand for, by their definition.
fn dequantized(part: &QuantizedPart) -> Vec<f64> {
    let groups = part.cols.div_ceil(part.group);
    let weight = |index: usize| {
        let (row, col) = (index / part.cols, index % part.cols);
        let at = row * groups + col / part.group;
        (f64::from(part.codes[index]) - f64::from(part.zeros[at])) * f64::from(part.scales[at])
    };
    (0..part.rows * part.cols).map(weight).collect()
}
