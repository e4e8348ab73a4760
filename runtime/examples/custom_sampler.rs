//! A sampler of your own: feed tokens by hand, read the logits, choose.
//!
//! This one is typical sampling: it keeps the tokens whose surprise lies nearest to the surprise expected, until they make up most of
//! the probability. Source: Meister et al., "Locally Typical Sampling", 2022, section 3.
//!
//! ```sh
//! cargo run --release -p tilewright --example custom_sampler
//! ```

use tilewright::{DeviceChoice, Model, Result};

/// The probability that the kept tokens reach.
const MASS: f64 = 0.6;

fn main() -> Result<()> {
    let model =
        Model::load(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo/target"), DeviceChoice::Auto)?;
    let tokenizer = model.require_tokenizer()?;
    let mut ids = tokenizer.encode("fn main() {")?;
    let mut sequence = model.sequence(ids.len() + 32)?;
    let (mut unread, mut random) = (0, 0x2545_f491_4f6c_dd1d_u64);
    for _ in 0..32 {
        let mut last = Vec::new();
        // Feeding what wasn't fed yet: the prompt at first, then a token at a time. What was fed is cached.
        sequence.feed_all(&ids[unread..], &mut |_, logits| last = logits.to_vec())?;
        unread = ids.len();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        ids.push(typical(&last, (random >> 11) as f64 / (1u64 << 53) as f64));
    }
    println!("{}", tokenizer.decode(&ids));
    Ok(())
}

/// A token drawn by `uniform` of `[0, 1)`.
fn typical(logits: &[f32], uniform: f64) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|logit| f64::from(logit - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let probabilities: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
    let surprise = |p: f64| if p > 0.0 { -p.ln() } else { f64::INFINITY };
    let expected: f64 = probabilities.iter().filter(|&&p| p > 0.0).map(|&p| p * surprise(p)).sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let distance = |&token: &usize| (surprise(probabilities[token]) - expected).abs();
    order.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
    let mut kept = 0;
    let mut mass = 0.0;
    while kept < order.len() && mass < MASS {
        mass += probabilities[order[kept]];
        kept += 1;
    }
    let mut left = uniform * mass;
    for &token in &order[..kept] {
        left -= probabilities[token];
        if left < 0.0 {
            return token as u32;
        }
    }
    order[0] as u32
}
