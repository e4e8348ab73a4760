use std::collections::HashMap;

use crate::{Error, Result};

/// Discourages what was said before. The default changes nothing.
///
/// # Source
/// Repetition: Keskar et al., "CTRL", 2019, section 4.1, with negative logits multiplied instead of divided. Presence and frequency:
/// as in the OpenAI API, subtracted from the logits of tokens of the answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties {
    /// Divides positive logits of tokens of prompt and answer and multiplies negative ones; 1 for none.
    pub repetition: f32,
    /// Is subtracted once for a token that the answer has.
    pub presence: f32,
    /// Is subtracted for each time that the answer has it.
    pub frequency: f32,
}

impl Default for Penalties {
    fn default() -> Self {
        Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0 }
    }
}

impl Penalties {
    /// # Errors
    /// Names the parameter that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !(self.repetition.is_finite() && self.repetition > 0.0) {
            return Err(Error::request("repetition_penalty", "a finite number above 0", self.repetition));
        }
        for (what, value) in [("presence_penalty", self.presence), ("frequency_penalty", self.frequency)] {
            if !value.is_finite() {
                return Err(Error::request(what, "a finite number", value));
            }
        }
        Ok(())
    }
}

/// How often a token was said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Said {
    in_prompt: bool,
    in_answer: u32,
}

/// What was said before, as penalties count it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct History {
    said: HashMap<u32, Said>,
}

impl History {
    /// Of a prompt.
    pub fn new(prompt: &[u32]) -> History {
        let prompt = prompt.iter().map(|&token| (token, Said { in_prompt: true, in_answer: 0 }));
        History { said: prompt.collect() }
    }

    /// The answer goes on.
    pub fn push(&mut self, token: u32) {
        self.said.entry(token).or_default().in_answer += 1;
    }

    /// It didn't, after all: undoes a [`History::push`].
    pub fn pop(&mut self, token: u32) {
        if let Some(said) = self.said.get_mut(&token) {
            said.in_answer = said.in_answer.saturating_sub(1);
        }
    }
}

/// What changes a request's logits before they become probabilities.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Adjustment {
    pub penalties: Penalties,
    /// Added to the logits of tokens.
    pub bias: Vec<(u32, f32)>,
}

impl Adjustment {
    /// Whether it changes nothing.
    pub fn is_none(&self) -> bool {
        self.penalties == Penalties::default() && self.bias.is_empty()
    }

    /// Penalties first, then the bias.
    pub fn apply(&self, logits: &mut [f32], history: &History) {
        let Penalties { repetition, presence, frequency } = self.penalties;
        if self.penalties != Penalties::default() {
            // Each token for itself: the order of the map has no say.
            for (&token, said) in &history.said {
                let Some(x) = logits.get_mut(token as usize) else { continue };
                if said.in_prompt || said.in_answer > 0 {
                    *x = if *x > 0.0 { *x / repetition } else { *x * repetition };
                }
                if said.in_answer > 0 {
                    *x -= presence + frequency * said.in_answer as f32;
                }
            }
        }
        for &(token, bias) in &self.bias {
            if let Some(x) = logits.get_mut(token as usize) {
                *x += bias;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_take_what_they_say() {
        let mut history = History::new(&[0, 1]);
        for token in [2, 2, 3, 0] {
            history.push(token);
        }
        history.push(4);
        history.pop(4);
        let penalties = Penalties { repetition: 2.0, presence: 0.25, frequency: 0.5 };
        let adjustment = Adjustment { penalties, bias: vec![(5, 1.5), (3, f32::NEG_INFINITY)] };
        let mut logits = [4.0, -4.0, 1.0, 1.0, 1.0, 1.0];
        adjustment.apply(&mut logits, &history);
        assert_eq!(logits, [2.0 - 0.75, -8.0, 0.5 - 1.25, f32::NEG_INFINITY, 1.0, 2.5]);
        assert!(!adjustment.is_none() && Adjustment::default().is_none());
    }

    #[test]
    fn penalties_out_of_range_are_named() {
        let good = Penalties::default();
        for (name, bad) in [
            ("repetition_penalty", Penalties { repetition: 0.0, ..good }),
            ("repetition_penalty", Penalties { repetition: f32::NAN, ..good }),
            ("presence_penalty", Penalties { presence: f32::INFINITY, ..good }),
            ("frequency_penalty", Penalties { frequency: f32::NAN, ..good }),
        ] {
            let error = bad.validate().expect_err(name).to_string();
            assert!(error.starts_with(&format!("{name}: expected ")), "{error}");
        }
        assert!(good.validate().is_ok());
    }
}
