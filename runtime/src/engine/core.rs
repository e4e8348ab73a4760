//! The three verbs: schedule, run, commit.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use tilewright_host::Pace;

use super::answer::{Answer, Answers, Language};
use super::config::EngineConfig;
use super::outbox::{Listener, Outbox};
use super::request::Request;
use super::schedule::{Plan, Scheduler};
use super::speculate::{Speculator, Timed, Verified};
use super::stats::{EngineStats, Times};
use super::step::{Outcome, Step, assemble, choose};
use super::track::{Id, Track};
use crate::model::Runner;
use crate::sampling::accept::Draft;
use crate::{Error, Result};

/// What a step came to.
#[derive(Default)]
struct Ran {
    drafts: Vec<Vec<Draft>>,
    outcomes: Vec<Outcome>,
    /// Whether steps like it will take as long.
    is_steady: bool,
}

/// What was committed of a step.
#[derive(Default)]
struct Committed {
    tokens: usize,
    verified: Verified,
}

/// The engine without its thread: data flows from requests through a plan, a batch and its logits to tokens.
pub(crate) struct Core {
    runner: Box<dyn Runner>,
    scheduler: Scheduler,
    speculator: Speculator,
    language: Language,
    answers: Answers,
    outbox: Outbox,
    page_size: u32,
    pub stats: EngineStats,
}

impl Core {
    pub fn new(
        config: &EngineConfig,
        runner: Box<dyn Runner>,
        speculator: Speculator,
        language: Language,
    ) -> Core {
        let stats = EngineStats {
            cache_bytes: runner.cache_bytes(),
            pages: config.pages(),
            ..EngineStats::default()
        };
        Core {
            runner,
            scheduler: Scheduler::new(config.limits()),
            speculator,
            language,
            answers: Answers::new(),
            outbox: Outbox::default(),
            page_size: config.page_size as u32,
            stats,
        }
    }

    /// Takes a valid request; its answers' sequences have consecutive numbers from `first`, which nobody had before.
    pub fn submit(&mut self, request: Request, first: Id, listener: &Listener) {
        let request = Arc::new(request);
        for (index, id) in (0..request.answers).zip(first..) {
            let track = Track {
                id,
                tokens: request.prompt.clone(),
                prompt_len: request.prompt.len(),
                leader: (index > 0).then_some(first),
                ..Track::default()
            };
            let (answer, voice) = Answer::new(request.clone(), index, &self.language, listener.clone());
            self.answers.insert(id, answer);
            self.outbox.open(id, voice);
            self.scheduler.submit(track, request.priority);
        }
    }

    /// Ends a sequence that nobody wants any more.
    pub fn cancel(&mut self, id: Id) {
        self.outbox.close(id);
        self.forget(id);
        if self.is_idle() {
            // No step comes in which others could be told.
            self.deliver();
        }
    }

    /// Ends all of them, with an error.
    pub fn stop(&mut self) {
        for id in std::mem::take(&mut self.answers).into_keys() {
            self.outbox.fail(id, Error::Stopped);
            self.scheduler.remove(id, true);
        }
        self.deliver();
    }

    /// The same engine over another runner.
    #[cfg(test)]
    pub fn with_runner(self, wrap: impl FnOnce(Box<dyn Runner>) -> Box<dyn Runner>) -> Core {
        Core { runner: wrap(self.runner), ..self }
    }

    /// Whether there's nothing to do.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_empty()
    }

    /// One step. What it says is told in the next one, once that keeps the device busy; at once where that comes to nothing.
    pub fn step(&mut self) {
        let began = Instant::now();
        self.outbox.take_spent();
        self.speculator.wish(&mut self.scheduler, &self.answers, &self.language);
        let plan = self.scheduler.plan();
        let planned = Instant::now();
        let result = self.run(&plan);
        let hidden = self.outbox.take_spent();
        let ran = Instant::now();
        self.scheduler.end_step();
        self.hang_up();
        let (has_failed, is_steady) = (result.is_err(), result.as_ref().is_ok_and(|ran| ran.is_steady));
        let Committed { tokens, verified } = match result {
            Ok(ran) => self.commit(&plan, ran),
            Err(error) => {
                self.fail(&plan, &error);
                Committed::default()
            }
        };
        let committed = Instant::now();
        if has_failed || self.is_idle() || !self.runner.is_asynchronous() {
            self.deliver();
        }
        if plan.works.iter().all(|work| work.is_last && work.len == 1) {
            let (sequences, seconds) = (plan.works.len(), began.elapsed().as_secs_f64());
            self.speculator.record(Timed { sequences, tokens, verified, seconds, is_steady });
        }
        self.count();
        let delivered = self.outbox.take_spent();
        let times =
            Times { plan: planned - began, run: ran - planned, hidden, commit: committed - ran, delivered };
        self.stats.add(&plan, tokens, times);
    }

    /// Brings up to date what the statistics say of who is here now.
    pub fn count(&mut self) {
        let memory = &self.scheduler.memory;
        self.stats.pages_held = memory.total() - memory.available();
        (self.stats.running, self.stats.waiting) = self.scheduler.counts();
    }

    /// Copies, drafts, the forward pass, the choice of tokens. What waits to be told is told once the device is at work, before the host
    /// waits for it.
    fn run(&mut self, plan: &Plan) -> Result<Ran> {
        if plan.works.is_empty() && plan.copies.is_empty() {
            return Ok(Ran::default());
        }
        let mut deliver = || self.outbox.deliver(self.language.tokenizer.as_deref());
        self.runner.copy_pages(&plan.copies)?;
        let drafts = self.speculator.propose(plan, &self.scheduler, &mut self.answers, &mut deliver)?;
        let step: Step = assemble(plan, &drafts, self.page_size, |work| self.scheduler.track(work.id));
        let pace = self.runner.forward(&step.batch)?;
        deliver();
        self.speculator.follow(plan, &self.scheduler)?;
        let outcomes = choose(&mut *self.runner, plan, &step, &drafts, &mut self.answers)?;
        let is_steady = pace == Pace::Steady && self.speculator.is_steady();
        Ok(Ran { drafts, outcomes, is_steady })
    }

    /// Tokens go to their sequences, and into the outbox.
    fn commit(&mut self, plan: &Plan, ran: Ran) -> Committed {
        let mut committed = Committed::default();
        for ((work, drafts), outcome) in plan.works.iter().zip(&ran.drafts).zip(ran.outcomes) {
            let end = work.start + work.len;
            match outcome {
                Outcome::Computed => self.advance(work.id, end, &[]),
                Outcome::Invalid => {
                    let error = tilewright_host::Error::InvalidLogits { row: end - 1 };
                    self.end(work.id, Error::Device(error));
                }
                Outcome::Tokens(tokens) => {
                    self.stats.drafts += drafts.len();
                    self.stats.accepted += tokens.len() - 1;
                    self.stats.verified += usize::from(!drafts.is_empty());
                    committed.verified.add(drafts.len(), tokens.len() - 1);
                    committed.tokens += self.say(work.id, end, tokens);
                }
            }
        }
        committed
    }

    /// An answer goes on by `tokens`, of which all but the last have their keys and values behind the first `end`; returns how many
    /// it took.
    fn say(&mut self, id: Id, end: usize, tokens: Vec<(u32, Option<crate::sampling::Logprobs>)>) -> usize {
        let Some(answer) = self.answers.get_mut(&id) else { return 0 };
        let mut new = Vec::with_capacity(tokens.len());
        for (token, logprobs) in tokens {
            new.push(token);
            let said = answer.say(token, logprobs, &self.language);
            let ends = said.finish.is_some();
            self.outbox.say(id, said);
            if ends {
                self.forget(id);
                return new.len();
            }
        }
        self.advance(id, end + new.len() - 1, &new);
        new.len()
    }

    fn advance(&mut self, id: Id, computed: usize, new: &[u32]) {
        let before = self.scheduler.track(id).map_or(0, |track| track.drafted);
        let drafted = self.speculator.drafted(id, before, computed);
        self.scheduler.advance(id, computed, drafted, new);
    }

    /// A step that the device failed fails who was in it; what their pages hold is forgotten.
    fn fail(&mut self, plan: &Plan, error: &Error) {
        let hit: BTreeSet<Id> =
            plan.works.iter().map(|work| work.id).chain(plan.admitted.iter().copied()).collect();
        for id in hit {
            self.end(id, error.for_another());
        }
        self.stats.failed_steps += 1;
    }

    fn end(&mut self, id: Id, error: Error) {
        self.outbox.fail(id, error);
        self.answers.remove(&id);
        self.scheduler.remove(id, false);
    }

    /// A sequence needs nothing more; its pages may serve others.
    fn forget(&mut self, id: Id) {
        self.answers.remove(&id);
        self.scheduler.remove(id, true);
    }

    /// Tells all that is queued.
    fn deliver(&mut self) {
        self.outbox.deliver(self.language.tokenizer.as_deref());
        self.hang_up();
    }

    /// Ends the answers that nobody listens to any more.
    fn hang_up(&mut self) {
        for id in self.outbox.take_unheard() {
            self.forget(id);
        }
    }
}
