//! A request, and the stream of its tokens.

mod stop;

use std::time::Instant;

use serde::Serialize;
use tilewright_host::KvDType;

use crate::config::ModelConfig;
use crate::model::Sequence;
use crate::sampling::SamplingParams;
use crate::tokenizer::{TextStream, Tokenizer};
use crate::{Error, Model, Result};
pub(crate) use stop::StopMatcher;

/// What to continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompt<'a> {
    /// Text, which gets a BOS token where the checkpoint asks for one: an empty text is that token alone, and nothing without it.
    Text(&'a str),
    /// Token ids, taken as they are.
    Ids(&'a [u32]),
}

impl<'a> From<&'a str> for Prompt<'a> {
    fn from(text: &'a str) -> Self {
        Prompt::Text(text)
    }
}

impl<'a> From<&'a [u32]> for Prompt<'a> {
    fn from(ids: &'a [u32]) -> Self {
        Prompt::Ids(ids)
    }
}

/// How a prompt is continued.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateParams {
    /// Tokens at most.
    pub max_tokens: usize,
    /// How each is chosen.
    pub sampling: SamplingParams,
    /// Texts that end the generation; they aren't part of its text.
    pub stop: Vec<String>,
    /// Go on after an EOS token.
    pub ignore_eos: bool,
    /// Compute the whole text anew for each token instead of caching keys and values: for measuring what the cache saves.
    pub recompute: bool,
    /// What keys and values are cached as.
    pub kv_dtype: KvDType,
    /// Together with seed and position the key of each draw.
    pub request: u64,
}

impl Default for GenerateParams {
    fn default() -> Self {
        GenerateParams {
            max_tokens: 128,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            ignore_eos: false,
            recompute: false,
            kv_dtype: KvDType::Native,
            request: 0,
        }
    }
}

impl GenerateParams {
    /// # Errors
    /// Names the parameter that is out of range.
    pub fn validate(&self) -> Result<()> {
        self.sampling.validate()?;
        if self.max_tokens == 0 {
            return Err(Error::request("max_tokens", "at least 1", 0));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::request("stop", "a text of at least one character", "an empty one"));
        }
        Ok(())
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FinishReason {
    /// An EOS token or a stop string.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The model's context is full.
    Context,
}

/// One step of a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub id: u32,
    /// The text it brings to light: whole characters, nothing that may yet turn out to be part of a stop string. Empty
    /// without a tokenizer.
    pub text: String,
}

/// How long a generation took.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Seconds until the first token was chosen.
    pub prompt_seconds: f64,
    /// Tokens after the first.
    pub decode_tokens: usize,
    /// Seconds they took.
    pub decode_seconds: f64,
}

impl Timings {
    /// Prompt tokens a second.
    pub fn prompt_rate(&self) -> f64 {
        rate(self.prompt_tokens, self.prompt_seconds)
    }

    /// Tokens a second after the first.
    pub fn decode_rate(&self) -> f64 {
        rate(self.decode_tokens, self.decode_seconds)
    }
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    if tokens == 0 || seconds <= 0.0 { 0.0 } else { tokens as f64 / seconds }
}

/// The stream of tokens that follow a prompt.
pub struct Generation<'m> {
    sequence: Box<dyn Sequence + 'm>,
    text: Option<(&'m Tokenizer, TextStream)>,
    stop: StopMatcher,
    eos: &'m [u32],
    params: GenerateParams,
    /// The prompt's, then those generated.
    ids: Vec<u32>,
    prompt_len: usize,
    finish: Option<FinishReason>,
    failed: bool,
    timings: Timings,
}

impl<'m> Generation<'m> {
    pub(crate) fn new(model: &'m Model, prompt: Prompt<'_>, params: &GenerateParams) -> Result<Self> {
        params.validate()?;
        if !params.stop.is_empty() {
            model.require_tokenizer()?;
        }
        let ids = model.encode(prompt)?;
        check_length(&ids, model.config())?;
        let capacity = ids.len().saturating_add(params.max_tokens).min(model.config().context);
        Ok(Generation {
            sequence: model.sequence_of(capacity, params.kv_dtype)?,
            text: model.tokenizer().map(|tokenizer| (tokenizer, tokenizer.stream(&ids))),
            stop: StopMatcher::new(&params.stop),
            eos: &model.config().eos_token_ids,
            params: params.clone(),
            prompt_len: ids.len(),
            timings: Timings { prompt_tokens: ids.len(), ..Timings::default() },
            ids,
            finish: None,
            failed: false,
        })
    }

    /// The prompt's token ids.
    pub fn prompt_ids(&self) -> &[u32] {
        &self.ids[..self.prompt_len]
    }

    /// The tokens generated so far, an EOS token included.
    pub fn output_ids(&self) -> &[u32] {
        &self.ids[self.prompt_len..]
    }

    /// Why it ended, once it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// How long it has taken.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    fn step(&mut self) -> Result<Token> {
        let start = Instant::now();
        let first = self.ids.len() == self.prompt_len;
        if first || self.params.recompute {
            self.sequence.clear();
            self.sequence.feed(&self.ids)?;
        } else {
            self.sequence.feed(&self.ids[self.ids.len() - 1..])?;
        }
        let id = self.sequence.choose(&self.params.sampling, self.params.request)?;
        let seconds = start.elapsed().as_secs_f64();
        if first {
            self.timings.prompt_seconds = seconds;
        } else {
            self.timings.decode_tokens += 1;
            self.timings.decode_seconds += seconds;
        }
        self.ids.push(id);
        let text = self.take_in(id);
        Ok(Token { id, text })
    }

    /// Decides whether `id` is the last token, and which text it brings to light.
    fn take_in(&mut self, id: u32) -> String {
        if !self.params.ignore_eos && self.eos.contains(&id) {
            self.finish = Some(FinishReason::Stop);
        } else if self.output_ids().len() >= self.params.max_tokens {
            self.finish = Some(FinishReason::Length);
        } else if self.sequence.cached() >= self.sequence.capacity() {
            self.finish = Some(FinishReason::Context);
        }
        let Some((tokenizer, stream)) = &mut self.text else { return String::new() };
        let mut piece = stream.push(tokenizer, id);
        if self.finish.is_some() {
            piece += &stream.finish(tokenizer);
        }
        let (mut out, stopped) = self.stop.push(&piece);
        if stopped {
            self.finish = Some(FinishReason::Stop);
        } else if self.finish.is_some() {
            out += &self.stop.finish();
        }
        out
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Result<Token>> {
        if self.finish.is_some() || self.failed {
            return None;
        }
        let token = self.step();
        self.failed = token.is_err();
        Some(token)
    }
}

/// That a prompt fits the context.
pub(crate) fn check_length(ids: &[u32], config: &ModelConfig) -> Result<()> {
    if ids.len() > config.context {
        let expected = format!("at most {} tokens (the model's context)", config.context);
        return Err(Error::request("prompt", expected, ids.len()));
    }
    Ok(())
}

/// That there is a prompt, of the vocabulary's tokens.
pub(crate) fn check_tokens(ids: &[u32], config: &ModelConfig) -> Result<()> {
    if ids.is_empty() {
        return Err(Error::request("prompt", "at least one token", "none"));
    }
    match ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        Some(id) => {
            let expected = format!("token ids below the vocabulary of {}", config.vocab_size);
            Err(Error::request("prompt", expected, id))
        }
        None => Ok(()),
    }
}
