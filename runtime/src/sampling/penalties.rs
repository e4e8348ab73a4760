use tilewright_host::LogitChange;

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

    /// What becomes of a token's logit.
    fn change(&self, token: u32, said: &Said) -> LogitChange {
        let mut change = LogitChange { bias: said.bias, ..LogitChange::none(token) };
        if said.in_prompt || said.in_answer > 0 {
            change.repetition = self.repetition;
        }
        if said.in_answer > 0 {
            change.less = self.presence + self.frequency * said.in_answer as f32;
        }
        change
    }
}

/// How often a token was said, and what the request adds to its logit.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Said {
    in_prompt: bool,
    in_answer: u32,
    bias: f32,
}

/// What is said of a token that nobody said and the request doesn't name.
const UNSAID: Said = Said { in_prompt: false, in_answer: 0, bias: LogitChange::none(0).bias };

/// What changes an answer's logits before they become probabilities: penalties first, then the bias. It is kept as a device takes it, so that
/// a step copies it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Adjustment {
    penalties: Penalties,
    /// Of the tokens whose logits change, in ascending order.
    changes: Vec<LogitChange>,
    /// Likewise: what the changes follow from.
    said: Vec<Said>,
}

impl Adjustment {
    /// Of an answer that hasn't begun. Biases of one token add up.
    pub fn new(penalties: Penalties, bias: &[(u32, f32)], prompt: &[u32]) -> Adjustment {
        let prompt = if penalties.repetition == 1.0 { &[] } else { prompt };
        let of_prompt = prompt.iter().map(|&token| (token, Said { in_prompt: true, ..UNSAID }));
        let of_bias = bias.iter().map(|&(token, bias)| (token, Said { bias, ..UNSAID }));
        let mut all: Vec<(u32, Said)> = of_prompt.chain(of_bias).collect();
        // In the order of the request among equals.
        all.sort_by_key(|&(token, _)| token);
        all.dedup_by(|(token, said), (kept_token, kept)| {
            let is_same = token == kept_token;
            if is_same {
                kept.in_prompt |= said.in_prompt;
                kept.bias += said.bias;
            }
            is_same
        });
        let changes = all.iter().map(|(token, said)| penalties.change(*token, said)).collect();
        Adjustment { penalties, changes, said: all.into_iter().map(|(_, said)| said).collect() }
    }

    /// Whether it changes nothing, whatever is said.
    pub fn is_none(&self) -> bool {
        !self.counts() && self.changes.is_empty()
    }

    /// Of each token whose logit changes, how, in ascending order.
    pub fn changes(&self) -> &[LogitChange] {
        &self.changes
    }

    /// The answer goes on.
    pub fn push(&mut self, token: u32) {
        if !self.counts() {
            return;
        }
        let at = match self.place(token) {
            Ok(at) => at,
            Err(at) => {
                self.said.insert(at, UNSAID);
                self.changes.insert(at, LogitChange::none(token));
                at
            }
        };
        self.said[at].in_answer += 1;
        self.changes[at] = self.penalties.change(token, &self.said[at]);
    }

    /// It didn't, after all: undoes an [`Adjustment::push`].
    pub fn pop(&mut self, token: u32) {
        let Ok(at) = self.place(token) else { return };
        if !self.counts() {
            return;
        }
        let said = &mut self.said[at];
        said.in_answer = said.in_answer.saturating_sub(1);
        if said.in_answer == 0 && !said.in_prompt && said.bias.to_bits() == UNSAID.bias.to_bits() {
            self.said.remove(at);
            self.changes.remove(at);
        } else {
            self.changes[at] = self.penalties.change(token, &self.said[at]);
        }
    }

    /// Changes a row of logits on the host.
    pub fn apply(&self, logits: &mut [f32]) {
        for change in &self.changes {
            if let Some(logit) = logits.get_mut(change.token as usize) {
                *logit = change.of(*logit);
            }
        }
    }

    /// Whether it matters what is said.
    fn counts(&self) -> bool {
        self.penalties != Penalties::default()
    }

    /// Where a token is among the changes, or would be.
    fn place(&self, token: u32) -> std::result::Result<usize, usize> {
        self.changes.binary_search_by_key(&token, |change| change.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_take_what_they_say() {
        let penalties = Penalties { repetition: 2.0, presence: 0.25, frequency: 0.5 };
        let bias = [(5, 1.0), (3, f32::NEG_INFINITY), (5, 0.5)];
        let mut adjustment = Adjustment::new(penalties, &bias, &[1, 0, 1]);
        for token in [2, 2, 3, 0] {
            adjustment.push(token);
        }
        let mut logits = [4.0, -4.0, 1.0, 1.0, 1.0, 1.0];
        adjustment.apply(&mut logits);
        assert_eq!(logits, [2.0 - 0.75, -8.0, 0.5 - 1.25, f32::NEG_INFINITY, 1.0, 2.5]);
        let tokens: Vec<u32> = adjustment.changes().iter().map(|change| change.token).collect();
        assert_eq!(tokens, [0, 1, 2, 3, 5]);
    }

    #[test]
    fn what_is_taken_back_leaves_nothing() {
        let penalties = Penalties { repetition: 2.0, presence: 0.25, frequency: 0.5 };
        let before = Adjustment::new(penalties, &[(5, 1.0), (6, 0.0)], &[1]);
        let mut adjustment = before.clone();
        for token in [1, 4, 5, 6, 4] {
            adjustment.push(token);
        }
        assert_ne!(format!("{adjustment:?}"), format!("{before:?}"));
        for token in [4, 1, 6, 4, 5] {
            adjustment.pop(token);
        }
        assert_eq!(format!("{adjustment:?}"), format!("{before:?}"));
    }

    #[test]
    fn what_changes_nothing_names_no_token() {
        assert!(Adjustment::new(Penalties::default(), &[], &[1, 2]).is_none());
        let mut biased = Adjustment::new(Penalties::default(), &[(5, 1.0)], &[1, 2]);
        biased.push(3);
        assert_eq!((biased.is_none(), biased.changes().len()), (false, 1));
        // Only repetition looks at prompts.
        let mut present = Adjustment::new(Penalties { presence: 1.0, ..Penalties::default() }, &[], &[1, 2]);
        assert!(!present.is_none() && present.changes().is_empty());
        present.push(3);
        assert_eq!(present.changes().len(), 1);
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
