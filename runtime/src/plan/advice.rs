//! What to choose for a goal, with the numbers that say so.

use std::str::FromStr;

use serde::Serialize;

use super::cache::{CachePlan, KvFormat};
use super::phases::{Bound, Phase};
use super::weights::{WeightBytes, WeightFormat, weight_bytes};
use super::{DeviceKind, MAX_BATCH, Planner};
use crate::{Error, Result};

/// Drafts that the advice on speculation reckons with.
const DRAFTS: usize = 4;
/// Of the best throughput, what a smaller batch must reach to be preferred.
const ENOUGH: f64 = 0.95;

/// What matters most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// The next token of one sequence, soon.
    #[default]
    Latency,
    /// Tokens of all sequences.
    Throughput,
    /// Few bytes.
    Memory,
}

impl FromStr for Goal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Goal> {
        match text {
            "latency" => Ok(Goal::Latency),
            "throughput" => Ok(Goal::Throughput),
            "memory" => Ok(Goal::Memory),
            _ => Err(Error::request("for", "latency, throughput or memory", format!("{text:?}"))),
        }
    }
}

/// What to choose, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Advice {
    /// For what.
    pub goal: Goal,
    /// The format of the weights; none if the model doesn't fit in any.
    pub weights: Option<WeightFormat>,
    /// Sequences at a time.
    pub batch: usize,
    /// Tokens of cache to give the engine.
    pub cache_tokens: usize,
    /// Tokens a second at most, of all sequences.
    pub tokens_per_second: f64,
    /// Why, each in a sentence.
    pub reasons: Vec<String>,
}

/// A format and a batch that fit.
struct Candidate {
    weights: WeightBytes,
    decode: Phase,
}

impl Planner<'_> {
    pub(super) fn advise(&self, cache: &CachePlan, goal: Goal) -> Result<Advice> {
        // f32 weights are for comparison: bf16 has all of a bf16 checkpoint.
        let formats = self.device.formats().iter().filter(|format| **format != WeightFormat::F32);
        let all = formats.map(|format| weight_bytes(self.config, *format)).collect::<Result<Vec<_>>>()?;
        let fitting: Vec<WeightBytes> =
            all.iter().filter(|weights| cache.batch_in(self.room(weights)) > 0).copied().collect();
        let Some(smallest) = all.last() else { return self.nothing(cache, goal, 0) };
        if fitting.is_empty() {
            return self.nothing(cache, goal, smallest.total_bytes());
        }
        let chosen = match goal {
            Goal::Latency => self.fastest(&fitting, cache, |_| 1)?,
            Goal::Throughput => self.fastest(&fitting, cache, |weights| self.sequences(cache, weights))?,
            Goal::Memory => fitting.last().map(|weights| self.candidate(*weights, cache, 1)).transpose()?,
        };
        let Some(mut chosen) = chosen else { return self.nothing(cache, goal, smallest.total_bytes()) };
        let mut reasons = Vec::new();
        if goal == Goal::Throughput {
            let most = chosen.decode.batch;
            chosen = self.enough(chosen, cache)?;
            reasons.push(self.about_batch(&chosen, most));
        }
        reasons.extend(self.about_weights(&chosen, &all, cache)?);
        match goal {
            Goal::Latency => reasons.extend(self.about_drafts(&chosen, cache)?),
            Goal::Throughput => reasons.extend(self.about_cache_share(&chosen)),
            Goal::Memory => reasons.extend(self.about_memory(cache)),
        }
        let batch = chosen.decode.batch;
        Ok(Advice {
            goal,
            weights: Some(chosen.weights.format),
            batch,
            cache_tokens: (cache.sequence_pages * cache.page_size).saturating_mul(batch),
            tokens_per_second: chosen.decode.tokens_per_second,
            reasons,
        })
    }

    fn nothing(&self, cache: &CachePlan, goal: Goal, smallest_bytes: u64) -> Result<Advice> {
        let needed =
            smallest_bytes + cache.paged_bytes + self.activation_bytes + self.device.reserved_bytes();
        let reason = format!(
            "a sequence of {} tokens takes {} even with the smallest weights, and the device has {}: by memory alone {} of them would do, and one is what the runtime uses",
            cache.context,
            gigabytes(needed),
            gigabytes(self.device.memory_bytes),
            needed.div_ceil(self.device.memory_bytes.max(1)),
        );
        let reasons = vec![reason];
        Ok(Advice { goal, weights: None, batch: 0, cache_tokens: 0, tokens_per_second: 0.0, reasons })
    }

    fn sequences(&self, cache: &CachePlan, weights: &WeightBytes) -> usize {
        usize::try_from(cache.batch_in(self.room(weights))).unwrap_or(MAX_BATCH).clamp(1, MAX_BATCH)
    }

    fn candidate(&self, weights: WeightBytes, cache: &CachePlan, batch: usize) -> Result<Candidate> {
        Ok(Candidate { weights, decode: self.roofline(weights).decode(cache, batch, 1)? })
    }

    /// Of some formats, each at a batch of its own, the one that decodes fastest.
    fn fastest(
        &self,
        formats: &[WeightBytes],
        cache: &CachePlan,
        batch: impl Fn(&WeightBytes) -> usize,
    ) -> Result<Option<Candidate>> {
        let candidates = formats.iter().map(|weights| self.candidate(*weights, cache, batch(weights)));
        let candidates = candidates.collect::<Result<Vec<_>>>()?;
        let rate = |candidate: &Candidate| candidate.decode.tokens_per_second;
        Ok(candidates.into_iter().max_by(|a, b| rate(a).total_cmp(&rate(b))))
    }

    /// The smallest power of two (or the batch itself) with nearly the same throughput.
    fn enough(&self, best: Candidate, cache: &CachePlan) -> Result<Candidate> {
        let wanted = ENOUGH * best.decode.tokens_per_second;
        let mut batch = 1;
        while batch < best.decode.batch {
            let smaller = self.candidate(best.weights, cache, batch)?;
            if smaller.decode.tokens_per_second >= wanted {
                return Ok(smaller);
            }
            batch *= 2;
        }
        Ok(best)
    }

    fn about_batch(&self, chosen: &Candidate, most: usize) -> String {
        let decode = &chosen.decode;
        let held = decode.part("projections").map_or(Bound::Memory, |part| part.bound);
        let why = match held {
            Bound::Memory => {
                "more sequences would share the reading of the weights, but none fit or little is left to gain"
            }
            Bound::Compute => {
                "the projections are compute-bound there: more sequences add as much work as tokens"
            }
        };
        format!("{} sequences at a time, of {most} that fit: {why}", decode.batch)
    }

    fn about_weights(
        &self,
        chosen: &Candidate,
        all: &[WeightBytes],
        cache: &CachePlan,
    ) -> Result<Vec<String>> {
        let Some(plain) = all.first() else { return Ok(Vec::new()) };
        let format = chosen.weights.format;
        let batch = chosen.decode.batch;
        let decode = self.candidate(*plain, cache, batch)?.decode;
        let fits = self.room(plain) >= cache.paged_bytes.saturating_mul(batch as u64);
        if plain.format == format {
            let reason =
                "bf16 weights: at this batch no smaller format has a higher ceiling, and none is more exact";
            return Ok(vec![reason.to_string()]);
        }
        let mut reasons = vec![format!(
            "{} weights take {} instead of {}, so that a step takes at least {} instead of {}{}",
            format.name(),
            gigabytes(chosen.weights.total_bytes()),
            gigabytes(plain.total_bytes()),
            milliseconds(chosen.decode.seconds),
            milliseconds(decode.seconds),
            if fits { "" } else { " (for which there is no room)" },
        )];
        let (ours, theirs) =
            (self.roofline(chosen.weights).prefill(cache)?, self.roofline(*plain).prefill(cache)?);
        reasons.push(format!(
            "a prompt of {} tokens takes at least {} ({} in bf16){}",
            cache.context,
            milliseconds(ours.seconds),
            milliseconds(theirs.seconds),
            match (self.device.kind, format) {
                (DeviceKind::Gpu, WeightFormat::Int4) =>
                    ": four-bit weights are multiplied in bf16, which no prompt gains from",
                (DeviceKind::Gpu, WeightFormat::Int8) => ": eight-bit products have twice the peak",
                _ => "",
            }
        ));
        let command =
            if format == WeightFormat::Int4 { "quantize --method gptq" } else { "quantize --method int8" };
        reasons.push(format!("make them by '{command}', and hold their loss to the original's by 'eval'"));
        Ok(reasons)
    }

    fn about_drafts(&self, chosen: &Candidate, cache: &CachePlan) -> Result<Vec<String>> {
        let verify = self.roofline(chosen.weights).decode(cache, 1, 1 + DRAFTS)?;
        let cost = verify.seconds / chosen.decode.seconds;
        let Some(part) = chosen.decode.part("projections") else { return Ok(Vec::new()) };
        let room = format!(
            "one sequence does {:.1} operations a byte of weights where the device could do {}: a step that verifies {DRAFTS} drafts takes at least {cost:.2}x the time of one without",
            part.intensity,
            operations(part.ridge)
        );
        Ok(vec![match cost < 1.0 + DRAFTS as f64 / 2.0 {
            true => format!("{room}, so speculate ('--draft' or '--ngram')"),
            false => format!("{room}, so speculation has little to gain"),
        }])
    }

    fn about_cache_share(&self, chosen: &Candidate) -> Option<String> {
        let attention = chosen.decode.part("attention")?;
        let share = attention.seconds / chosen.decode.seconds;
        Some(format!(
            "reading keys and values is {:.0}% of a step's least time; no batch makes that less, only shorter contexts, fewer key heads or a smaller cache format",
            100.0 * share
        ))
    }

    fn about_memory(&self, cache: &CachePlan) -> Vec<String> {
        let sharing = self.config.q_heads / self.config.kv_heads;
        let mut reasons = Vec::new();
        if sharing > 1 {
            reasons.push(format!(
                "{sharing} query heads share a key head, so that the cache is {sharing}x smaller than with one each"
            ));
        }
        let slack = cache.slack_bytes() as f64 / cache.paged_bytes as f64;
        reasons.push(format!(
            "pages of {} tokens leave {:.2}% of a sequence's {} unused; smaller pages waste less",
            cache.page_size,
            100.0 * slack,
            gigabytes(cache.paged_bytes)
        ));
        if matches!(cache.format, KvFormat::Bf16 | KvFormat::F32) && self.device.kind == DeviceKind::Gpu {
            let eight = KvFormat::Int8;
            let found =
                CachePlan::new(self.config, (eight, DeviceKind::Gpu), cache.page_size, cache.context, 1);
            if let Ok(found) = found
                && found.paged_bytes < cache.paged_bytes
            {
                reasons.push(format!(
                    "an eight-bit cache (--kv-dtype int8) would take {:.0}% of that",
                    100.0 * found.paged_bytes as f64 / cache.paged_bytes as f64
                ));
            }
        }
        reasons
    }
}

/// Operations a byte: a GPU's hundreds, a CPU's few.
fn operations(number: f64) -> String {
    let decimals = if number >= 100.0 { 0 } else { 1 + usize::from(number < 10.0) };
    format!("{number:.decimals$}")
}

fn gigabytes(bytes: u64) -> String {
    let bytes = bytes as f64;
    if bytes >= 1e9 { format!("{:.1} GB", bytes / 1e9) } else { format!("{:.1} MB", bytes / 1e6) }
}

fn milliseconds(seconds: f64) -> String {
    if seconds >= 1.0 { format!("{seconds:.2} s") } else { format!("{:.2} ms", 1e3 * seconds) }
}
