//! A checkpoint held against what another implementation answered.
//!
//! `expected.safetensors` beside a checkpoint holds `input_ids`, the `logits` of each position and the `greedy` continuation; of an
//! encoder `input_ids` (and `attention_mask`, `token_type_ids`) and `last_hidden`, or `pixel_values` and `class_logits`.
//! A device that computes in f32 must come within [`F32_BOUND`] of the largest logit, and continue in the same way. A device
//! that rounds to bf16 may be [`BF16_FACTOR`] times as far off as the plain bf16 computation of [`DeviceChoice::CpuBf16`],
//! plus [`F32_BOUND`] of the largest logit, and may part from the expected continuation only from the first step on whose two
//! best logits lie closer together than that.

mod compare;
mod encoders;
mod expected;

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tilewright_host::Device;

use crate::config::{EncoderConfig, FrequencyPrecision, ModelConfig};
use crate::encoder;
use crate::{DeviceChoice, Error, Model, Result, SamplingParams};
use compare::{largest_magnitude, top_two_gap, worst};
use expected::Expected;

/// Of the largest expected logit: the bound of a device that computes in f32, and the floor of one that doesn't.
pub const F32_BOUND: f64 = 1e-3;
/// How many times the error of a plain bf16 computation a bf16 device may have.
pub const BF16_FACTOR: f64 = 2.0;

/// What a checkpoint's verification found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verification {
    /// The device in words.
    pub device: String,
    /// As [`Model::no_gpu`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_gpu: Option<String>,
    /// How the bound comes about.
    pub bound: String,
    /// The rotary frequencies that the expected values were computed with.
    pub rope_frequencies: FrequencyPrecision,
    /// Each expected tensor.
    pub tensors: Vec<TensorVerdict>,
    /// Each expected continuation.
    pub greedy: Vec<GreedyVerdict>,
    /// Whether all is within bounds.
    pub passed: bool,
}

/// One tensor's worst element.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorVerdict {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The largest difference; infinite where a value isn't a number.
    pub worst_error: f64,
    /// Where that is.
    pub coordinate: Vec<usize>,
    /// What was expected there.
    pub expected: f32,
    /// What was found there.
    pub found: f32,
    /// The largest magnitude expected anywhere.
    pub largest: f64,
    /// The largest difference allowed.
    pub bound: f64,
    /// Whether the worst error is within the bound.
    pub passed: bool,
}

/// One continuation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GreedyVerdict {
    /// The row of the batch.
    pub row: usize,
    /// Tokens expected.
    pub steps: usize,
    /// Steps before the first whose two best logits lie closer together than the bound; all of them for f32.
    pub decided_steps: usize,
    /// Steps that are equal, from the first.
    pub equal_steps: usize,
    /// The gap between the two best logits at step `decided_steps`, where there is one.
    pub gap: Option<f64>,
    /// Whether all decided steps are equal.
    pub passed: bool,
}

/// Runs the checkpoint in `dir` against `expected`: a safetensors file as described above, or a JSON file of `cases` with
/// `input_ids` and `greedy_ids`, for which the logits of the f32 computation on the CPU stand in. Without one it's
/// `expected.safetensors` in `dir`.
///
/// # Errors
/// As [`Model::load`]; expected values that don't fit the model. A disagreement isn't an error but a verdict.
pub fn verify(dir: impl AsRef<Path>, expected: Option<&Path>, device: DeviceChoice) -> Result<Verification> {
    let dir = dir.as_ref();
    std::fs::read_dir(dir).map_err(Error::io(dir))?;
    if EncoderConfig::describes(dir)? {
        return verify_encoder(dir, expected, &|| encoder::load(dir, device));
    }
    verify_model(dir, expected, &|precision| load(dir, device, precision))
}

/// As [`verify`], on a device of the caller's that rounds activations to bf16.
///
/// # Errors
/// As [`verify`].
pub fn verify_on<D: Device>(
    dir: impl AsRef<Path>,
    expected: Option<&Path>,
    device: Arc<D>,
) -> Result<Verification> {
    let dir = dir.as_ref();
    std::fs::read_dir(dir).map_err(Error::io(dir))?;
    if EncoderConfig::describes(dir)? {
        return verify_encoder(dir, expected, &|| encoder::load_on(dir, Arc::clone(&device)));
    }
    let load = |precision| Model::load_on_with_frequencies(dir, Arc::clone(&device), precision);
    verify_model(dir, expected, &load)
}

fn load(dir: &Path, device: DeviceChoice, precision: FrequencyPrecision) -> Result<Model> {
    Model::load_with_frequencies(dir, device, precision, &mut |_, _| {})
}

fn verify_encoder(
    dir: &Path,
    expected: Option<&Path>,
    on_device: &dyn Fn() -> Result<encoder::LoadedEncoder>,
) -> Result<Verification> {
    let beside = dir.join("expected.safetensors");
    encoders::verify(dir, expected.unwrap_or(&beside), on_device)
}

/// Verifies what `on_device` loads, given the precision of the rotary frequencies.
fn verify_model(
    dir: &Path,
    expected: Option<&Path>,
    on_device: &dyn Fn(FrequencyPrecision) -> Result<Model>,
) -> Result<Verification> {
    let beside = dir.join("expected.safetensors");
    let mut expected = Expected::load(expected.unwrap_or(&beside), &ModelConfig::load(dir)?)?;
    // Before anything is compared: a device that isn't there is the first thing to say.
    let first_try = on_device(FrequencyPrecision::F32)?;
    let (reference, reference_logits) = reference(dir, &expected)?;
    if expected.logits.is_empty() {
        expected.logits.clone_from(&reference_logits);
    }
    let floor = F32_BOUND * largest_magnitude(&expected.logits);
    let precision = reference.config().rope.precision;
    let model = match precision {
        FrequencyPrecision::F32 => first_try,
        FrequencyPrecision::Bf16 => on_device(precision)?,
    };
    let (found, bound, words) = if model.computes_in_f32() {
        (reference_logits, floor, format!("{F32_BOUND} of the largest logit"))
    } else {
        let plain = load(dir, DeviceChoice::CpuBf16, precision)?;
        let (plain_error, _) = worst(&expected.logits, &logits(&plain, &expected.input_ids)?);
        let words = format!(
            "{BF16_FACTOR} times a plain bf16 computation's error of {plain_error:.3e}, plus {F32_BOUND} of the largest logit"
        );
        (logits(&model, &expected.input_ids)?, BF16_FACTOR * plain_error + floor, words)
    };
    let tensor = tensor_verdict(expected.logits_name, &expected.shape, &expected.logits, &found, bound);
    let undecided_below = (!model.computes_in_f32()).then_some(bound);
    let greedy = greedy_verdicts(&model, &reference, &expected, undecided_below)?;
    Ok(Verification {
        device: model.device(),
        no_gpu: model.no_gpu().map(str::to_owned),
        bound: words,
        rope_frequencies: precision,
        passed: tensor.passed && greedy.iter().all(|verdict| verdict.passed),
        tensors: vec![tensor],
        greedy,
    })
}

/// The f32 computation on the CPU and its logits: with exact rotary frequencies or, where only that meets the expected values,
/// with those that `model.to(torch.bfloat16)` leaves.
fn reference(dir: &Path, expected: &Expected) -> Result<(Model, Vec<f32>)> {
    let exact = load(dir, DeviceChoice::Cpu, FrequencyPrecision::F32)?;
    let exact_logits = logits(&exact, &expected.input_ids)?;
    if expected.logits.is_empty() {
        return Ok((exact, exact_logits));
    }
    let floor = F32_BOUND * largest_magnitude(&expected.logits);
    let (exact_error, _) = worst(&expected.logits, &exact_logits);
    let rounded = load(dir, DeviceChoice::Cpu, FrequencyPrecision::Bf16)?;
    let rounded_logits = logits(&rounded, &expected.input_ids)?;
    let (rounded_error, _) = worst(&expected.logits, &rounded_logits);
    // A tenth: far more than the order of sums can do, so that the choice isn't left to noise.
    if rounded_error <= floor && rounded_error < exact_error / 10.0 {
        return Ok((rounded, rounded_logits));
    }
    Ok((exact, exact_logits))
}

fn tensor_verdict(name: &str, shape: &[usize], expected: &[f32], found: &[f32], bound: f64) -> TensorVerdict {
    let (worst_error, at) = worst(expected, found);
    TensorVerdict {
        name: name.to_string(),
        shape: shape.to_vec(),
        worst_error,
        coordinate: coordinate(at, shape),
        expected: expected.get(at).copied().unwrap_or(f32::NAN),
        found: found.get(at).copied().unwrap_or(f32::NAN),
        largest: largest_magnitude(expected),
        bound,
        passed: worst_error <= bound,
    }
}

/// The logits of every position of every row.
fn logits(model: &Model, rows: &[Vec<u32>]) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for row in rows {
        model.sequence(row.len())?.feed_all(row, &mut |_, logits| all.extend_from_slice(logits))?;
    }
    Ok(all)
}

/// Continues each row with the likeliest tokens. With a `bound`, a step that the f32 computation decides by less than it
/// frees what follows.
fn greedy_verdicts(
    model: &Model,
    reference: &Model,
    expected: &Expected,
    bound: Option<f64>,
) -> Result<Vec<GreedyVerdict>> {
    let mut verdicts = Vec::new();
    for (row, (input, greedy)) in expected.input_ids.iter().zip(&expected.greedy).enumerate() {
        let steps = greedy.len();
        let (decided_steps, gap) = match bound {
            Some(bound) => first_undecided(reference, input, greedy, bound)?,
            None => (steps, None),
        };
        let found = continue_greedily(model, input, steps)?;
        let equal_steps = found.iter().zip(greedy).take_while(|(a, b)| a == b).count();
        let passed = equal_steps >= decided_steps;
        verdicts.push(GreedyVerdict { row, steps, decided_steps, equal_steps, gap, passed });
    }
    Ok(verdicts)
}

fn continue_greedily(model: &Model, input: &[u32], steps: usize) -> Result<Vec<u32>> {
    let mut sequence = model.sequence(input.len() + steps)?;
    let mut output = Vec::with_capacity(steps);
    let greedy = SamplingParams::default();
    sequence.feed(input)?;
    while output.len() < steps {
        let id = sequence.choose(&greedy, 0)?;
        output.push(id);
        if output.len() < steps {
            sequence.feed(&[id])?;
        }
    }
    Ok(output)
}

/// The first step of the expected continuation whose two best logits lie closer together than `bound`, and their gap.
fn first_undecided(
    reference: &Model,
    input: &[u32],
    greedy: &[u32],
    bound: f64,
) -> Result<(usize, Option<f64>)> {
    let text = [input, &greedy[..greedy.len() - 1]].concat();
    let mut first = None;
    reference.sequence(text.len())?.feed_all(&text, &mut |position, logits| {
        let gap = top_two_gap(logits);
        if position + 1 >= input.len() && first.is_none() && (gap < bound || gap.is_nan()) {
            first = Some((position + 1 - input.len(), Some(gap)));
        }
    })?;
    Ok(first.unwrap_or((greedy.len(), None)))
}

/// The coordinate of a row-major index.
fn coordinate(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut coordinate = vec![0; shape.len()];
    for (axis, extent) in shape.iter().enumerate().rev() {
        coordinate[axis] = index % extent;
        index /= extent;
    }
    coordinate
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_row_major() {
        assert_eq!(coordinate(0, &[2, 3, 4]), [0, 0, 0]);
        assert_eq!(coordinate(23, &[2, 3, 4]), [1, 2, 3]);
        assert_eq!(coordinate(13, &[2, 3, 4]), [1, 0, 1]);
    }
}
