use std::collections::BTreeMap;
use std::sync::Arc;

use super::request::{Output, Request};
use super::track::Id;
use crate::generate::StopMatcher;
use crate::sampling::{Adjustment, DrawKey, Logprobs};
use crate::tokenizer::{TextStream, Tokenizer};
use crate::{FinishReason, Result};

/// What answers take from the model they are made with.
pub(crate) struct Language {
    pub tokenizer: Option<Arc<Tokenizer>>,
    pub eos: Vec<u32>,
    /// Tokens that a sequence can have cached.
    pub context: usize,
}

/// Hears what comes of a request's answers; says whether anybody still listens.
pub(crate) type Listener = Arc<dyn Fn(Result<Output>) -> bool + Send + Sync>;

/// Those that are being written, by their sequences.
pub(crate) type Answers = BTreeMap<Id, Answer>;

/// An answer that is being written.
pub(crate) struct Answer {
    pub request: Arc<Request>,
    /// What penalties and biases do to its next token's logits.
    pub adjustment: Adjustment,
    pub key: DrawKey,
    /// Its tokens so far.
    pub len: usize,
    index: usize,
    text: Option<TextStream>,
    stop: StopMatcher,
    listener: Listener,
}

/// Whether an answer goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    GoesOn,
    Ends,
    /// Nobody listens any more.
    Unheard,
}

impl Answer {
    /// The answer of number `index` to a request.
    pub fn new(request: Arc<Request>, index: usize, language: &Language, listener: Listener) -> Answer {
        let key = DrawKey { seed: request.sampling.seed, request: request.key, choice: index as u32 };
        Answer {
            key,
            adjustment: Adjustment::new(request.penalties, &request.logit_bias, &request.prompt),
            len: 0,
            index,
            text: language.tokenizer.as_ref().map(|tokenizer| tokenizer.stream(&request.prompt)),
            stop: StopMatcher::new(&request.stop),
            request,
            listener,
        }
    }

    /// Drafts that are worth verifying: the answer takes no more tokens than it may have, and the context no more than it holds.
    pub fn useful_drafts(&self, language: &Language) -> usize {
        let tokens = self.request.prompt.len() + self.len;
        let in_answer = self.request.max_tokens.saturating_sub(self.len + 1);
        in_answer.min(language.context.saturating_sub(tokens))
    }

    /// The answer's next token goes out.
    pub fn say(&mut self, token: u32, logprobs: Option<Logprobs>, language: &Language) -> Then {
        self.len += 1;
        self.adjustment.push(token);
        let mut finish = None;
        if !self.request.ignore_eos && language.eos.contains(&token) {
            finish = Some(FinishReason::Stop);
        } else if self.len >= self.request.max_tokens {
            finish = Some(FinishReason::Length);
        } else if self.request.prompt.len() + self.len > language.context {
            finish = Some(FinishReason::Context);
        }
        let text = self.reveal(token, &mut finish, language);
        let output = Output { answer: self.index, id: token, text, logprobs, finish };
        match ((self.listener)(Ok(output)), finish) {
            (false, _) => Then::Unheard,
            (true, Some(_)) => Then::Ends,
            (true, None) => Then::GoesOn,
        }
    }

    /// The text that `token` brings to light; a stop string in it is a reason to finish.
    fn reveal(&mut self, token: u32, finish: &mut Option<FinishReason>, language: &Language) -> String {
        let (Some(stream), Some(tokenizer)) = (&mut self.text, &language.tokenizer) else {
            return String::new();
        };
        let mut piece = stream.push(tokenizer, token);
        if finish.is_some() {
            piece += &stream.finish(tokenizer);
        }
        let (mut text, stopped) = self.stop.push(&piece);
        if stopped {
            *finish = Some(FinishReason::Stop);
        } else if finish.is_some() {
            text += &self.stop.finish();
        }
        text
    }

    /// Nothing more comes, for this reason.
    pub fn fail(&self, error: crate::Error) {
        // Whoever doesn't listen needs no telling.
        let _ = (self.listener)(Err(error));
    }
}
