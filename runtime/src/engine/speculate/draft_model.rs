//! Drafts of a smaller model, whose keys and values stand in pages of the same numbers as the target's.

use std::collections::BTreeMap;

use tilewright_host::{Batch, LogitChanges, Outputs, Pace, RowClass, SampleRow};

use super::super::answer::{Answer, Answers};
use super::super::schedule::{Plan, Scheduler, Work};
use super::super::step::push_tokens;
use super::super::track::{Id, Track};
use crate::Result;
use crate::model::Runner;
use crate::sampling::accept::Draft;
use crate::sampling::{Adjustment, Distribution, Draw};

/// A draft model beside a target.
pub(crate) struct DraftModel {
    runner: Box<dyn Runner>,
    page_size: u32,
    max_rows: usize,
    /// Positions that it can compute.
    context: usize,
    /// After the last step: how many of a sequence's tokens have keys and values here, drafts counted as tokens.
    drafted: BTreeMap<Id, usize>,
    /// Whether all of the last step's passes were such that steps like it will take as long.
    is_steady: bool,
}

/// Tokens of a sequence in a step's first pass, where it is up to date.
const FIRST_PASS: usize = 2;

impl DraftModel {
    pub fn new(runner: Box<dyn Runner>, page_size: usize, max_rows: usize, context: usize) -> DraftModel {
        let (page_size, drafted) = (page_size as u32, BTreeMap::new());
        DraftModel { runner, page_size, max_rows, context, drafted, is_steady: true }
    }

    /// Whether steps like the last one will take as long.
    pub fn is_steady(&self) -> bool {
        self.is_steady
    }

    /// Drafts that it can make behind so many tokens.
    pub fn room(&self, tokens: usize) -> usize {
        self.context.saturating_sub(tokens)
    }

    /// How many of a sequence's first `computed` tokens have keys and values here; `before` is what it was before the step.
    pub fn drafted(&self, id: Id, before: usize, computed: usize) -> usize {
        self.drafted.get(&id).copied().unwrap_or(before).min(computed)
    }

    /// Makes the copies of pages that the target makes.
    pub fn copy_pages(&mut self, copies: &[(u32, u32)]) -> Result<()> {
        self.runner.copy_pages(copies)
    }

    /// Drafts for each work that has rows reserved for some. `meanwhile` is called between a launch and the wait for what it computes.
    pub fn propose(
        &mut self,
        plan: &Plan,
        scheduler: &Scheduler,
        answers: &mut Answers,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<Vec<Draft>>> {
        self.drafted.clear();
        self.is_steady = true;
        let mut drafts = vec![Vec::new(); plan.works.len()];
        let mut batch = Batch::default();
        let mut open = Vec::new();
        for (index, work) in plan.works.iter().enumerate().filter(|(_, work)| work.drafts > 0) {
            let Some(track) = scheduler.track(work.id) else { continue };
            // Those that lag by a part of their prompt catch up beside the target's step; those that lag by more than fits, by
            // what fits.
            if track.drafted < track.prompt_len {
                continue;
            }
            let start = first_of_pass(track);
            let end = track.tokens.len().min(start + self.max_rows - batch.tokens());
            if end <= track.drafted {
                continue;
            }
            let is_last = end == track.tokens.len();
            self.is_steady &= end - start <= FIRST_PASS;
            push_tokens(&mut batch, track, RowClass::Generated, (start, end), self.page_size, is_last);
            self.drafted.insert(work.id, end);
            if is_last {
                open.push(index);
            }
        }
        if open.is_empty() && batch.tokens() > 0 {
            self.forward(&batch)?;
        }
        while !open.is_empty() {
            self.forward(&batch)?;
            meanwhile();
            let found = self.draw(plan, &open, &drafts, answers)?;
            batch = Batch::default();
            open = open
                .into_iter()
                .zip(found)
                .filter_map(|(index, draft)| {
                    let work = &plan.works[index];
                    let draft = draft?;
                    let token = draft.token;
                    drafts[index].push(draft);
                    if drafts[index].len() == work.drafts {
                        return None;
                    }
                    let track = scheduler.track(work.id)?;
                    let cached = track.tokens.len() + drafts[index].len() - 1;
                    let pages = &track.table.pages;
                    batch.push_generated(&[token], cached as u32, pages, self.page_size, Outputs::Last);
                    self.drafted.insert(work.id, cached + 1);
                    Some(index)
                })
                .collect();
        }
        Ok(drafts)
    }

    /// Computes what the target computes beside next tokens: chunks of prompts and of answers computed anew; and what of prompts it
    /// lags by.
    pub fn follow(&mut self, plan: &Plan, scheduler: &Scheduler) -> Result<()> {
        let mut batch = Batch::default();
        let chunks = plan.works.iter().filter(|work| work.len > 1 || work.class == RowClass::Prompt);
        for work in chunks {
            let Some(track) = scheduler.track(work.id).filter(|track| track.drafted == work.start) else {
                continue;
            };
            let end = (work.start + work.len).min(self.context);
            if work.start < end {
                push_tokens(&mut batch, track, work.class, (work.start, end), self.page_size, false);
                self.drafted.insert(work.id, end);
            }
        }
        let lagging = |work: &&Work| work.drafts > 0 && !self.drafted.contains_key(&work.id);
        let lagging: Vec<&Work> = plan.works.iter().filter(lagging).collect();
        for work in lagging {
            let Some(track) = scheduler.track(work.id).filter(|track| track.drafted < track.prompt_len)
            else {
                continue;
            };
            let end = track.prompt_len.min(track.drafted + self.max_rows.saturating_sub(batch.tokens()));
            if track.drafted < end {
                let range = (track.drafted, end);
                push_tokens(&mut batch, track, RowClass::Prompt, range, self.page_size, false);
                self.drafted.insert(work.id, end);
            }
        }
        if batch.tokens() == 0 {
            return Ok(());
        }
        self.is_steady = false;
        self.forward(&batch)
    }

    fn forward(&mut self, batch: &Batch) -> Result<()> {
        self.is_steady &= self.runner.forward(batch)? == Pace::Steady;
        Ok(())
    }

    /// A draft for each open work, from the logits of the step that ran; none where they hold a NaN.
    fn draw(
        &mut self,
        plan: &Plan,
        open: &[usize],
        drafts: &[Vec<Draft>],
        answers: &mut Answers,
    ) -> Result<Vec<Option<Draft>>> {
        let greedy = |answer: &Answer| answer.request.sampling.is_greedy();
        let answer = |answers: &Answers, index: usize| answers.get(&plan.works[index].id).is_some_and(greedy);
        let (by_device, by_host): (Vec<u32>, Vec<u32>) =
            (0..open.len() as u32).partition(|&row| answer(answers, open[row as usize]));
        let mut changes = LogitChanges::default();
        for &row in &by_device {
            let index = open[row as usize];
            if let Some(answer) = answers.get_mut(&plan.works[index].id) {
                behind(answer, &drafts[index], |adjustment| changes.push(row, adjustment.changes()));
            }
        }
        let chosen = match by_device.is_empty() {
            true => vec![None; open.len()],
            false => {
                let row = SampleRow { top_p: 1.0, ..SampleRow::default() };
                self.runner.choose(&vec![row; open.len()], &changes)?
            }
        };
        let mut found: Vec<Option<Draft>> =
            chosen.into_iter().map(|token| token.map(Draft::certain)).collect();
        if by_host.is_empty() {
            return Ok(found);
        }
        let logits = self.runner.read_rows(&by_host)?;
        for (&row, logits) in by_host.iter().zip(logits.chunks_exact(self.runner.vocab())) {
            let index = open[row as usize];
            let work = &plan.works[index];
            found[row as usize] = answers
                .get_mut(&work.id)
                .and_then(|answer| draw_one(answer, work.start + work.len, &drafts[index], logits));
        }
        Ok(found)
    }
}

/// Where a sequence's tokens begin in a step's first pass. The token before its last is computed again if it has been: where all drafts
/// stood it hasn't, and so each sequence has two rows, whatever stood. A GPU has to prepare each number of rows.
/// What is computed again has the bits that it had.
fn first_of_pass(track: &Track) -> usize {
    let two = track.tokens.len().saturating_sub(FIRST_PASS);
    if two >= track.prompt_len { track.drafted.min(two) } else { track.drafted }
}

/// Does `work` with what becomes of an answer's logits behind `drafts`.
fn behind(answer: &mut Answer, drafts: &[Draft], work: impl FnOnce(&Adjustment)) {
    drafts.iter().for_each(|draft| answer.adjustment.push(draft.token));
    work(&answer.adjustment);
    drafts.iter().for_each(|draft| answer.adjustment.pop(draft.token));
}

/// The draft behind `drafts`, the first of which is the token at `position`.
fn draw_one(answer: &mut Answer, position: usize, drafts: &[Draft], logits: &[f32]) -> Option<Draft> {
    let mut logits = logits.to_vec();
    behind(answer, drafts, |adjustment| adjustment.apply(&mut logits));
    let from = Distribution::new(&logits, &answer.request.sampling)?;
    let token = from.draw(answer.key.uniform(position + drafts.len(), Draw::Draft));
    Some(Draft { token, from })
}
