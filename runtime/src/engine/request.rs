use serde::Serialize;

use super::EngineConfig;
use crate::generate::{check_length, check_tokens};
use crate::sampling::{Logprobs, Penalties};
use crate::{Error, FinishReason, Model, Result, SamplingParams};

/// What to continue, and how.
///
/// ```
/// use tilewright::engine::Request;
/// use tilewright::SamplingParams;
///
/// let sampling = SamplingParams { temperature: 0.8, top_p: 0.95, seed: 7, ..SamplingParams::default() };
/// let request = Request { max_tokens: 32, sampling, logprobs: Some(2), ..Request::new([1, 2, 3]) };
/// assert_eq!(request.answers, 1);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Token ids.
    pub prompt: Vec<u32>,
    /// Tokens of an answer, at most.
    pub max_tokens: usize,
    /// How each is chosen.
    pub sampling: SamplingParams,
    /// Discourages what was said before.
    pub penalties: Penalties,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Texts that end an answer; they aren't part of its text.
    pub stop: Vec<String>,
    /// Go on after an EOS token.
    pub ignore_eos: bool,
    /// Tells of each token what the model thought of it, and of so many of the likeliest.
    pub logprobs: Option<usize>,
    /// Answers to the one prompt, which is computed once.
    pub answers: usize,
    /// Of two requests that came together the one of higher priority goes first; waiting makes up for it.
    pub priority: i32,
    /// Together with seed, position and the answer's number the key of each draw.
    pub key: u64,
    /// Whether drafts may speed it up, where the engine makes any.
    pub speculate: bool,
}

impl Request {
    /// Answers at most to one request.
    pub const MAX_ANSWERS: usize = 256;

    /// Greedy continuation of token ids.
    pub fn new(prompt: impl Into<Vec<u32>>) -> Request {
        Request {
            prompt: prompt.into(),
            max_tokens: 128,
            sampling: SamplingParams::default(),
            penalties: Penalties::default(),
            logit_bias: Vec::new(),
            stop: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            answers: 1,
            priority: 0,
            key: 0,
            speculate: true,
        }
    }

    /// Tokens that its longest answer caches: all but the last one.
    pub(crate) fn longest(&self, context: usize) -> usize {
        self.prompt.len().saturating_add(self.max_tokens.saturating_sub(1)).min(context)
    }

    /// # Errors
    /// Names what can't be served.
    pub(crate) fn validate(&self, model: &Model, config: &EngineConfig) -> Result<()> {
        check_length(&self.prompt, model.config())?;
        check_tokens(&self.prompt, model.config())?;
        self.sampling.validate()?;
        self.penalties.validate()?;
        let vocab = model.config().vocab_size;
        if let Some((token, _)) = self.logit_bias.iter().find(|(token, _)| *token as usize >= vocab) {
            return Err(Error::request("logit_bias", format!("tokens below {vocab}"), token));
        }
        if let Some((_, bias)) =
            self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY)
        {
            return Err(Error::request("logit_bias", "finite numbers, or -inf to forbid a token", bias));
        }
        for (what, value, most) in
            [("max_tokens", self.max_tokens, usize::MAX), ("answers", self.answers, Request::MAX_ANSWERS)]
        {
            if !(1..=most).contains(&value) {
                let expected = if most == usize::MAX { "at least 1".into() } else { format!("1 to {most}") };
                return Err(Error::request(what, expected, value));
            }
        }
        if let Some(top) = self.logprobs.filter(|&top| top > vocab) {
            return Err(Error::request("logprobs", format!("at most {vocab}"), top));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::request("stop", "a text of at least one character", "an empty one"));
        }
        if !self.stop.is_empty() {
            model.require_tokenizer()?;
        }
        let longest = self.longest(model.config().context);
        if longest.div_ceil(config.page_size) > config.pages() {
            let room = config.pages() * config.page_size;
            return Err(Error::request(
                "prompt and max_tokens",
                format!("at most {room} cached tokens"),
                longest,
            ));
        }
        Ok(())
    }
}

/// A token of an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Output {
    /// Which answer it belongs to, below [`Request::answers`].
    pub answer: usize,
    /// The token.
    pub id: u32,
    /// The text it brings to light; see [`crate::Token::text`].
    pub text: String,
    /// What the model thought, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Logprobs>,
    /// Why the answer ends here, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish: Option<FinishReason>,
}
