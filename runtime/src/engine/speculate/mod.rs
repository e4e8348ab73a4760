//! Drafts of the next tokens, and how many of them.

mod adaptive;
mod draft_model;
mod ngram;

use std::collections::BTreeMap;

use adaptive::Adaptive;
pub(crate) use adaptive::{Timed, Verified};
pub(crate) use draft_model::DraftModel;

use super::answer::{Answers, Language};
use super::config::Speculation;
use super::schedule::{Plan, Scheduler};
use super::track::Id;
use crate::Result;
use crate::sampling::accept::Draft;

/// Where drafts come from, and how many are asked for.
pub(crate) struct Speculator {
    source: Source,
    most: usize,
    adaptive: Option<Adaptive>,
}

enum Source {
    Nothing,
    /// What was found for the step that is planned.
    NGram(BTreeMap<Id, Vec<u32>>),
    Model(Box<DraftModel>),
}

impl Speculator {
    /// `draft_model` is there where `speculation` names one.
    pub fn new(speculation: Speculation, draft_model: Option<DraftModel>) -> Speculator {
        let most = speculation.max_drafts();
        let source = match (speculation, draft_model) {
            (Speculation::DraftModel(_), Some(model)) => Source::Model(Box::new(model)),
            (Speculation::NGram(_), _) => Source::NGram(BTreeMap::new()),
            (Speculation::Off | Speculation::DraftModel(_), _) => Source::Nothing,
        };
        let by_model = matches!(source, Source::Model(_));
        let adaptive = speculation.is_adaptive().then(|| Adaptive::new(most, by_model));
        Speculator { source, most, adaptive }
    }

    /// Says how many drafts each sequence would like in the step to be planned.
    pub fn wish(&mut self, scheduler: &mut Scheduler, answers: &Answers, language: &Language) {
        if matches!(self.source, Source::Nothing) {
            return;
        }
        let sequences = scheduler.counts().0;
        let most = self.adaptive.as_mut().map_or(self.most, |adaptive| adaptive.drafts(sequences));
        for (&id, answer) in answers {
            let Some(track) = scheduler.track_mut(id).filter(|track| track.awaits_next()) else { continue };
            let useful = if answer.request.speculate { answer.useful_drafts(language).min(most) } else { 0 };
            track.drafts_wished = match &mut self.source {
                Source::NGram(found) => {
                    let drafts = ngram::propose(&track.tokens, useful);
                    let wished = drafts.len();
                    found.insert(id, drafts);
                    wished
                }
                Source::Model(model) => useful.min(model.room(track.tokens.len())),
                Source::Nothing => 0,
            };
        }
    }

    /// The drafts of each work of the plan, at most as many as it has rows reserved for. Where a device computes them, `meanwhile` is
    /// called after every launch, before the wait.
    pub fn propose(
        &mut self,
        plan: &Plan,
        scheduler: &Scheduler,
        answers: &mut Answers,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<Vec<Draft>>> {
        match &mut self.source {
            Source::Nothing => Ok(vec![Vec::new(); plan.works.len()]),
            Source::Model(model) => {
                model.copy_pages(&plan.copies)?;
                model.propose(plan, scheduler, answers, meanwhile)
            }
            Source::NGram(found) => {
                let found = std::mem::take(found);
                let drafts = plan.works.iter().map(|work| {
                    let drafts = found.get(&work.id).into_iter().flatten().take(work.drafts);
                    drafts.map(|&token| Draft::certain(token)).collect()
                });
                Ok(drafts.collect())
            }
        }
    }

    /// What the source computes beside the target's step.
    pub fn follow(&mut self, plan: &Plan, scheduler: &Scheduler) -> Result<()> {
        match &mut self.source {
            Source::Model(model) => model.follow(plan, scheduler),
            Source::Nothing | Source::NGram(_) => Ok(()),
        }
    }

    /// How many of a sequence's first `computed` tokens the source knows; `before` is what it was before the step.
    pub fn drafted(&self, id: Id, before: usize, computed: usize) -> usize {
        match &self.source {
            Source::Model(model) => model.drafted(id, before, computed),
            Source::Nothing | Source::NGram(_) => computed,
        }
    }

    /// Whether the source's part of steps like the last one will take as long.
    pub fn is_steady(&self) -> bool {
        match &self.source {
            Source::Model(model) => model.is_steady(),
            Source::Nothing | Source::NGram(_) => true,
        }
    }

    /// A step that did nothing but choose tokens is over.
    pub fn record(&mut self, step: Timed) {
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.record(step);
        }
    }
}
