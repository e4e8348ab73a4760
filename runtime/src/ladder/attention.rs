//! Attention in tiles (Dao et al. 2022, arXiv 2205.14135) against attention that writes every score down.

use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;
use tilewright_host::{
    AttentionSpec, Batch, CacheSpec, DType, Device, HostMatrix, KvDType, Outputs, RopeAppend,
};

use super::{Bench, Claim, Rate, Rung, Turns, in_turns};
use crate::Result;
use crate::device::{DeviceJob, on_device};

const NAME: &str = "tiled attention";
const CLAIM: &str = "2 to 4 times faster than standard attention, 10 to 20 times less memory, exact";
const PAGE: usize = 16;
/// Queries of a task of the textbook's way.
const BLOCK: usize = 128;

pub(super) fn rungs(bench: &Bench<'_>) -> Result<Vec<Rung>> {
    let config = bench.model.config();
    let shape = Shape {
        tokens: bench.size(4096, 256),
        q_heads: config.q_heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
    };
    let rounds = bench.size(3, 1);
    Ok(vec![on_device(bench.options.device, Compare { shape, rounds })?])
}

#[derive(Clone, Copy)]
struct Shape {
    tokens: usize,
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Shape {
    /// Bytes of queries, keys, values and outputs in f32, which both ways hold.
    fn operand_bytes(&self) -> usize {
        4 * self.tokens * self.head_dim * 2 * (self.q_heads + self.kv_heads)
    }
}

struct Compare {
    shape: Shape,
    rounds: usize,
}

impl DeviceJob for Compare {
    type Output = Rung;

    fn run<D: Device>(self, device: Arc<D>, in_f32: bool) -> Result<Rung> {
        if !in_f32 {
            let reason = "the runtime has no attention for this device that writes scores down; the benchmark of kernels beside their peers compares with others'";
            return Ok(Rung::not_here(NAME, CLAIM, Claim::Times { from: 2.0, to: 4.0 }, reason));
        }
        let (tiled, qkv) = Tiled::new(&*device, self.shape)?;
        let standard = Standard { shape: self.shape, qkv: &qkv };
        let ((tiled, ours), ours_bytes) = peak(|| {
            fresh_pool(move || {
                let out = tiled.run();
                (tiled, out)
            })
        });
        let (theirs, theirs_bytes) = peak(|| fresh_pool(|| standard.run()));
        let worst = worst_difference(&ours?, &theirs);
        let seconds = |run: &dyn Fn() -> Result<Vec<f32>>| {
            let start = Instant::now();
            std::hint::black_box(run()?);
            Ok(1.0 / start.elapsed().as_secs_f64())
        };
        let rates: Vec<Rate<'_>> =
            vec![Box::new(|| seconds(&|| Ok(standard.run()))), Box::new(|| seconds(&|| tiled.run()))];
        let found = in_turns(self.rounds, rates)?;
        Ok(self.rung(&found, worst, ours_bytes.zip(theirs_bytes)))
    }
}

impl Compare {
    fn rung(&self, found: &[Turns], worst: f32, peaks: Option<(usize, usize)>) -> Rung {
        let Shape { tokens, q_heads, kv_heads, head_dim } = self.shape;
        let of = format!(
            "causal attention of {tokens} tokens, {q_heads} query and {kv_heads} key heads of {head_dim}: {:.1} ms writing scores down, {:.1} ms in tiles",
            1e3 / found[0].rate,
            1e3 / found[1].rate
        );
        let rung = Rung::times(NAME, CLAIM, [2.0, 4.0], found[1].ratio(), of).of_rounds(&found[1]);
        let rung = rung.because("a CPU's caches make writing scores down cheaper than a GPU's memory does");
        let rung =
            rung.also("largest difference between the two, of values up to 0.05", format!("{worst:.1e}"));
        let operands = self.shape.operand_bytes();
        let scores = 4 * q_heads * tokens * tokens;
        let memory = match peaks {
            Some((ours, theirs)) => format!(
                "{:.1}x less: beside {:.1} MB of operands, {:.1} MB at the peak writing scores down, {:.1} MB in tiles (resident memory, measured)",
                (operands + theirs) as f64 / (operands + ours) as f64,
                operands as f64 / 1e6,
                theirs as f64 / 1e6,
                ours as f64 / 1e6
            ),
            None => format!(
                "{:.1}x less, reckoned from {:.1} MB of scores and {:.1} MB of operands: this system doesn't tell the peak",
                (operands + scores) as f64 / operands as f64,
                scores as f64 / 1e6,
                operands as f64 / 1e6
            ),
        };
        rung.also("memory", memory)
    }
}

/// In threads of their own, so that working memory that threads keep counts.
fn fresh_pool<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    match rayon::ThreadPoolBuilder::new().build() {
        Ok(pool) => pool.install(run),
        // No more threads to be had: those there are.
        Err(_) => run(),
    }
}

/// The device's attention, on keys and values in its cache.
struct Tiled<'d, D: Device> {
    device: &'d D,
    shape: Shape,
    q: D::Tensor,
    cache: D::Cache,
    step: D::Step,
}

impl<'d, D: Device> Tiled<'d, D> {
    /// With what queries and cache were made of, `[tokens, (q_heads + 2 * kv_heads) * head_dim]`.
    fn new(device: &'d D, shape: Shape) -> Result<(Self, Vec<f32>)> {
        let Shape { tokens, q_heads, kv_heads, head_dim } = shape;
        let cols = (q_heads + 2 * kv_heads) * head_dim;
        let mut state = 1_u32;
        let bytes: Vec<u8> = (0..tokens * cols)
            .flat_map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state as f32 / u32::MAX as f32 - 0.5).to_le_bytes()
            })
            .collect();
        let table = device.matrix(&HostMatrix { parts: vec![(tokens, &bytes)], cols, dtype: DType::F32 })?;
        let ids: Vec<u32> = (0..tokens as u32).collect();
        let pages: Vec<u32> = (0..tokens.div_ceil(PAGE) as u32).collect();
        let mut batch = Batch::default();
        batch.push(&ids, 0, &pages, PAGE as u32, Outputs::None);
        let step = device.step(&batch)?;
        let mut fused = device.tensor(tokens, cols)?;
        device.embed(&table, &step, &mut fused)?;
        let (pages, dtype) = (pages.len(), KvDType::Native);
        let spec = CacheSpec { layers: 1, pages, page_size: PAGE, kv_heads, head_dim, dtype };
        let mut cache = device.cache(spec)?;
        let mut q = device.tensor(tokens, q_heads * head_dim)?;
        // Angles of 0 leave queries and keys as they are.
        let rope = device.rope(&vec![0.0; head_dim / 2], 1.0, tokens)?;
        let append = RopeAppend { qkv: &fused, qk_norm: None, rope: &rope, q_heads, layer: 0 };
        device.rope_append(append, &step, &mut cache, &mut q)?;
        let qkv = device.read(&fused)?;
        Ok((Tiled { device, shape, q, cache, step }, qkv))
    }

    fn run(&self) -> Result<Vec<f32>> {
        let Shape { tokens, q_heads, head_dim, .. } = self.shape;
        let spec =
            AttentionSpec { q_heads, scale: scale(head_dim), causal: true, window: None, softcap: None };
        let mut out = self.device.tensor(tokens, q_heads * head_dim)?;
        self.device.attention(&self.q, &self.cache, 0, &self.step, &spec, &mut out)?;
        Ok(self.device.read(&out)?)
    }
}

fn scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

/// The textbook's way: all scores, their softmax, the sum of values.
struct Standard<'a> {
    shape: Shape,
    qkv: &'a [f32],
}

impl Standard<'_> {
    /// Three passes over all heads: products of queries and keys, softmax, products with values.
    fn run(&self) -> Vec<f32> {
        let Shape { tokens, q_heads, kv_heads, head_dim } = self.shape;
        let row = (q_heads + 2 * kv_heads) * head_dim;
        let kv_head = |head: usize| head / (q_heads / kv_heads);
        let mut scores = vec![0.0_f32; q_heads * tokens * tokens];
        scores.par_chunks_mut(tokens * tokens).enumerate().for_each(|(head, scores)| {
            let (q, k) = (head * head_dim, (q_heads + kv_head(head)) * head_dim);
            scores.par_chunks_mut(BLOCK * tokens).enumerate().for_each(|(block, scores)| {
                let (first, rows) = (block * BLOCK, scores.len() / tokens);
                let q = &self.qkv[first * row + q..];
                product([rows, tokens, head_dim], scores, (q, row, 1), (&self.qkv[k..], 1, row));
            });
        });
        scores.par_chunks_mut(tokens).enumerate().for_each(|(index, scores)| {
            softmax(scores, index % tokens + 1, head_dim);
        });
        let mut by_head = vec![0.0_f32; q_heads * tokens * head_dim];
        by_head
            .par_chunks_mut(tokens * head_dim)
            .zip(scores.par_chunks(tokens * tokens))
            .enumerate()
            .for_each(|(head, (out, weights))| {
                let v = &self.qkv[(q_heads + kv_heads + kv_head(head)) * head_dim..];
                out.par_chunks_mut(BLOCK * head_dim).zip(weights.par_chunks(BLOCK * tokens)).for_each(
                    |(out, weights)| {
                        let rows = out.len() / head_dim;
                        product([rows, head_dim, tokens], out, (weights, tokens, 1), (v, row, 1));
                    },
                );
            });
        let mut out = Vec::with_capacity(by_head.len());
        for token in 0..tokens {
            for head in 0..q_heads {
                out.extend_from_slice(&by_head[(head * tokens + token) * head_dim..][..head_dim]);
            }
        }
        out
    }
}

/// An operand: elements, and the strides of its rows and columns.
type Operand<'a> = (&'a [f32], usize, usize);

/// `out[m, n] = a[m, k] * b[k, n]`.
fn product([m, n, k]: [usize; 3], out: &mut [f32], a: Operand<'_>, b: Operand<'_>) {
    assert!(out.len() >= m * n);
    assert!(a.0.len() > (m - 1) * a.1 + (k - 1) * a.2 && b.0.len() > (k - 1) * b.1 + (n - 1) * b.2);
    // SAFETY: the slices hold every element that sizes and strides reach, as was just asserted; `out` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.0.as_ptr(),
            a.2 as isize,
            a.1 as isize,
            b.0.as_ptr(),
            b.2 as isize,
            b.1 as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// The softmax of the first `seen` scores; the others become 0.
fn softmax(scores: &mut [f32], seen: usize, head_dim: usize) {
    let (seen, hidden) = scores.split_at_mut(seen);
    let scale = scale(head_dim);
    let largest = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    seen.iter_mut().for_each(|score| *score = exp((*score - largest) * scale));
    let sum: f32 = seen.iter().sum();
    seen.iter_mut().for_each(|weight| *weight /= sum);
    hidden.fill(0.0);
}

/// `e^x` of `x` from -87 to 0 in arithmetic that vectorises, so that the comparison isn't with a slow library's: range reduction by
/// powers of two and the Taylor series, whose error is below 1e-7 on what is left.
fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer.
    const MAGIC: f32 = 12_582_912.0;
    let x = x.max(-87.0);
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = x - n * std::f32::consts::LN_2;
    let series =
        1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r / 720.0)))));
    series * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

fn worst_difference(a: &[f32], b: &[f32]) -> f32 {
    // A NaN is the worst of all.
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |worst, next| if next <= worst { worst } else { next })
}

/// What `run` gives, and the bytes that resident memory grew by at its peak, where the system tells.
fn peak<T>(run: impl FnOnce() -> T) -> (T, Option<usize>) {
    let reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let before = resident("VmRSS:");
    let result = run();
    let after = resident("VmHWM:");
    let grown = before.zip(after).map(|(before, after)| after.saturating_sub(before));
    (result, grown.filter(|_| reset))
}

fn resident(field: &str) -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: usize = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use tilewright_host::cpu::CpuDevice;

    use super::*;

    #[test]
    fn both_ways_agree() {
        let device = CpuDevice::new();
        for (tokens, q_heads, kv_heads, head_dim) in [(1, 1, 1, 16), (67, 6, 2, 64), (130, 4, 4, 32)] {
            let shape = Shape { tokens, q_heads, kv_heads, head_dim };
            let (tiled, qkv) = Tiled::new(&device, shape).expect("prepared");
            let standard = Standard { shape, qkv: &qkv }.run();
            let ours = tiled.run().expect("run");
            assert!(standard.iter().any(|value| value.abs() > 0.01), "all but zeros");
            let worst = worst_difference(&ours, &standard);
            assert!(worst < 1e-5, "{worst}");
        }
    }

    #[test]
    fn exponentials_are_those_of_the_library() {
        for step in 0..870 {
            let x = -0.1 * step as f32;
            let (ours, library) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours - library).abs() <= 1e-5 * library, "{x}: {ours} {library}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert!(worst_difference(&[f32::NAN], &[0.0]).is_nan());
    }
}
