//! Attention in tiles (Dao et al. 2022, arXiv 2205.14135) against attention that writes every score down.

mod exact;
mod memory;
mod ways;

use std::sync::Arc;
use std::time::Instant;

use tilewright_host::Device;

pub use self::exact::Errors;
use self::{
    memory::{Begun, begin},
    ways::{Pass, Standard, Tiled},
};
use super::{Bench, Rate, Rung, Turns, Verdict, in_turns};
use crate::device::{DeviceJob, on_device};
use crate::{Error, Result};

const NAME: &str = "tiled attention";
const CLAIM: &str = "2 to 4 times faster than standard attention, 10 to 20 times less memory, exact";
/// Of all scores, at most: half the tokens take a quarter.
const MOST_SCORE_BYTES: usize = 1 << 30;
/// Seconds of runs between two looks at the clock: on a GPU, what it takes to launch and to wait is in none of them alone.
const LEAST_SECONDS: f64 = 0.05;

pub(super) fn rungs(bench: &Bench<'_>) -> Result<Vec<Rung>> {
    let config = bench.model.config();
    let compare = Compare {
        // What a GPU takes less than half a millisecond for tells little of it.
        tokens: [bench.size(4096, 256), bench.size(8192, 256)],
        q_heads: config.q_heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        rounds: bench.size(3, 1),
    };
    Ok(vec![on_device(bench.options.device, compare)?])
}

struct Compare {
    /// Where activations are f32, and elsewhere.
    tokens: [usize; 2],
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rounds: usize,
}

/// What attention is measured of: causal, of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Queries and keys; a multiple of 8.
    pub tokens: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub q_heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements a head, as many as the device takes.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Query heads of a key head.
    fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    fn score_bytes(&self, element: usize) -> usize {
        element * self.q_heads * self.tokens * self.tokens
    }

    /// Bytes of queries, keys, values and outputs, which both ways hold.
    fn operand_bytes(&self, element: usize) -> usize {
        element * self.tokens * self.head_dim * 2 * (self.q_heads + self.kv_heads)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

impl DeviceJob for Compare {
    type Output = Rung;

    fn run<D: Device>(self, device: Arc<D>, in_f32: bool) -> Result<Rung> {
        let Compare { tokens, q_heads, kv_heads, head_dim, rounds } = self;
        let tokens = tokens[usize::from(!in_f32)];
        let head_dim = device.padded_head_dim(head_dim);
        let mut shape = AttentionShape { tokens, q_heads, kv_heads, head_dim };
        while shape.score_bytes(if in_f32 { 4 } else { 2 }) > MOST_SCORE_BYTES {
            shape.tokens /= 2;
        }
        Ok(attention_on(&*device, shape, rounds)?.rung())
    }
}

/// Attention in tiles beside attention that writes scores down, on a device of one's own.
///
/// # Errors
/// A shape that the device doesn't take, a device that fails.
pub fn attention_on<D: Device>(
    device: &D,
    shape: AttentionShape,
    rounds: usize,
) -> Result<AttentionComparison> {
    let AttentionShape { tokens, q_heads, kv_heads, head_dim } = shape;
    if [tokens, q_heads, kv_heads, head_dim].contains(&0) || !q_heads.is_multiple_of(kv_heads) {
        let expected = "sizes above 0, query heads a multiple of key heads";
        return Err(Error::request("attention's shape", expected, format!("{shape:?}")));
    }
    let (tiled, qkv) = Tiled::new(device, shape)?;
    let element_bytes = tiled.element_bytes();
    let standard = Standard::new(device, shape, &qkv)?;
    let mut tiled = begin(device, tiled)?;
    let mut standard = begin(device, standard)?;
    let outputs = [standard.read()?, tiled.read()?];
    let peak_bytes = standard.bytes.zip(tiled.bytes).map(|(standard, tiled)| [standard, tiled]);
    let rates: Vec<Rate<'_>> =
        vec![Box::new(|| rate(device, || standard.run())), Box::new(|| rate(device, || tiled.run()))];
    let turns = in_turns(rounds, rates)?;
    let mut passes = [0.0; 3];
    for (seconds, pass) in passes.iter_mut().zip(Pass::ALL) {
        let Begun { way, scratch, out, .. } = &mut standard;
        let pass: Rate<'_> = Box::new(|| rate(device, || way.pass(pass, scratch, out)));
        *seconds = 1.0 / in_turns(rounds, vec![pass])?[0].rate;
    }
    Ok(AttentionComparison {
        shape,
        element_bytes,
        turns,
        passes,
        errors: Errors::of(shape, &qkv, &outputs),
        peak_bytes,
    })
}

/// Both ways measured; of pairs, that which writes scores down comes first.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionComparison {
    shape: AttentionShape,
    element_bytes: usize,
    turns: Vec<Turns>,
    /// Seconds of the passes of writing scores down, medians: those, their softmax, the values.
    passes: [f64; 3],
    /// What they are off by.
    pub errors: Errors,
    /// Bytes that memory grew by at the peak of a first run, outputs left out, where somebody counts them.
    pub peak_bytes: Option<[usize; 2]>,
}

impl AttentionComparison {
    /// As the ladder says it.
    pub fn rung(&self) -> Rung {
        let AttentionShape { tokens, q_heads, kv_heads, head_dim } = self.shape;
        let [theirs, ours] = [0, 1].map(|way| milliseconds(1.0 / self.turns[way].rate));
        let of = format!(
            "causal attention of {tokens} tokens, {q_heads} query and {kv_heads} key heads of {head_dim}: {theirs} writing scores down, {ours} in tiles"
        );
        let in_f32 = self.element_bytes == 4;
        let mut rung = Rung::times(NAME, CLAIM, [2.0, 4.0], self.turns[1].ratio(), of);
        let Errors { worst, largest, apart, tokens } = &self.errors;
        // As every kernel is judged: by twice the error of the plain computation, and in f32, where that may be none, a few roundings.
        let floor = if in_f32 { largest / f64::from(1 << 21) } else { 0.0 };
        let is_exact = worst[1] <= 2.0 * worst[0] + floor;
        rung = rung.of_rounds(&self.turns[1]);
        // What is wrong is so however long it took.
        if !is_exact && matches!(rung.verdict, Verdict::Met | Verdict::NoResult) {
            rung.verdict = Verdict::Partly;
        }
        let rung = rung.because(match (is_exact, in_f32) {
            (false, _) => "its error is more than twice that of writing scores down",
            (true, true) => "a CPU's caches make writing scores down cheaper than a GPU's memory does",
            (true, false) => "what is written of so few scores stays in a cache",
        });
        let rung = rung.also(
            "exact",
            format!(
                "the largest error of {tokens} tokens' outputs, which are up to {largest:.2}, against float64 is {:.1e} in tiles, {:.1e} writing scores down; of all outputs the two differ by {apart:.1e} at most",
                worst[1], worst[0]
            ),
        );
        let [scores, softmax, values] = self.passes.map(milliseconds);
        let elements = if in_f32 { "f32" } else { "bf16" };
        rung.also("memory", self.memory()).also(
            "writing scores down",
            format!(
                "by this device's own products: {scores} for the scores of all heads, in {elements}, {softmax} for the softmax of those seen, in their place, {values} for the values"
            ),
        )
    }

    fn memory(&self) -> String {
        let megabytes = |bytes: usize| format!("{:.1} MB", bytes as f64 / 1e6);
        let (operands, scores) =
            (self.shape.operand_bytes(self.element_bytes), self.shape.score_bytes(self.element_bytes));
        let gain = |theirs: usize, ours: usize| (operands + theirs) as f64 / (operands + ours) as f64;
        match self.peak_bytes {
            Some([theirs, ours]) => format!(
                "{:.1}x less: beside {} of operands and outputs, {} at the peak writing scores down, {} in tiles (allocated or resident, measured)",
                gain(theirs, ours),
                megabytes(operands),
                megabytes(theirs),
                megabytes(ours)
            ),
            None => format!(
                "{:.1}x less, reckoned from {} of scores and {} of operands and outputs: this system doesn't tell the peak",
                gain(scores, 0),
                megabytes(scores),
                megabytes(operands)
            ),
        }
    }
}

fn milliseconds(seconds: f64) -> String {
    let milliseconds = 1e3 * seconds;
    if milliseconds < 10.0 { format!("{milliseconds:.3} ms") } else { format!("{milliseconds:.1} ms") }
}

/// Runs a second.
fn rate(device: &impl Device, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut seconds = |times: usize| -> Result<f64> {
        device.synchronize()?;
        let start = Instant::now();
        for _ in 0..times {
            run()?;
        }
        device.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    };
    let once = seconds(1)?;
    if once >= LEAST_SECONDS {
        return Ok(1.0 / once);
    }
    let times = (LEAST_SECONDS / once.max(1e-6)).ceil() as usize;
    Ok(times as f64 / seconds(times)?)
}

#[cfg(test)]
mod tests {
    use tilewright_host::cpu::{CpuDevice, Precision};

    use super::*;

    #[test]
    fn both_ways_agree_with_each_other_and_with_float64() {
        for (tokens, q_heads, kv_heads, head_dim) in [(1, 1, 1, 16), (67, 6, 2, 64), (130, 4, 4, 32)] {
            let shape = AttentionShape { tokens, q_heads, kv_heads, head_dim };
            for (precision, limit) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.03)] {
                let found = attention_on(&CpuDevice::with_precision(precision), shape, 1).expect("measured");
                let errors = found.errors;
                assert!(errors.largest > 1.0, "all but zeros");
                assert!(errors.tokens == tokens.min(12));
                let Errors { worst, apart, .. } = errors;
                assert!(worst.iter().all(|worst| *worst < limit), "{worst:?}");
                assert!(f64::from(apart) < 2.0 * limit, "{apart}");
            }
        }
    }

    #[test]
    fn shapes_that_are_none_are_refused() {
        let good = AttentionShape { tokens: 8, q_heads: 4, kv_heads: 2, head_dim: 16 };
        let bad = [
            AttentionShape { tokens: 0, ..good },
            AttentionShape { q_heads: 0, ..good },
            AttentionShape { kv_heads: 0, ..good },
            AttentionShape { kv_heads: 3, ..good },
            AttentionShape { head_dim: 0, ..good },
        ];
        for shape in bad {
            assert!(attention_on(&CpuDevice::new(), shape, 1).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn what_is_not_exact_does_not_meet_the_claim() {
        let found = |ours: f64| {
            let turn = |rate, ratios: &[f64]| Turns { rate, ratios: ratios.to_vec() };
            let turns = vec![turn(100.0, &[1.0]), turn(300.0, &[3.0])];
            let errors = Errors { worst: [1e-3, ours], largest: 1.0, apart: 0.0, tokens: 2 };
            let shape = AttentionShape { tokens: 64, q_heads: 2, kv_heads: 1, head_dim: 64 };
            AttentionComparison {
                shape,
                element_bytes: 2,
                turns,
                passes: [1e-3; 3],
                errors,
                peak_bytes: Some([90_000, 10_000]),
            }
            .rung()
        };
        assert_eq!((found(2e-3).verdict, found(2e-3).reason), (Verdict::Met, None));
        for ours in [2.1e-3, f64::NAN] {
            assert_eq!(found(ours).verdict, Verdict::Partly);
            assert!(found(ours).reason.is_some_and(|reason| reason.contains("error")));
        }
        let memory = &found(0.0).also[1].value;
        assert!(memory.starts_with("2.4x less: beside 0.0 MB of operands and outputs, 0.1 MB"), "{memory}");
    }
}
