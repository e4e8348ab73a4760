//! Which tokens of which sequences a step computes. Pure: no device, no clock, no thread.
//!
//! Sequences have one order, by rank: the number of the step in which they came, less [`AGEING_STEPS`] for each point of priority.
//! A priority is so a head start, which waiting makes good, and since an order that never changes has a first, that one always
//! moves on: nobody starves and nothing locks. A step takes, in that order,
//!
//! 1. of every running sequence that has its prompt behind it the next token, with drafts;
//! 2. chunks of what others still have to compute: prompts, and answers of sequences that gave their pages up;
//! 3. sequences that wait, as long as there are rows, places and pages for all their tokens.
//!
//! A sequence is admitted with the pages for all its tokens so far. Where a running one finds no page for its next token, the last
//! one running gives its pages up, waits again, and computes its tokens anew: the prompt as a prompt, the answer as an answer.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use tilewright_host::RowClass;

use super::config::{Batching, Limits};
use super::memory::Memory;
use super::track::{Id, Track};

#[cfg(test)]
mod tests;

/// Steps of waiting that weigh as much as a point of priority.
const AGEING_STEPS: i64 = 256;

/// A sequence's part of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Work {
    /// Whose.
    pub id: Id,
    /// The class of its rows.
    pub class: RowClass,
    /// Its first token.
    pub start: usize,
    /// Its tokens, drafts aside.
    pub len: usize,
    /// Drafts behind them that rows and pages are reserved for.
    pub drafts: usize,
    /// Whether its last token is the sequence's, so that the next one is to be chosen.
    pub is_last: bool,
}

/// What a step does.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Generated tokens before prompts, each sequence once.
    pub works: Vec<Work>,
    /// Pages to copy beforehand, from where to where.
    pub copies: Vec<(u32, u32)>,
    /// Sequences that run from this step on.
    pub admitted: Vec<Id>,
    /// Sequences that gave their pages up.
    pub preempted: usize,
    /// Tokens that newly admitted sequences found in the prefix cache.
    pub cached_tokens: usize,
}

impl Plan {
    /// Rows of the step.
    pub fn rows(&self) -> usize {
        self.works.iter().map(|work| work.len + work.drafts).sum()
    }
}

/// The order of sequences: smaller goes first.
type Rank = (i64, Id);

/// The sequences and the pages they share.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    pub memory: Memory,
    waiting: BTreeMap<Rank, Track>,
    running: BTreeMap<Rank, Track>,
    ranks: BTreeMap<Id, Rank>,
    steps: i64,
    /// Copies whose sources are held until the step is over.
    copies: Vec<(u32, u32)>,
}

impl Scheduler {
    /// Without sequences.
    pub fn new(limits: Limits) -> Scheduler {
        Scheduler {
            limits,
            memory: Memory::new(limits.pages, limits.page_size, limits.prefix_cache),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            ranks: BTreeMap::new(),
            steps: 0,
            copies: Vec::new(),
        }
    }

    /// A sequence that waits from now on. Its pages at its longest must be within [`Memory::total`].
    pub fn submit(&mut self, track: Track, priority: i32) {
        let rank = (self.steps - i64::from(priority) * AGEING_STEPS, track.id);
        self.ranks.insert(track.id, rank);
        self.waiting.insert(rank, track);
    }

    /// A sequence that is here.
    pub fn track(&self, id: Id) -> Option<&Track> {
        let rank = self.ranks.get(&id)?;
        self.running.get(rank).or_else(|| self.waiting.get(rank))
    }

    /// A sequence that is here, to be changed.
    pub fn track_mut(&mut self, id: Id) -> Option<&mut Track> {
        let rank = self.ranks.get(&id)?;
        match self.running.get_mut(rank) {
            Some(track) => Some(track),
            None => self.waiting.get_mut(rank),
        }
    }

    /// Whether there's nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }

    /// Sequences that run, and that wait.
    pub fn counts(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// The next step's work. [`Scheduler::end_step`] must follow before the next plan.
    pub fn plan(&mut self) -> Plan {
        debug_assert!(self.copies.is_empty(), "the last step has not ended");
        self.steps += 1;
        self.memory.tick();
        let mut plan = Plan::default();
        let mut rows = self.limits.step_tokens;
        self.plan_next_tokens(&mut plan, &mut rows);
        let mut prompts = Vec::new();
        self.plan_chunks(&mut plan, &mut prompts, &mut rows);
        self.admit(&mut plan, &mut prompts, &mut rows);
        plan.works.append(&mut prompts);
        plan.copies = self.copies.clone();
        plan
    }

    /// The copies of the plan have been made, or never will be.
    pub fn end_step(&mut self) {
        for (source, _) in std::mem::take(&mut self.copies) {
            self.memory.release_source(source);
        }
    }

    /// What a sequence computed: keys and values of its first `computed` tokens are there, and `new` tokens follow its last. `drafted`
    /// of its tokens have keys and values of the draft model too, where there is one.
    pub fn advance(&mut self, id: Id, computed: usize, drafted: usize, new: &[u32]) {
        let Some(track) = self.ranks.get(&id).and_then(|rank| self.running.get_mut(rank)) else { return };
        track.computed = computed;
        track.drafted = drafted;
        track.tokens.extend_from_slice(new);
        let known = if self.limits.draft_model { computed.min(drafted) } else { computed };
        if known / self.limits.page_size > track.table.published() {
            let words = track.words(known);
            self.memory.publish(&mut track.table, &words);
        }
    }

    /// Takes a sequence and its pages back; `trusted` if what its pages hold may serve others.
    pub fn remove(&mut self, id: Id, trusted: bool) -> Option<Track> {
        let rank = self.ranks.remove(&id)?;
        let mut track = self.running.remove(&rank).or_else(|| self.waiting.remove(&rank))?;
        match trusted {
            true => self.memory.release(&mut track.table),
            false => self.memory.discard(&mut track.table),
        }
        Some(track)
    }

    /// One row each for those that have their prompt behind them, with drafts as wished where pages are at hand.
    fn plan_next_tokens(&mut self, plan: &mut Plan, rows: &mut usize) {
        let mut next = self.running.keys().next().copied();
        while let Some(rank) = next {
            next = self.running.range((Excluded(rank), Unbounded)).next().map(|(&rank, _)| rank);
            let Some(track) = self.running.get_mut(&rank) else { continue };
            if !track.awaits_next() {
                continue;
            }
            let tokens = track.tokens.len();
            let wished = track.drafts_wished.min(rows.saturating_sub(1));
            if !self.memory.grow(&mut track.table, tokens) && !self.make_room(rank, plan) {
                continue;
            }
            // Pages may have been given up by others just now, this one's successor among them.
            next = next.filter(|rank| self.running.contains_key(rank));
            let Some(track) = self.running.get_mut(&rank) else { continue };
            let drafts = if self.memory.grow(&mut track.table, tokens + wished) { wished } else { 0 };
            plan.works.push(Work {
                id: track.id,
                class: RowClass::Generated,
                start: track.computed,
                len: 1,
                drafts,
                is_last: true,
            });
            *rows -= 1 + drafts;
        }
    }

    /// Takes pages from the last sequences running until the one of `rank` has those for its tokens; false if it was itself the
    /// last.
    fn make_room(&mut self, rank: Rank, plan: &mut Plan) -> bool {
        while let Some((&last, _)) = self.running.last_key_value() {
            let Some(mut track) = self.running.remove(&last) else { return false };
            self.memory.release(&mut track.table);
            track.computed = 0;
            track.drafted = 0;
            self.waiting.insert(last, track);
            plan.preempted += 1;
            if last == rank {
                return false;
            }
            let Some(track) = self.running.get_mut(&rank) else { return false };
            if self.memory.grow(&mut track.table, track.tokens.len()) {
                return true;
            }
        }
        false
    }

    /// Chunks of those that have several tokens to compute, whose pages they have.
    fn plan_chunks(&mut self, plan: &mut Plan, prompts: &mut Vec<Work>, rows: &mut usize) {
        for track in self.running.values() {
            if !track.awaits_next() {
                chunk(track, self.limits.chunk_tokens, plan, prompts, rows);
            }
        }
    }

    /// Sequences that wait, while there is room.
    fn admit(&mut self, plan: &mut Plan, prompts: &mut Vec<Work>, rows: &mut usize) {
        if self.limits.batching == Batching::Static && !self.running.is_empty() {
            return;
        }
        let candidates: Vec<Rank> = self.waiting.keys().copied().collect();
        for rank in candidates {
            // A static batch is whole before its first step.
            let no_rows = *rows == 0 && self.limits.batching == Batching::Continuous;
            if no_rows || self.running.len() >= self.limits.max_running {
                break;
            }
            let Some(mut track) = self.waiting.remove(&rank) else { continue };
            if self.must_wait_for_leader(&track) {
                self.waiting.insert(rank, track);
                continue;
            }
            if !self.reserve(&mut track, plan) {
                self.waiting.insert(rank, track);
                break;
            }
            chunk(&track, self.limits.chunk_tokens, plan, prompts, rows);
            plan.admitted.push(track.id);
            self.running.insert(rank, track);
        }
    }

    /// Whether a sequence's prompt is being computed for another that it can share all but the last token's row with.
    fn must_wait_for_leader(&self, track: &Track) -> bool {
        let Some(leader) = track.leader.and_then(|id| self.track(id)) else { return false };
        leader.computed < leader.prompt_len
    }

    /// Pages for all tokens of a sequence: shared ones where there are some, and room for those who run to grow.
    fn reserve(&mut self, track: &mut Track, plan: &mut Plan) -> bool {
        let spare = self.running.len();
        let longest_known = track.tokens.len() - 1;
        let leader = track.leader.and_then(|id| self.ranks.get(&id)).and_then(|rank| self.running.get(rank));
        let (cached, drafted) = match leader {
            // The last token of the prompt is computed again, for its logits.
            Some(leader) if track.tokens.len() == track.prompt_len => {
                self.memory.fork(&leader.table, longest_known, &mut track.table);
                (longest_known, leader.drafted.min(longest_known))
            }
            _ => {
                let words = track.words(longest_known);
                let cached = self.memory.adopt(&mut track.table, &words);
                (cached, cached)
            }
        };
        let copy = cached < track.tokens.len() && self.memory.is_shared(&track.table, cached);
        let needed = self.memory.pages_for(track.tokens.len()) - track.table.pages.len() + usize::from(copy);
        if self.memory.available() < needed + spare {
            self.memory.release(&mut track.table);
            return false;
        }
        if copy && let Some(copy) = self.memory.unshare(&mut track.table, cached) {
            self.copies.push(copy);
        }
        let grown = self.memory.grow(&mut track.table, track.tokens.len());
        debug_assert!(grown, "the pages were counted");
        track.computed = cached;
        track.drafted = drafted;
        plan.cached_tokens += cached;
        true
    }
}

/// The next tokens of a sequence, as many as there are rows for.
fn chunk(track: &Track, most: usize, plan: &mut Plan, prompts: &mut Vec<Work>, rows: &mut usize) {
    let in_prompt = track.computed < track.prompt_len;
    let end = if in_prompt { track.prompt_len } else { track.tokens.len() };
    let len = (end - track.computed).min(*rows).min(most);
    if len == 0 {
        return;
    }
    *rows -= len;
    let work = Work {
        id: track.id,
        class: if in_prompt { RowClass::Prompt } else { RowClass::Generated },
        start: track.computed,
        len,
        drafts: 0,
        is_last: track.computed + len == track.tokens.len(),
    };
    if in_prompt { prompts.push(work) } else { plan.works.push(work) }
}
