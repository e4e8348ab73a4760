//! A plan becomes a batch, and the batch's logits tokens.

use tilewright_host::{Batch, LogitChanges, MAX_DRAFTS, Outputs, RowClass, SampleRow};

use super::answer::{Answer, Answers};
use super::schedule::{Plan, Work};
use super::track::Track;
use crate::Result;
use crate::model::Runner;
use crate::sampling::accept::{self, Draft};
use crate::sampling::{Distribution, Draw, Logprobs};

/// A step's batch, and where each work's logits are.
pub(crate) struct Step {
    pub batch: Batch,
    /// Of each work: its first row of logits and how many it has.
    pub outputs: Vec<(usize, usize)>,
}

/// What a work came to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// Keys and values, but no token yet.
    Computed,
    /// Drafts that stand, then one more; with what the model thought of each, where asked for.
    Tokens(Vec<(u32, Option<Logprobs>)>),
    /// Logits that hold a NaN.
    Invalid,
}

/// Appends tokens `start..end` of a sequence, the last one's logits wanted if `is_last`; generated ones in spans that the decode kernels take.
pub(crate) fn push_tokens(
    batch: &mut Batch,
    track: &Track,
    class: RowClass,
    (start, end): (usize, usize),
    page_size: u32,
    is_last: bool,
) {
    let ids = &track.tokens[start..end];
    let most = if class == RowClass::Generated { MAX_DRAFTS as usize } else { ids.len().max(1) };
    let spans = ids.len().div_ceil(most);
    for (index, span) in ids.chunks(most).enumerate() {
        let outputs = if is_last && index + 1 == spans { Outputs::Last } else { Outputs::None };
        let cached = (start + index * most) as u32;
        match class {
            RowClass::Generated => batch.push_generated(span, cached, &track.table.pages, page_size, outputs),
            RowClass::Prompt => batch.push(span, cached, &track.table.pages, page_size, outputs),
        }
    }
}

/// The batch of a plan. `drafts` are those of each work, at most as many as it has reserved rows for.
pub(crate) fn assemble<'t>(
    plan: &Plan,
    drafts: &[Vec<Draft>],
    page_size: u32,
    track: impl Fn(&Work) -> Option<&'t Track>,
) -> Step {
    let mut batch = Batch::default();
    let mut outputs = Vec::with_capacity(plan.works.len());
    for (work, drafts) in plan.works.iter().zip(drafts) {
        let first = batch.outputs.len();
        let end = work.start + work.len;
        if let Some(track) = track(work) {
            if drafts.is_empty() {
                push_tokens(&mut batch, track, work.class, (work.start, end), page_size, work.is_last);
            } else {
                let drafts = drafts.iter().map(|draft| draft.token);
                let ids: Vec<u32> = track.tokens[work.start..end].iter().copied().chain(drafts).collect();
                batch.push_generated(&ids, work.start as u32, &track.table.pages, page_size, Outputs::All);
            }
        }
        outputs.push((first, batch.outputs.len() - first));
    }
    Step { batch, outputs }
}

/// Whether a device's own choices are all that an answer needs: a token a row, or, greedily, one for each draft.
fn device_chooses(answer: &Answer, drafts: &[Draft]) -> bool {
    drafts.is_empty() || answer.request.sampling.is_greedy()
}

/// What becomes of an answer's logits in its rows from `first` on, of which each is behind one more of its drafts.
fn change_rows(changes: &mut LogitChanges, first: usize, answer: &mut Answer, drafts: &[Draft]) {
    changes.push(first as u32, answer.adjustment.changes());
    for (row, draft) in (first + 1..).zip(drafts) {
        answer.adjustment.push(draft.token);
        changes.push(row as u32, answer.adjustment.changes());
    }
    // The answer counts its tokens when it says them.
    drafts.iter().for_each(|draft| answer.adjustment.pop(draft.token));
}

/// Chooses tokens from the logits of a step that ran.
pub(crate) fn choose(
    runner: &mut dyn Runner,
    plan: &Plan,
    step: &Step,
    drafts: &[Vec<Draft>],
    answers: &mut Answers,
) -> Result<Vec<Outcome>> {
    let mut rows = vec![SampleRow { top_p: 1.0, ..SampleRow::default() }; step.batch.outputs.len()];
    let mut changes = LogitChanges::default();
    let mut wanted = Vec::new();
    let mut asks_device = false;
    // Of each work: where its rows begin among those read, if they were.
    let mut read_at = vec![None; plan.works.len()];
    for (index, work) in plan.works.iter().enumerate() {
        let (first, count) = step.outputs[index];
        let Some(answer) = answers.get_mut(&work.id).filter(|_| count > 0) else { continue };
        let by_device = device_chooses(answer, &drafts[index]);
        if by_device {
            asks_device = true;
            for (at, row) in rows[first..first + count].iter_mut().enumerate() {
                let position = work.start + work.len + at;
                *row = answer.request.sampling.row(answer.key.uniform(position, Draw::Token));
            }
            change_rows(&mut changes, first, answer, &drafts[index]);
        }
        if !by_device || answer.request.logprobs.is_some() {
            read_at[index] = Some(wanted.len());
            wanted.extend((first..first + count).map(|row| row as u32));
        }
    }
    // What the model itself thought is read before penalties change it.
    let logits = if wanted.is_empty() { Vec::new() } else { runner.read_rows(&wanted)? };
    let chosen = if asks_device { runner.choose(&rows, &changes)? } else { vec![None; rows.len()] };
    let vocab = runner.vocab();
    let outcomes = plan.works.iter().enumerate().map(|(index, work)| {
        let (first, count) = step.outputs[index];
        let Some(answer) = answers.get_mut(&work.id).filter(|_| count > 0) else { return Outcome::Computed };
        let read = read_at[index].and_then(|at| logits.get(at * vocab..)).unwrap_or_default();
        judge(answer, work, &drafts[index], &chosen[first..first + count], read, vocab)
    });
    Ok(outcomes.collect())
}

/// The tokens of one work. `chosen` are the device's choices of its rows, `logits` begin with theirs where they were read.
fn judge(
    answer: &mut Answer,
    work: &Work,
    drafts: &[Draft],
    chosen: &[Option<u32>],
    logits: &[f32],
    vocab: usize,
) -> Outcome {
    let position = work.start + work.len;
    let by_device = device_chooses(answer, drafts);
    let (sampling, key) = (answer.request.sampling, answer.key);
    let mut pushed = 0;
    let adjustment = &mut answer.adjustment;
    let target = |index: usize| {
        if by_device {
            return chosen.get(index).copied().flatten().map(Distribution::certain);
        }
        let row = logits.get(index * vocab..(index + 1) * vocab)?;
        if adjustment.is_none() {
            return Distribution::new(row, &sampling);
        }
        while pushed < index {
            adjustment.push(drafts[pushed].token);
            pushed += 1;
        }
        let mut row = row.to_vec();
        adjustment.apply(&mut row);
        Distribution::new(&row, &sampling)
    };
    let verdict = accept::verify(drafts, target, |index, draw| key.uniform(position + index, draw));
    // The answer counts its tokens when it says them.
    for draft in &drafts[..pushed] {
        answer.adjustment.pop(draft.token);
    }
    let Some(verdict) = verdict else { return Outcome::Invalid };
    let accepted = drafts[..verdict.accepted].iter().map(|draft| draft.token);
    let tokens = accepted.chain([verdict.next]).enumerate().map(|(index, token)| {
        let logprobs = answer.request.logprobs.and_then(|top| {
            let row = logits.get(index * vocab..(index + 1) * vocab)?;
            Some(Logprobs::of(row, token, top))
        });
        (token, logprobs)
    });
    Outcome::Tokens(tokens.collect())
}
