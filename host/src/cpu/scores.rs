//! The softmax of scores that were written down, between the two products of a textbook's attention.

use super::isa::{Isa, Kernel, LANES, Level};
use super::layers::round_row;
use super::parallel::{self, Shared};
use super::tensor::CpuTensor;
use crate::Tensor;

/// Row `i` becomes the softmax of `scale` times its first `i % cols + 1` elements, and zeros; checked.
pub(super) fn causal_softmax(level: Level, scale: f32, round: bool, scores: &mut CpuTensor) {
    let (all, cols, stride) = (scores.rows(), scores.cols(), scores.stride());
    let scores = scores.shared();
    // An exponential costs about as much as eight plain operations.
    parallel::rows(all, 10 * cols, |rows| {
        level.run(CausalSoftmax { scores, cols, stride, scale, round, rows })
    });
}

struct CausalSoftmax {
    scores: Shared<f32>,
    cols: usize,
    stride: usize,
    scale: f32,
    round: bool,
    rows: std::ops::Range<usize>,
}

impl Kernel for CausalSoftmax {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for row in self.rows.clone() {
            // SAFETY: each row is one task's; `stride` elements are there.
            let scores = unsafe { self.scores.slice(row * self.stride, self.stride) };
            let seen = row % self.cols + 1;
            // Whole vectors: what isn't seen of the last is never the largest, and adds nothing.
            let end = seen.next_multiple_of(LANES);
            scores[seen..end].fill(f32::NEG_INFINITY);
            softmax(isa, scores[..end].as_chunks_mut().0, self.scale);
            scores[seen..self.cols.max(end)].fill(0.0);
            round_row(&mut scores[..seen], self.round);
        }
    }
}

#[inline(always)]
fn softmax<I: Isa>(isa: I, scores: &mut [[f32; LANES]], scale: f32) {
    let mut largest = isa.splat(f32::NEG_INFINITY);
    for group in scores.iter() {
        largest = isa.max(largest, isa.vector(group));
    }
    let largest = isa.splat(isa.reduce_max(largest));
    let (mut sums, scale) = (isa.zero(), isa.splat(scale));
    for group in scores.iter_mut() {
        let exponential = isa.exp(isa.mul(isa.sub(isa.vector(group), largest), scale));
        sums = isa.add(sums, exponential);
        *group = isa.to_array(exponential);
    }
    let inverse = isa.splat(1.0 / isa.reduce_sum(sums));
    for group in scores.iter_mut() {
        *group = isa.to_array(isa.mul(isa.vector(group), inverse));
    }
}
