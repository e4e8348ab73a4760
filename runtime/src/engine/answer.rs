use std::collections::BTreeMap;
use std::sync::Arc;

use super::outbox::{Listener, Voice};
use super::request::Request;
use super::track::Id;
use crate::FinishReason;
use crate::generate::StopMatcher;
use crate::sampling::{Adjustment, DrawKey, Logprobs};
use crate::tokenizer::{TextStream, Tokenizer};

/// What answers take from the model they are made with.
pub(crate) struct Language {
    pub tokenizer: Option<Arc<Tokenizer>>,
    pub eos: Vec<u32>,
    /// Tokens that a sequence can have cached.
    pub context: usize,
}

/// Those that are being written, by their sequences.
pub(crate) type Answers = BTreeMap<Id, Answer>;

/// An answer that is being written: what decides how it goes on. Whom it is told to is the [`Outbox`](super::outbox::Outbox)'s part.
pub(crate) struct Answer {
    pub request: Arc<Request>,
    /// What penalties and biases do to its next token's logits.
    pub adjustment: Adjustment,
    pub key: DrawKey,
    /// Its tokens so far.
    pub len: usize,
    /// Its text, where a stop string in it may end the answer.
    watched: Option<(TextStream, StopMatcher)>,
}

/// A token of an answer, with what becomes of the answer by it.
#[derive(Debug)]
pub(crate) struct Said {
    pub token: u32,
    pub logprobs: Option<Logprobs>,
    /// The text that it brings to light; none yet where that decides nothing.
    pub text: Option<String>,
    /// Why the answer ends here, if it does.
    pub finish: Option<FinishReason>,
}

impl Answer {
    /// The answer of number `index` to a request, and how it is told.
    pub fn new(
        request: Arc<Request>,
        index: usize,
        language: &Language,
        listener: Listener,
    ) -> (Answer, Voice) {
        let key = DrawKey { seed: request.sampling.seed, request: request.key, choice: index as u32 };
        let mut text = language.tokenizer.as_ref().map(|tokenizer| tokenizer.stream(&request.prompt));
        let watched = match request.stop.is_empty() {
            true => None,
            false => text.take().map(|text| (text, StopMatcher::new(&request.stop))),
        };
        let adjustment = Adjustment::new(request.penalties, &request.logit_bias, &request.prompt);
        (Answer { request, adjustment, key, len: 0, watched }, Voice { index, text, listener })
    }

    /// Drafts that are worth verifying: the answer takes no more tokens than it may have, and the context no more than it holds.
    pub fn useful_drafts(&self, language: &Language) -> usize {
        let tokens = self.request.prompt.len() + self.len;
        let in_answer = self.request.max_tokens.saturating_sub(self.len + 1);
        in_answer.min(language.context.saturating_sub(tokens))
    }

    /// The answer goes on by a token.
    pub fn say(&mut self, token: u32, logprobs: Option<Logprobs>, language: &Language) -> Said {
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
        let text = self.watch(token, &mut finish, language);
        Said { token, logprobs, text, finish }
    }

    /// The text that `token` brings to light where stop strings are looked for; one in it is a reason to finish.
    fn watch(
        &mut self,
        token: u32,
        finish: &mut Option<FinishReason>,
        language: &Language,
    ) -> Option<String> {
        let ((stream, stop), tokenizer) = (self.watched.as_mut()?, language.tokenizer.as_ref()?);
        let (mut text, stopped) = stop.push(&reveal(stream, tokenizer, token, finish.is_some()));
        if stopped {
            *finish = Some(FinishReason::Stop);
        } else if finish.is_some() {
            text += &stop.finish();
        }
        Some(text)
    }
}

/// The text that `token` brings to light, with all that was held back if it's the last.
pub(super) fn reveal(stream: &mut TextStream, tokenizer: &Tokenizer, token: u32, is_last: bool) -> String {
    let mut text = stream.push(tokenizer, token);
    if is_last {
        text += &stream.finish(tokenizer);
    }
    text
}
