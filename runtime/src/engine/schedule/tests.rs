//! The scheduler over a simulated cache, each slot of which holds what would follow from the keys and values of a token: its whole
//! history with classes. A sequence that reads anything but its own history has been given a wrong page.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::super::track::Track;
use super::*;

const LIMITS: Limits = Limits {
    pages: 24,
    page_size: 4,
    step_tokens: 24,
    chunk_tokens: 16,
    max_running: 5,
    batching: Batching::Continuous,
    prefix_cache: true,
    draft_model: false,
};

/// A request of the simulation.
#[derive(Debug, Clone)]
struct Wanted {
    at_step: usize,
    prompt: Vec<u32>,
    max_new: usize,
    priority: i32,
    drafts: usize,
    /// Shares the prompt of the one before it.
    follows: bool,
    cancel_after: Option<usize>,
}

struct Simulation {
    scheduler: Scheduler,
    /// By slot: the hash of the history that ends there.
    cache: Vec<u64>,
    limits: Limits,
    wanted: HashMap<Id, Wanted>,
    done: Vec<Id>,
    random: u64,
    preempted: usize,
    cached_tokens: usize,
    copies: usize,
}

/// The histories of a sequence's tokens.
fn histories(track: &Track, len: usize) -> Vec<u64> {
    let mut hash = 1u64;
    let mut all = Vec::with_capacity(len);
    for word in track.words(len) {
        hash = (hash ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        all.push(hash);
    }
    all
}

impl Simulation {
    fn new(limits: Limits, seed: u64) -> Simulation {
        Simulation {
            scheduler: Scheduler::new(limits),
            cache: vec![0; limits.pages * limits.page_size],
            limits,
            wanted: HashMap::new(),
            done: Vec::new(),
            random: seed | 1,
            preempted: 0,
            cached_tokens: 0,
            copies: 0,
        }
    }

    fn below(&mut self, end: usize) -> usize {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % end
    }

    fn submit(&mut self, id: Id, wanted: &Wanted, leader: Option<Id>) {
        let track = Track {
            id,
            tokens: wanted.prompt.clone(),
            prompt_len: wanted.prompt.len(),
            leader,
            drafts_wished: wanted.drafts,
            ..Track::default()
        };
        self.wanted.insert(id, wanted.clone());
        self.scheduler.submit(track, wanted.priority);
    }

    fn slot(&self, track: &Track, position: usize) -> usize {
        let page = track.table.pages[position / self.limits.page_size] as usize;
        page * self.limits.page_size + position % self.limits.page_size
    }

    /// Plans, checks the plan, computes and commits it. Tells how many rows it had.
    fn step(&mut self) -> usize {
        let plan = self.scheduler.plan();
        self.preempted += plan.preempted;
        self.cached_tokens += plan.cached_tokens;
        self.check(&plan);
        self.copy(&plan);
        for work in &plan.works {
            let track = self.scheduler.track(work.id).expect("planned sequences are here");
            let written = histories(track, work.start + work.len);
            for position in work.start..work.start + work.len + work.drafts {
                let slot = self.slot(track, position);
                let page = (slot / self.limits.page_size) as u32;
                // A source of copies is held until the step is over, and was read before it is written.
                let sources = plan.copies.iter().filter(|&&(source, _)| source == page).count() as u32;
                let holders = self.scheduler.memory.holders(page) - sources;
                assert_eq!(holders, 1, "sequence {} writes to a page that others hold", work.id);
                // A draft's keys are nobody's history.
                self.cache[slot] = written.get(position).copied().unwrap_or(u64::MAX);
            }
        }
        for work in &plan.works {
            let track = self.scheduler.track(work.id).expect("planned sequences are here");
            for (position, history) in histories(track, work.start + work.len).into_iter().enumerate() {
                assert_eq!(
                    self.cache[self.slot(track, position)],
                    history,
                    "{work:?} reads token {position}"
                );
            }
        }
        self.scheduler.end_step();
        for work in &plan.works {
            self.commit(work);
        }
        plan.rows()
    }

    fn check(&self, plan: &Plan) {
        assert!(plan.rows() <= self.limits.step_tokens, "{} rows", plan.rows());
        assert!(plan.works.is_sorted_by_key(|work| work.class));
        let ids: HashSet<Id> = plan.works.iter().map(|work| work.id).collect();
        assert_eq!(ids.len(), plan.works.len(), "a sequence has two parts of a step");
        assert!(self.scheduler.counts().0 <= self.limits.max_running);
        for work in &plan.works {
            let track = self.scheduler.track(work.id).expect("planned sequences are here");
            let end = work.start + work.len;
            assert_eq!(work.start, track.computed);
            assert!(work.len > 0 && end <= track.tokens.len());
            assert!((work.start..end).all(|position| track.class(position) == work.class));
            assert_eq!(work.is_last, end == track.tokens.len());
            assert!(end + work.drafts <= track.table.pages.len() * self.limits.page_size);
            assert!(work.drafts == 0 || (work.is_last && work.len == 1));
        }
    }

    fn copy(&mut self, plan: &Plan) {
        let written: HashSet<u32> = plan.copies.iter().map(|&(_, to)| to).collect();
        assert_eq!(written.len(), plan.copies.len());
        assert!(plan.copies.iter().all(|(from, _)| !written.contains(from)));
        self.copies += plan.copies.len();
        for &(from, to) in &plan.copies {
            let from = from as usize * self.limits.page_size;
            self.cache.copy_within(from..from + self.limits.page_size, to as usize * self.limits.page_size);
        }
    }

    fn commit(&mut self, work: &Work) {
        let end = work.start + work.len;
        if !work.is_last {
            return self.scheduler.advance(work.id, end, end, &[]);
        }
        let accepted = self.below(work.drafts + 1);
        let track = self.scheduler.track(work.id).expect("planned sequences are here");
        // What follows is a function of the history, so that sequences with one prompt say the same.
        let mut tokens = track.tokens.clone();
        for _ in 0..=accepted {
            let sum = tokens.iter().fold(7u32, |sum, token| sum.wrapping_mul(31).wrapping_add(*token));
            tokens.push(sum % 3);
        }
        let new = tokens[track.tokens.len()..].to_vec();
        let answer = tokens.len() - track.prompt_len;
        // Accepted drafts have their keys.
        for position in end..end + accepted {
            let slot = self.slot(track, position);
            let history = {
                let whole =
                    Track { tokens: tokens.clone(), prompt_len: track.prompt_len, ..Track::default() };
                histories(&whole, position + 1)[position]
            };
            self.cache[slot] = history;
        }
        self.scheduler.advance(work.id, end + accepted, end + accepted, &new);
        if answer >= self.wanted[&work.id].max_new {
            self.scheduler.remove(work.id, true);
            self.done.push(work.id);
        }
    }

    /// Runs until all of `wanted` are done or cancelled.
    fn run(&mut self, wanted: &[Wanted]) {
        let mut step = 0;
        let mut idle = 0;
        let mut submitted = 0;
        while submitted < wanted.len() || !self.scheduler.is_empty() {
            while let Some(next) = wanted.get(submitted).filter(|next| next.at_step <= step) {
                let leader = next.follows.then(|| submitted.checked_sub(1)).flatten();
                let shared = leader.map(|leader| wanted[leader].prompt.clone());
                let request = Wanted { prompt: shared.unwrap_or(next.prompt.clone()), ..next.clone() };
                let same = leader.filter(|&leader| self.wanted[&(leader as Id)].prompt == request.prompt);
                self.submit(submitted as Id, &request, same.map(|leader| leader as Id));
                submitted += 1;
            }
            for (id, request) in wanted.iter().enumerate() {
                if request.cancel_after.is_some_and(|after| request.at_step + after == step) {
                    self.scheduler.remove(id as Id, id % 2 == 0);
                }
            }
            let busy = !self.scheduler.is_empty();
            idle = if self.step() == 0 && busy { idle + 1 } else { 0 };
            assert!(idle < 2, "nothing moves");
            step += 1;
            assert!(step < 20_000, "no end");
        }
        assert_eq!(self.scheduler.memory.available(), self.limits.pages, "pages were leaked");
    }
}

fn wanted() -> impl Strategy<Value = Wanted> {
    // Few tokens and lengths about a page's: prefixes meet.
    let prompt = (prop::sample::select(vec![1usize, 3, 4, 5, 8, 9, 13, 31]), 0u32..2)
        .prop_flat_map(|(len, first)| (Just(first), prop::collection::vec(0u32..2, len - 1)))
        .prop_map(|(first, rest)| [&[first][..], &rest].concat());
    let cancel = prop::option::weighted(0.2, 0usize..12);
    (0usize..30, prompt, 1usize..40, -2i32..3, 0usize..4, any::<bool>(), cancel).prop_map(
        |(at_step, prompt, max_new, priority, drafts, follows, cancel_after)| Wanted {
            at_step,
            prompt,
            max_new,
            priority,
            drafts,
            follows,
            cancel_after,
        },
    )
}

proptest! {
    #[test]
    fn pages_are_never_leaked_or_shared_wrongly_and_all_requests_end(
        requests in prop::collection::vec(wanted(), 1..24),
        seed in any::<u64>(),
        pages in 18usize..40,
        chunk_tokens in prop::sample::select(vec![1usize, 5, 16]),
        prefix_cache in any::<bool>(),
        is_static in any::<bool>(),
    ) {
        let mut requests = requests;
        requests.sort_by_key(|request| request.at_step);
        let batching = if is_static { Batching::Static } else { Batching::Continuous };
        let limits = Limits { pages, chunk_tokens, prefix_cache, batching, ..LIMITS };
        let mut simulation = Simulation::new(limits, seed);
        simulation.run(&requests);
        let kept = requests.iter().filter(|request| request.cancel_after.is_none()).count();
        prop_assert!(simulation.done.len() >= kept);
    }
}

fn plain(at_step: usize, prompt: usize, max_new: usize, priority: i32) -> Wanted {
    let prompt = (0..prompt as u32).map(|i| (i + at_step as u32) % 7).collect();
    Wanted { at_step, prompt, max_new, priority, drafts: 0, follows: false, cancel_after: None }
}

#[test]
fn a_pool_too_small_for_all_preempts_and_still_ends() {
    let limits = Limits { pages: 12, ..LIMITS };
    let mut simulation = Simulation::new(limits, 1);
    let requests: Vec<Wanted> = (0..6).map(|at| plain(at, 9, 36, 0)).collect();
    simulation.run(&requests);
    assert!(simulation.preempted > 0);
    assert_eq!(simulation.done.len(), 6);
}

#[test]
fn waiting_makes_a_low_priority_good() {
    let mut simulation = Simulation::new(Limits { max_running: 1, ..LIMITS }, 1);
    simulation.submit(0, &plain(0, 4, 4, -1), None);
    // An endless stream of requests that are more urgent: one is always waiting.
    let mut id = 1;
    while !simulation.done.contains(&0) {
        while simulation.scheduler.counts().1 < 2 {
            simulation.submit(id, &plain(0, 4, 4, 0), None);
            id += 1;
        }
        simulation.step();
        assert!(id < 2 * AGEING_STEPS as Id, "starved");
    }
    // It was overtaken for as long as its priority says.
    assert!(simulation.done.len() > AGEING_STEPS as usize / 8);
}

#[test]
fn answers_of_one_prompt_share_its_pages() {
    let mut simulation = Simulation::new(LIMITS, 1);
    let first = plain(0, 15, 6, 0);
    simulation.submit(0, &first, None);
    for id in 1..4 {
        simulation.submit(id, &first, Some(0));
    }
    simulation.step();
    // Without the first one's prompt they wait.
    assert_eq!(simulation.scheduler.counts(), (1, 3));
    simulation.step();
    assert_eq!(simulation.scheduler.counts(), (4, 0));
    assert_eq!((simulation.copies, simulation.cached_tokens), (3, 3 * 14));
    while !simulation.scheduler.is_empty() {
        simulation.step();
    }
    assert_eq!(simulation.scheduler.memory.available(), LIMITS.pages);
}

#[test]
fn a_prompt_s_pages_do_not_serve_an_answer_of_the_same_tokens() {
    let mut simulation = Simulation::new(LIMITS, 1);
    simulation.submit(0, &plain(0, 4, 9, 0), None);
    simulation.step();
    let tokens = loop {
        simulation.step();
        let track = simulation.scheduler.track(0).expect("it runs");
        if track.tokens.len() > 10 {
            break track.tokens.clone();
        }
    };
    // The second page holds answers: a prompt of those tokens computes it as a prompt.
    let again = Wanted { prompt: tokens, ..plain(0, 1, 1, 0) };
    simulation.submit(1, &again, None);
    simulation.step();
    assert_eq!(simulation.cached_tokens, 4);
}

#[test]
fn a_static_batch_starts_whole_and_is_followed_when_it_is_done() {
    let mut simulation = Simulation::new(Limits { batching: Batching::Static, ..LIMITS }, 1);
    for id in 0..7 {
        simulation.submit(id, &plain(0, 8, 2 + id as usize, 0), None);
    }
    simulation.step();
    assert_eq!(simulation.scheduler.counts(), (5, 2));
    while simulation.scheduler.counts().1 > 0 {
        assert!(simulation.done.len() <= 5);
        simulation.step();
    }
    assert_eq!(simulation.done.len(), 5);
}
