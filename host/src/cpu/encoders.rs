//! Row-wise operations of models without rotary positions and gates: learned positions, layer norms, activations.

use super::isa::{Isa, Kernel, LANES, Level};
use super::layers::round_row;
use super::matrix::CpuMatrix;
use super::parallel::{self, Shared};
use super::tensor::{CpuTensor, CpuVector};
use crate::{Gelu, Tensor};

/// `out[i] = table[ids[i]] + places[positions[i]]`; checked.
pub(super) fn embed_sum(
    (table, ids): (&CpuMatrix, &[u32]),
    (places, positions): (&CpuMatrix, &[u32]),
    round: bool,
    out: &mut CpuTensor,
) {
    let (cols, stride, out) = (table.cols, out.stride(), out.shared());
    // The lanes of a panel are apart: an element costs a cache line.
    parallel::rows(ids.len(), 16 * cols, |rows| {
        let mut place = vec![0.0; cols];
        for row in rows {
            // SAFETY: each row is one task's.
            let out = unsafe { out.slice(row * stride, cols) };
            table.read_row(ids[row] as usize, out);
            places.read_row(positions[row] as usize, &mut place);
            for (sum, place) in out.iter_mut().zip(&place) {
                *sum += place;
            }
            round_row(out, round);
        }
    });
}

/// `out = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias` by rows; checked.
pub(super) fn layer_norm(
    level: Level,
    x: &CpuTensor,
    (weight, bias, eps): (&CpuVector, Option<&CpuVector>, f32),
    round: bool,
    out: &mut CpuTensor,
) {
    let (stride, out) = (out.stride(), out.shared());
    let (weight, bias) = (weight.values(), bias.map(CpuVector::values));
    parallel::rows(x.rows(), 3 * x.cols(), |rows| {
        level.run(LayerNorm { x, weight, bias, eps, round, out, stride, rows })
    });
}

struct LayerNorm<'a> {
    x: &'a CpuTensor,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    round: bool,
    out: Shared<f32>,
    stride: usize,
    rows: std::ops::Range<usize>,
}

/// The sum of `term` over `x`, sixteen at a time; the tail's lanes past the end count for nothing.
#[inline(always)]
fn sum<I: Isa>(isa: I, x: &[f32], term: impl Fn(I::V) -> I::V) -> f32 {
    let (groups, tail) = x.as_chunks::<LANES>();
    let mut sums = isa.zero();
    for group in groups {
        sums = isa.add(sums, term(isa.vector(group)));
    }
    let mut last = [0.0; LANES];
    last[..tail.len()].copy_from_slice(tail);
    let mut lanes = isa.to_array(term(isa.vector(&last)));
    lanes[tail.len()..].fill(0.0);
    isa.reduce_sum(isa.add(sums, isa.vector(&lanes)))
}

impl Kernel for LayerNorm<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let cols = self.x.cols();
        for row in self.rows.clone() {
            // SAFETY: each row is one task's, and the output has as many rows and columns as `x`.
            let out = unsafe { self.out.slice(row * self.stride, cols) };
            let x = self.x.row(row);
            let mean = sum(isa, x, |v| v) / cols as f32;
            // About the mean, in a second pass: a row far from 0 would leave no digits of the difference of two sums.
            let squares = sum(isa, x, |v| {
                let centred = isa.sub(v, isa.splat(mean));
                isa.mul(centred, centred)
            });
            let scale = 1.0 / (squares / cols as f32 + self.eps).sqrt();
            for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
                *out = (x - mean) * scale * self.weight[i] + self.bias.map_or(0.0, |bias| bias[i]);
            }
            round_row(out, self.round);
        }
    }
}

/// `out = gelu(x)`; checked.
pub(super) fn gelu(level: Level, x: &CpuTensor, form: Gelu, round: bool, out: &mut CpuTensor) {
    let (stride, out) = (out.stride(), out.shared());
    // An exponential, a division and a polynomial cost about as much as twelve plain operations.
    parallel::rows(x.rows(), 12 * x.cols(), |rows| level.run(Activate { x, form, out, stride, round, rows }));
}

struct Activate<'a> {
    x: &'a CpuTensor,
    form: Gelu,
    out: Shared<f32>,
    stride: usize,
    round: bool,
    rows: std::ops::Range<usize>,
}

/// `ln(erfc(z) * exp(z^2) / t)` as a polynomial of `t = 1 / (1 + z / 2)`, the highest power first: interpolated at 200 Chebyshev nodes
/// over all `z >= 0`, nowhere more than 1.1e-7 off, which is a relative error of the result in the far tail too.
const LOG_ERFC: [f32; 10] = [
    0.170_872_67,
    -0.822_152_26,
    1.488_515_9,
    -1.135_204,
    0.278_868_08,
    -0.186_288_06,
    0.096_784_19,
    0.374_091_95,
    1.000_023_7,
    -1.265_512_2,
];

/// `x` times the probability that a normal number is below `x`.
#[inline(always)]
fn gelu_erf<I: Isa>(isa: I, x: I::V) -> I::V {
    let one = isa.splat(1.0);
    let z = isa.mul(isa.max(isa.sub(isa.zero(), x), x), isa.splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = isa.div(one, isa.fma(z, isa.splat(0.5), one));
    let mut log = isa.splat(LOG_ERFC[0]);
    for coefficient in &LOG_ERFC[1..] {
        log = isa.fma(log, t, isa.splat(*coefficient));
    }
    let exponent = isa.sub(log, isa.mul(z, z));
    let upper_tail = isa.mul(isa.mul(isa.splat(0.5), t), isa.exp(exponent));
    // The tail itself where x is below 0: 1 less something near 1 would leave no digits.
    isa.mul(x, isa.select_lt(x, isa.zero(), upper_tail, isa.sub(one, upper_tail)))
}

/// `x / 2 * (1 + tanh(u))` with `u = sqrt(2 / pi) * (x + 0.044715 * x^3)`, as `x / (1 + exp(-2 * u))`, which cancels nowhere.
#[inline(always)]
fn gelu_tanh<I: Isa>(isa: I, x: I::V) -> I::V {
    const MINUS_TWO_SQRT_2_OVER_PI: f32 = -1.595_769;
    let cube = isa.mul(isa.mul(x, x), x);
    let inner = isa.fma(cube, isa.splat(0.044_715), x);
    let e = isa.exp(isa.mul(inner, isa.splat(MINUS_TWO_SQRT_2_OVER_PI)));
    isa.div(x, isa.add(isa.splat(1.0), e))
}

impl Kernel for Activate<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let cols = self.x.cols();
        for row in self.rows.clone() {
            // SAFETY: each row is one task's.
            let out = unsafe { self.out.slice(row * self.stride, cols) };
            let x = self.x.row(row);
            for (out, x) in out.chunks_mut(LANES).zip(x.chunks(LANES)) {
                let mut lanes = [0.0; LANES];
                lanes[..x.len()].copy_from_slice(x);
                let v = isa.vector(&lanes);
                let y = match self.form {
                    Gelu::Erf => gelu_erf(isa, v),
                    Gelu::Tanh => gelu_tanh(isa, v),
                };
                out.copy_from_slice(&isa.to_array(y)[..x.len()]);
            }
            round_row(out, self.round);
        }
    }
}
