//! What answers have to say, kept until there's time to say it: while the device is busy.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::answer::{Said, reveal};
use super::request::Output;
use super::track::Id;
use crate::tokenizer::{TextStream, Tokenizer};
use crate::{Error, Result};

/// Hears what comes of a request's answers; says whether anybody still listens.
pub(crate) type Listener = std::sync::Arc<dyn Fn(Result<Output>) -> bool + Send + Sync>;

/// How one answer is told.
pub(crate) struct Voice {
    /// Which of its request's answers it is.
    pub index: usize,
    /// Of an answer whose text decides nothing.
    pub text: Option<TextStream>,
    pub listener: Listener,
}

impl Voice {
    fn tell(&mut self, said: Result<Said>, tokenizer: Option<&Tokenizer>) -> bool {
        let output = said.map(|said| self.output(said, tokenizer));
        (self.listener)(output)
    }

    fn output(&mut self, said: Said, tokenizer: Option<&Tokenizer>) -> Output {
        let Said { token, logprobs, text, finish } = said;
        let own = || {
            let (stream, tokenizer) = (self.text.as_mut()?, tokenizer?);
            Some(reveal(stream, tokenizer, token, finish.is_some()))
        };
        Output {
            answer: self.index,
            id: token,
            text: text.or_else(own).unwrap_or_default(),
            logprobs,
            finish,
        }
    }
}

/// Tokens and errors on their way out, in the order they came.
#[derive(Default)]
pub(crate) struct Outbox {
    /// Of answers that haven't been told to their end.
    voices: BTreeMap<Id, Voice>,
    queue: VecDeque<(Id, Result<Said>)>,
    unheard: Vec<Id>,
    spent: Duration,
}

impl Outbox {
    /// An answer will be told by `voice`.
    pub fn open(&mut self, id: Id, voice: Voice) {
        self.voices.insert(id, voice);
    }

    /// Nothing more is told of an answer, be it queued.
    pub fn close(&mut self, id: Id) {
        self.voices.remove(&id);
    }

    /// Queues a token of an answer.
    pub fn say(&mut self, id: Id, said: Said) {
        self.queue.push_back((id, Ok(said)));
    }

    /// Queues what ends an answer before its time.
    pub fn fail(&mut self, id: Id, error: Error) {
        self.queue.push_back((id, Err(error)));
    }

    /// Tells all that is queued.
    pub fn deliver(&mut self, tokenizer: Option<&Tokenizer>) {
        if self.queue.is_empty() {
            return;
        }
        let began = Instant::now();
        while let Some((id, said)) = self.queue.pop_front() {
            let Some(voice) = self.voices.get_mut(&id) else { continue };
            let is_last = said.as_ref().map_or(true, |said| said.finish.is_some());
            let is_heard = voice.tell(said, tokenizer);
            if is_last || !is_heard {
                self.close(id);
            }
            if !is_heard {
                self.unheard.push(id);
            }
        }
        self.spent += began.elapsed();
    }

    /// Answers that were found to have no listener any more, since this was asked last.
    pub fn take_unheard(&mut self) -> Vec<Id> {
        std::mem::take(&mut self.unheard)
    }

    /// How long delivering took, since this was asked last.
    pub fn take_spent(&mut self) -> Duration {
        std::mem::take(&mut self.spent)
    }
}
