//! How the next token is chosen.
//!
//! | room | what is in it |
//! |---|---|
//! | [`SamplingParams`], [`Penalties`] | what a request may ask for |
//! | [`Distribution`] | the probabilities that temperature and filters leave |
//! | [`Logprobs`] | what the model itself thought of a token |
//! | [`accept`] | which drafts of a cheaper model may stand, so that the target's distribution is kept |

pub mod accept;
mod distribution;
mod logprobs;
mod penalties;

pub use distribution::Distribution;
pub use logprobs::Logprobs;
pub(crate) use penalties::Adjustment;
pub use penalties::Penalties;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tilewright_host::SampleRow;

use crate::{Error, Result};

/// How the next token is chosen. The default is greedy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f32,
    /// Keeps the most likely so many; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest whose probabilities reach this, at least the likeliest: 0 keeps it alone, 1 keeps all.
    pub top_p: f32,
    /// Keeps those at least this fraction as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// The draws follow from it, the request's number and the position.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

impl SamplingParams {
    /// # Errors
    /// Names the parameter that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::request("temperature", "a finite number of at least 0", self.temperature));
        }
        for (what, value) in [("top_p", self.top_p), ("min_p", self.min_p)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::request(what, "a number from 0 to 1", value));
            }
        }
        Ok(())
    }

    /// Whether the largest logit wins.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// What the device needs to choose with `uniform`.
    pub(crate) fn row(&self, uniform: f32) -> SampleRow {
        SampleRow {
            temperature: self.temperature,
            // A device is told a number above 0, and what reaches the least of them is the likeliest token.
            top_p: self.top_p.max(f32::MIN_POSITIVE),
            min_p: self.min_p,
            uniform,
            top_k: self.top_k,
            reserved: 0,
        }
    }
}

/// What a draw decides. Draws for different ends at one position are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Draw {
    /// The token itself.
    Token = 0,
    /// A draft of it.
    Draft = 1,
    /// Whether a draft stands.
    Accept = 2,
    /// The token in place of a draft that doesn't.
    Instead = 3,
}

/// What a request's draws follow from, beside the position: batch mates, chunks, preemption and restarts change none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DrawKey {
    pub seed: u64,
    pub request: u64,
    /// Which of the request's answers.
    pub choice: u32,
}

impl DrawKey {
    /// A number in [0, 1) that depends on nothing but its keys.
    pub fn uniform(self, position: usize, draw: Draw) -> f32 {
        let mut key = [0_u8; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&self.request.to_le_bytes());
        key[16..24].copy_from_slice(&(position as u64).to_le_bytes());
        key[24..28].copy_from_slice(&self.choice.to_le_bytes());
        key[28] = draw as u8;
        // 24 bits: what an f32 below 1 holds exactly.
        (ChaCha8Rng::from_seed(key).next_u32() >> 8) as f32 / (1 << 24) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_each_key_and_fill_the_interval() {
        let key = DrawKey { seed: 1, request: 2, choice: 4 };
        let draw = key.uniform(3, Draw::Token);
        assert_eq!(draw, key.uniform(3, Draw::Token));
        for other in [DrawKey { seed: 0, ..key }, DrawKey { request: 0, ..key }, DrawKey { choice: 0, ..key }]
        {
            assert_ne!(draw, other.uniform(3, Draw::Token));
        }
        for other in [Draw::Draft, Draw::Accept, Draw::Instead] {
            assert_ne!(draw, key.uniform(3, other));
        }
        assert_ne!(draw, key.uniform(0, Draw::Token));
        let key = DrawKey { seed: 7, ..DrawKey::default() };
        let draws: Vec<f32> = (0..4096).map(|position| key.uniform(position, Draw::Token)).collect();
        assert!(draws.iter().all(|draw| (0.0..1.0).contains(draw)));
        for tenth in 0..10 {
            let inside = draws.iter().filter(|&&draw| (draw * 10.0) as u32 == tenth).count();
            // 409.6 expected with a standard deviation of 19.2: five of them.
            assert!((314..=506).contains(&inside), "{inside} in tenth {tenth}");
        }
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let good = SamplingParams::default();
        assert!(good.validate().is_ok());
        assert!(SamplingParams { top_p: 0.0, ..good }.validate().is_ok());
        let bad = [
            ("temperature", SamplingParams { temperature: f32::NAN, ..good }),
            ("temperature", SamplingParams { temperature: -1.0, ..good }),
            ("temperature", SamplingParams { temperature: f32::INFINITY, ..good }),
            ("top_p", SamplingParams { top_p: -0.1, ..good }),
            ("top_p", SamplingParams { top_p: 2.0, ..good }),
            ("top_p", SamplingParams { top_p: f32::NAN, ..good }),
            ("min_p", SamplingParams { min_p: -0.1, ..good }),
            ("min_p", SamplingParams { min_p: f32::NAN, ..good }),
        ];
        for (name, params) in bad {
            let error = params.validate().expect_err(name).to_string();
            assert!(error.starts_with(&format!("{name}: expected ")), "{error}");
        }
    }
}
