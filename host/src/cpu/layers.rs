//! Row-wise operations: norms, rotation, gating.
use super::cache::{CpuCache, CpuRope, Layout, Stored};
use super::codes::AppendCodes;
use super::isa::{Isa, Kernel, LANES, Level};
use super::parallel::{self, Shared};
use super::tensor::{CpuTensor, CpuVector, round_to_bf16};
use crate::Tensor;

/// The longest head that is served.
pub(super) const MAX_HEAD_DIM: usize = 512;

/// Rounds a finished row where the device computes in bf16.
#[inline(always)]
pub(super) fn round_row(row: &mut [f32], round: bool) {
    if round {
        row.iter_mut().for_each(|x| *x = round_to_bf16(*x));
    }
}

/// Writes `x / sqrt(mean(x^2) + eps) * weight` to `out`.
#[inline(always)]
fn norm_row<I: Isa>(isa: I, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let (groups, tail) = x.as_chunks::<LANES>();
    let mut squares = isa.zero();
    for group in groups {
        let v = isa.vector(group);
        squares = isa.fma(v, v, squares);
    }
    let mut last = [0.0; LANES];
    last[..tail.len()].copy_from_slice(tail);
    let v = isa.vector(&last);
    let sum = isa.reduce_sum(isa.fma(v, v, squares));
    let scale = 1.0 / (sum / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// `out = norm(x)` by rows; with `residual`, `residual += x` first and the norm is of that.
pub(super) fn rms_norm(
    level: Level,
    x: &CpuTensor,
    residual: Option<&mut CpuTensor>,
    weight: &CpuVector,
    eps: f32,
    round: bool,
    out: &mut CpuTensor,
) {
    let residual = residual.map(|residual| (residual.stride(), residual.shared()));
    let (stride, out) = (out.stride(), out.shared());
    parallel::rows(x.rows(), x.cols(), |rows| {
        level.run(RmsNorm { x, residual, weight: weight.values(), eps, round, out, stride, rows })
    });
}

struct RmsNorm<'a> {
    x: &'a CpuTensor,
    residual: Option<(usize, Shared<f32>)>,
    weight: &'a [f32],
    eps: f32,
    round: bool,
    out: Shared<f32>,
    stride: usize,
    rows: std::ops::Range<usize>,
}

impl Kernel for RmsNorm<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let cols = self.x.cols();
        for row in self.rows.clone() {
            // SAFETY: each row is one task's, and the output has as many rows and columns as `x`.
            let out = unsafe { self.out.slice(row * self.stride, cols) };
            let mut x = self.x.row(row);
            if let Some((stride, residual)) = self.residual {
                // SAFETY: as above, of the residual.
                let sum = unsafe { residual.slice(row * stride, cols) };
                for (sum, x) in sum.iter_mut().zip(x) {
                    *sum += x;
                }
                round_row(sum, self.round);
                x = sum;
            }
            norm_row(isa, x, self.weight, self.eps, out);
            round_row(out, self.round);
        }
    }
}

/// `out = silu(gate) * up`.
pub(super) fn silu_mul(level: Level, gate_up: &CpuTensor, round: bool, out: &mut CpuTensor) {
    let (cols, stride, out) = (out.cols(), out.stride(), out.shared());
    // An exponential and a division cost about as much as eight plain operations.
    parallel::rows(gate_up.rows(), 8 * cols, |rows| {
        level.run(SiluMul { gate_up, out, stride, cols, round, rows })
    });
}

/// `silu(gate) * up`.
#[inline(always)]
pub(super) fn silu<I: Isa>(isa: I, gate: I::V, up: I::V) -> I::V {
    let e = isa.exp(isa.sub(isa.zero(), gate));
    isa.mul(isa.div(gate, isa.add(isa.splat(1.0), e)), up)
}

#[inline(always)]
fn silu_group<I: Isa>(isa: I, gate: &[f32; LANES], up: &[f32; LANES], out: &mut [f32; LANES]) {
    *out = isa.to_array(silu(isa, isa.vector(gate), isa.vector(up)));
}

struct SiluMul<'a> {
    gate_up: &'a CpuTensor,
    out: Shared<f32>,
    stride: usize,
    cols: usize,
    round: bool,
    rows: std::ops::Range<usize>,
}

impl Kernel for SiluMul<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for row in self.rows.clone() {
            // SAFETY: each row is one task's.
            let out = unsafe { self.out.slice(row * self.stride, self.cols) };
            let (gate, up) = self.gate_up.row(row).split_at(self.cols);
            let (gates, gate_tail) = gate.as_chunks::<LANES>();
            let (ups, up_tail) = up.as_chunks::<LANES>();
            let (outs, out_tail) = out.as_chunks_mut::<LANES>();
            for ((out, gate), up) in outs.iter_mut().zip(gates).zip(ups) {
                silu_group(isa, gate, up, out);
            }
            if !out_tail.is_empty() {
                let [mut gate, mut up, mut last] = [[0.0; LANES]; 3];
                gate[..gate_tail.len()].copy_from_slice(gate_tail);
                up[..up_tail.len()].copy_from_slice(up_tail);
                silu_group(isa, &gate, &up, &mut last);
                out_tail.copy_from_slice(&last[..out_tail.len()]);
            }
            round_row(out, self.round);
        }
    }
}

/// What [`rope_append`] needs beyond its tensors; checked.
pub(super) struct RopeArgs<'a> {
    pub(super) qkv: &'a CpuTensor,
    pub(super) norms: Option<(&'a [f32], &'a [f32], f32)>,
    pub(super) rope: &'a CpuRope,
    pub(super) positions: &'a [u32],
    pub(super) slots: &'a [u32],
    pub(super) q_heads: usize,
    pub(super) layer: usize,
    pub(super) round: bool,
}

/// Rotates queries into `q`, keys into the cache, and copies values there.
pub(super) fn rope_append(level: Level, args: &RopeArgs<'_>, cache: &mut CpuCache, q: &mut CpuTensor) {
    let tokens = args.positions.len();
    let layout = cache.layout;
    let (head_dim, kv_heads) = (layout.spec.head_dim, layout.spec.kv_heads);
    let (q_stride, q) = (q.stride(), q.shared());
    parallel::rows(tokens, 4 * args.q_heads * head_dim, |rows| {
        level.run(RotateQueries { args, head_dim, q, q_stride, rows });
    });
    // By heads, not by tokens: two tokens of a batch may name the same slot.
    let work = 4 * tokens * head_dim;
    match &mut cache.layers[args.layer] {
        Stored::F32 { keys, values } => {
            let (keys, values) = (Shared::new(keys), Shared::new(values));
            parallel::rows(kv_heads, work, |heads| {
                level.run(AppendKeys { args, layout, keys, values, heads });
            });
        }
        Stored::Codes { keys, values } => {
            let keys = (Shared::new(&mut keys.codes), Shared::new(&mut keys.scales));
            let values = (Shared::new(&mut values.codes), Shared::new(&mut values.scales));
            parallel::rows(kv_heads, work, |heads| {
                level.run(AppendCodes { args, layout, keys, values, heads });
            });
        }
    }
}

/// The rotated head `x` in `out`, normalised first if `norm` is given.
#[inline(always)]
pub(super) fn rotate<I: Isa>(
    isa: I,
    args: &RopeArgs<'_>,
    token: usize,
    norm: Option<(&[f32], f32)>,
    x: &[f32],
    out: &mut [f32],
) {
    let head_dim = x.len();
    match norm {
        Some((weight, eps)) => {
            norm_row(isa, x, weight, eps, out);
            round_row(out, args.round);
        }
        None => out.copy_from_slice(x),
    }
    let (cos, sin) =
        args.rope.table[args.positions[token] as usize * head_dim..][..head_dim].split_at(head_dim / 2);
    let (first, second) = out.split_at_mut(head_dim / 2);
    let (firsts, first) = first.as_chunks_mut::<LANES>();
    let (seconds, second) = second.as_chunks_mut::<LANES>();
    let ((cosines, cos), (sines, sin)) = (cos.as_chunks::<LANES>(), sin.as_chunks::<LANES>());
    for (((a, b), cos), sin) in firsts.iter_mut().zip(seconds).zip(cosines).zip(sines) {
        let (x, y, cos, sin) = (isa.vector(a), isa.vector(b), isa.vector(cos), isa.vector(sin));
        *a = isa.to_array(isa.sub(isa.mul(x, cos), isa.mul(y, sin)));
        *b = isa.to_array(isa.add(isa.mul(y, cos), isa.mul(x, sin)));
    }
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
    round_row(out, args.round);
}

struct RotateQueries<'a> {
    args: &'a RopeArgs<'a>,
    head_dim: usize,
    q: Shared<f32>,
    q_stride: usize,
    rows: std::ops::Range<usize>,
}

impl Kernel for RotateQueries<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (args, head_dim) = (self.args, self.head_dim);
        let norm = args.norms.map(|(q_norm, _, eps)| (q_norm, eps));
        for token in self.rows {
            // SAFETY: each row is one task's.
            let out = unsafe { self.q.slice(token * self.q_stride, args.q_heads * head_dim) };
            let queries = args.qkv.row(token).chunks_exact(head_dim);
            for (out, x) in out.chunks_exact_mut(head_dim).zip(queries) {
                rotate(isa, args, token, norm, x, out);
            }
        }
    }
}

struct AppendKeys<'a> {
    args: &'a RopeArgs<'a>,
    layout: Layout,
    keys: Shared<f32>,
    values: Shared<f32>,
    heads: std::ops::Range<usize>,
}

impl Kernel for AppendKeys<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (args, spec) = (self.args, self.layout.spec);
        let norm = args.norms.map(|(_, k_norm, eps)| (k_norm, eps));
        // The device refuses larger heads.
        let mut rotated = [0.0; MAX_HEAD_DIM];
        let rotated = &mut rotated[..spec.head_dim];
        for (token, &slot) in args.slots.iter().enumerate() {
            let (page, offset) = (slot as usize / spec.page_size, slot as usize % spec.page_size);
            for head in self.heads.clone() {
                let k_at = (args.q_heads + head) * spec.head_dim;
                let v_at = k_at + spec.kv_heads * spec.head_dim;
                let row = args.qkv.row(token);
                rotate(isa, args, token, norm, &row[k_at..k_at + spec.head_dim], rotated);
                let panel = self.layout.key_panel(page, head, offset) + offset % LANES;
                let value = self.layout.value(page, head, offset);
                // SAFETY: slots were checked to be within the cache; a head's part of it is one task's.
                unsafe {
                    for (i, &x) in rotated.iter().enumerate() {
                        *self.keys.at(panel + i * LANES) = x;
                    }
                    let value = self.values.slice(value, spec.head_dim);
                    value.copy_from_slice(&row[v_at..v_at + spec.head_dim]);
                }
            }
        }
    }
}
