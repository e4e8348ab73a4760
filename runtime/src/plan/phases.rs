//! The roofline (Williams, Waterman, Patterson 2009) of a step: what each part computes and moves, and which of the two takes longer.

use serde::{Deserialize, Serialize};

use super::cache::CachePlan;
use super::machine::DeviceProfile;
use super::weights::{WeightBytes, linear_parameters};
use crate::Result;
use crate::config::ModelConfig;

/// What holds a part up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Bytes between memory and multiprocessors.
    Memory,
    /// Operations.
    Compute,
}

impl Bound {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Bound::Memory => "memory",
            Bound::Compute => "compute",
        }
    }

    /// The longer of the two; memory among equals.
    pub fn of(memory_seconds: f64, compute_seconds: f64) -> Bound {
        if compute_seconds > memory_seconds { Bound::Compute } else { Bound::Memory }
    }
}

/// One kind of work of a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// `projections`, `attention`, `head`.
    pub name: &'static str,
    /// Operations, a multiply-add being two.
    pub flops: f64,
    /// Bytes of memory at least: weights, keys and values, each once.
    pub bytes: f64,
    /// Operations a byte.
    pub intensity: f64,
    /// Operations a byte above which the device computes longer than it reads.
    pub ridge: f64,
    /// Which is longer.
    pub bound: Bound,
    /// Seconds at least.
    pub seconds: f64,
}

impl Part {
    fn new(name: &'static str, flops: f64, bytes: f64, peak: f64, bytes_per_second: f64) -> Part {
        let (memory, compute) = (bytes / bytes_per_second, flops / peak);
        Part {
            name,
            flops,
            bytes,
            intensity: flops / bytes,
            ridge: peak / bytes_per_second,
            bound: Bound::of(memory, compute),
            seconds: memory.max(compute),
        }
    }
}

/// A prefill or a step of decoding. Its parts run one after another, so that its least time is their sum.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    /// `prefill` or `decode`.
    pub name: &'static str,
    /// Sequences.
    pub batch: usize,
    /// New tokens, of all sequences.
    pub tokens: usize,
    /// What it consists of.
    pub parts: Vec<Part>,
    /// Operations a byte of all parts.
    pub intensity: f64,
    /// Which of the two takes longer over all parts.
    pub bound: Bound,
    /// Seconds at least.
    pub seconds: f64,
    /// Tokens a second at most, of all sequences.
    pub tokens_per_second: f64,
}

impl Phase {
    fn new(name: &'static str, batch: usize, tokens: usize, parts: Vec<Part>) -> Phase {
        let sum = |of: fn(&Part) -> f64| parts.iter().map(of).sum::<f64>();
        let (flops, bytes, seconds) =
            (sum(|part| part.flops), sum(|part| part.bytes), sum(|part| part.seconds));
        let held_up =
            |bound| parts.iter().filter(|part| part.bound == bound).map(|part| part.seconds).sum::<f64>();
        Phase {
            name,
            batch,
            tokens,
            intensity: flops / bytes,
            bound: Bound::of(held_up(Bound::Memory), held_up(Bound::Compute)),
            seconds,
            tokens_per_second: tokens as f64 / seconds,
            parts,
        }
    }

    /// The part of a name.
    pub fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }
}

/// A model on a device, in one format.
pub(super) struct Roofline<'a> {
    pub config: &'a ModelConfig,
    pub device: &'a DeviceProfile,
    pub weights: WeightBytes,
}

impl Roofline<'_> {
    /// One token of each of `batch` sequences, whose caches hold `cache.context` tokens; `rows` of each are verified at once.
    pub fn decode(&self, cache: &CachePlan, batch: usize, rows: usize) -> Result<Phase> {
        let tokens = batch as f64 * rows as f64;
        let seen: f64 =
            self.seen(|window| window.map_or(cache.context, |window| window.min(cache.context)) as f64);
        let layer_bytes = cache.token_bytes as f64 / self.config.layers as f64;
        let moved = batch as f64 * seen * layer_bytes;
        let rate = self.read_rate(moved);
        let attention = self.attention(tokens * seen, moved, rate);
        let parts = vec![self.projections(tokens, rate)?, attention, self.head(tokens, rate)];
        Ok(Phase::new("decode", batch, batch, parts))
    }

    /// A prompt of `cache.context` tokens.
    pub fn prefill(&self, cache: &CachePlan) -> Result<Phase> {
        let tokens = cache.context as f64;
        // The query at position i sees i + 1 keys, or its window.
        let pairs = self.seen(|window| {
            let window = window.map_or(tokens, |window| (window as f64).min(tokens));
            window * (window + 1.0) / 2.0 + (tokens - window) * window
        });
        let heads = 2 * (self.config.q_heads + self.config.kv_heads) * self.config.head_dim;
        let moved = tokens * (self.config.layers * heads * self.device.activation_bytes()) as f64;
        let rate = self.read_rate(moved);
        let parts =
            vec![self.projections(tokens, rate)?, self.attention(pairs, moved, rate), self.head(1.0, rate)];
        Ok(Phase::new("prefill", 1, cache.context, parts))
    }

    /// The sum over layers of what each sees.
    fn seen(&self, of: impl Fn(Option<usize>) -> f64) -> f64 {
        (0..self.config.layers).map(|layer| of(self.config.windows.get(layer).copied().flatten())).sum()
    }

    /// Bytes a second of a step that reads all weights and moves so many bytes in attention.
    fn read_rate(&self, attention_bytes: f64) -> f64 {
        self.device.read_rate(self.linear_bytes() + self.weights.head_bytes as f64 + attention_bytes)
    }

    fn linear_bytes(&self) -> f64 {
        (self.weights.linear_bytes + self.weights.vector_bytes) as f64
    }

    fn projections(&self, tokens: f64, rate: f64) -> Result<Part> {
        let flops = 2.0 * tokens * linear_parameters(self.config)? as f64;
        let peak = self.device.peak(self.weights.format);
        Ok(Part::new("projections", flops, self.linear_bytes(), peak, rate))
    }

    /// Two products with each key head's elements: scores, and the sum of values.
    fn attention(&self, pairs: f64, bytes: f64, rate: f64) -> Part {
        let flops = 4.0 * pairs * (self.config.q_heads * self.config.head_dim) as f64;
        Part::new("attention", flops, bytes, self.device.bf16_per_second, rate)
    }

    fn head(&self, tokens: f64, rate: f64) -> Part {
        let flops = 2.0 * tokens * self.config.vocab_size as f64 * self.config.hidden_size as f64;
        let bytes = self.weights.head_bytes as f64;
        Part::new("head", flops, bytes, self.device.bf16_per_second, rate)
    }
}
