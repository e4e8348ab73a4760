//! How well a model predicts a text.

use std::time::Instant;

use serde::Serialize;
use tilewright_host::KvDType;

use crate::{Error, Model, Result};

/// How well a model predicts a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Tokens predicted.
    pub tokens: usize,
    /// Windows the text was cut into.
    pub windows: usize,
    /// Tokens a window, its BOS included.
    pub context: usize,
    /// Mean negative log-likelihood a token, in nats.
    pub nll: f64,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Seconds taken.
    pub seconds: f64,
}

/// Cuts `text` into windows of `context` tokens, each starting with the BOS token, and averages the negative log-likelihood of
/// all other tokens. A model without a BOS token doesn't predict the first token of a window. `progress` is told how many
/// windows are done, and of how many.
///
/// # Errors
/// A model without a tokenizer, a context below 2 or above the model's, a text without a token to predict, logits that hold a NaN.
pub fn evaluate(
    model: &Model,
    text: &str,
    context: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Evaluation> {
    evaluate_with(model, text, context, KvDType::Native, progress)
}

/// As [`evaluate`], keys and values stored as `dtype`: what a quantised cache costs.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_with(
    model: &Model,
    text: &str,
    context: usize,
    dtype: KvDType,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Evaluation> {
    let start = Instant::now();
    let limit = model.config().context;
    if !(2..=limit).contains(&context) {
        return Err(Error::request("ctx", format!("2 to {limit} (the model's context)"), context));
    }
    let ids = model.require_tokenizer()?.encode_plain(text)?;
    let windows = windows(&ids, model.config().bos_token_id, context);
    let mut sequence = model.sequence_of(context, dtype)?;
    let mut total = 0.0;
    let mut tokens = 0;
    for (index, window) in windows.iter().enumerate() {
        sequence.clear();
        sequence.feed_all(window, &mut |position, logits| {
            if let Some(&next) = window.get(position + 1) {
                total += negative_log_likelihood(logits, next as usize);
                tokens += 1;
            }
        })?;
        progress(index + 1, windows.len());
    }
    if tokens == 0 {
        return Err(Error::request("text", "at least one token to predict", "none"));
    }
    let nll = finite(total / tokens as f64)?;
    Ok(Evaluation {
        tokens,
        windows: windows.len(),
        context,
        nll,
        perplexity: nll.exp(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// A loss that says something.
fn finite(nll: f64) -> Result<f64> {
    match nll.is_finite() {
        true => Ok(nll),
        false => {
            Err(Error::request("logits of the text", "numbers", "a NaN, or a token of no likelihood at all"))
        }
    }
}

fn windows(ids: &[u32], bos: Option<u32>, context: usize) -> Vec<Vec<u32>> {
    let room = context - usize::from(bos.is_some());
    ids.chunks(room).map(|part| bos.into_iter().chain(part.iter().copied()).collect()).collect()
}

/// `log(sum(exp(logits))) - logits[token]`, in f64.
fn negative_log_likelihood(logits: &[f32], token: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    sum.ln() + f64::from(largest) - f64::from(logits[token])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihoods_sum_to_one() {
        let logits = [100.0, 101.5, -3.0, 99.0];
        let sum: f64 = (0..4).map(|token| (-negative_log_likelihood(&logits, token)).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
        assert!((negative_log_likelihood(&[0.0; 8], 3) - 8_f64.ln()).abs() < 1e-12);
        assert!(negative_log_likelihood(&[0.0, f32::NAN], 0).is_nan());
        assert_eq!(finite(2.5).expect("a loss"), 2.5);
        for nothing in [f64::NAN, f64::INFINITY] {
            let refused = finite(nothing).expect_err("no loss").to_string();
            assert!(refused.starts_with("logits of the text: expected numbers"), "{refused}");
        }
    }

    #[test]
    fn caches_of_eight_bits_cost_little() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo/target");
        let model = Model::load(dir, crate::DeviceChoice::Cpu).expect("the demo model loads");
        // Rust, of which the model knows something, in windows long enough for old keys to matter.
        let text = &include_str!("engine/schedule.rs")[..6000];
        let loss = |dtype| {
            let found = evaluate_with(&model, text, 1024, dtype, &mut |_, _| {}).expect("an evaluation");
            eprintln!("{}: {:.5} nats a token over {} tokens", dtype.name(), found.nll, found.tokens);
            found.nll
        };
        let exact = loss(KvDType::Native);
        for (dtype, most) in [(KvDType::Int8, 0.005), (KvDType::Fp8, 0.03)] {
            let found = loss(dtype);
            assert!(found != exact && (found - exact).abs() < most, "{dtype:?}: {found} against {exact}");
        }
    }

    #[test]
    fn each_window_starts_with_bos() {
        assert_eq!(windows(&[1, 2, 3, 4, 5], Some(0), 3), [vec![0, 1, 2], vec![0, 3, 4], vec![0, 5]]);
        assert_eq!(windows(&[1, 2, 3], None, 2), [vec![1, 2], vec![3]]);
    }
}
