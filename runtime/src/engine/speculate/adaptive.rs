//! How many drafts pay. A step with so many is timed, a few times; what it yields is worked out of how often a draft stands behind those
//! that do, which every step with drafts tells, however many it had (Leviathan et al. 2023, arXiv 2211.17192, section 3.3, with a rate for
//! each place). So a number that was never tried is known well enough to be worth trying or not.
//!
//! What was tried in vain is a debt, paid off by a share of the time that goes by; until it is, nothing else is tried. So trials cost no
//! more than that share and one trial, however many there would be to make: on a GPU each brings sizes of step that are new, and
//! whose first steps take many times as long as later ones. Those are paid for but not judged by.

use std::collections::BTreeMap;

use tilewright_host::MAX_DRAFTS;

#[cfg(test)]
mod tests;

/// Numbers of drafts that are tried, as far as the most allowed.
const ARMS: [usize; 9] = [0, 1, 2, 3, 4, 6, 8, 11, 15];
/// Of all time, what trials that don't pay may take.
const TRIALS_SHARE: f64 = 0.01;
/// Steps before the first trial, and between trials.
const PAUSE: u32 = 8;
/// Steps with drafts after which none are timed again, at first and, twice as many each time, at last: everything is measured by them.
const SHORTEST_TRUST: u32 = 16;
const LONGEST_TRUST: u32 = 512;
/// Steps of a trial that are judged, and of one of none.
const JUDGED: u32 = 4;
const JUDGED_OF_NONE: u32 = 8;
/// All steps of a trial.
const LONGEST_TRIAL: u32 = 64;
/// Debt at which a trial ends, and the most that is paid off of one, in steps without drafts.
const MOST_DEBT: f64 = 24.0;
/// Debt at which drafts that are in use are given up, likewise: each size of step that they bring costs some ten steps once, which is paid
/// off by what they save; steps whose sizes are new all the time never pay.
const MOST_INVESTED: f64 = 160.0;
/// A trial that costs so many times as much is given up after a few steps, which are also those that a time is known by.
const HOPELESS: f64 = 1.1;
const FEW: u32 = 3;
/// What drafts must cost at most, of what the number in use does.
const PAYS: f64 = 0.95;
/// What is left of older timings, and of what was seen of drafts, at each new step.
const TIMES_MEMORY: f64 = 0.97;
const DRAFTS_MEMORY: f64 = 0.99;
/// A step counts as at most so many average ones: whatever else the machine did is no news of drafts.
const OUTLIER: f64 = 2.0;
/// How often a first draft stands, as long as nothing is known, and how many drafts that counts as. Any other is taken to stand as often as the one before it.
const HOPE: f64 = 0.8;
const HOPE_WEIGHT: f64 = 4.0;
/// By what part a step of one sequence is longer for a draft that was looked up and for one that a model made, as long as nothing is known;
/// and by how much more at twice as many sequences.
const SLOPE_LOOKUP: f64 = 0.2;
const SLOPE_MODEL: f64 = 0.4;
const SLOPE_OF_SIZE: f64 = 0.1;

/// A step that did nothing but choose tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timed {
    /// Whose.
    pub sequences: usize,
    /// How many.
    pub tokens: usize,
    pub verified: Verified,
    pub seconds: f64,
    /// Whether steps like it will take as long.
    pub is_steady: bool,
}

/// What became of a step's drafts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Verified {
    /// Sequences that had any.
    sequences: usize,
    /// At each place, the sequences whose drafts stood up to it.
    stood: [usize; MAX_DRAFTS as usize],
}

impl Verified {
    /// Takes in a sequence of whose drafts the first `stood` did.
    pub fn add(&mut self, drafts: usize, stood: usize) {
        self.sequences += usize::from(drafts > 0);
        self.stood.iter_mut().take(stood).for_each(|count| *count += 1);
    }
}

/// How often the draft at each place stands where those before it do: how many there were, and how many of them did.
#[derive(Debug, Default)]
struct Rates([[f64; 2]; MAX_DRAFTS as usize]);

impl Rates {
    /// Takes in a step that asked for so many drafts a sequence.
    fn add(&mut self, drafts: usize, step: &Timed) {
        self.0.iter_mut().flatten().for_each(|count| *count *= DRAFTS_MEMORY);
        if step.verified.sequences == 0 {
            return;
        }
        let mut before = step.sequences;
        for ([all, stood], &now) in self.0.iter_mut().zip(&step.verified.stood).take(drafts) {
            *all += before as f64;
            *stood += now as f64;
            before = now;
        }
    }

    /// Tokens of a sequence's step with so many drafts.
    fn tokens(&self, drafts: usize) -> f64 {
        let (mut rate, mut chance, mut tokens) = (HOPE, 1.0, 1.0);
        for [all, stood] in &self.0[..drafts] {
            rate = (stood + HOPE_WEIGHT * rate) / (all + HOPE_WEIGHT);
            chance *= rate;
            tokens += chance;
        }
        tokens
    }
}

/// What steps with a number of drafts take.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    seconds: f64,
    sequences: f64,
    /// Steps as they are remembered, and all.
    weight: f64,
    steps: u32,
    /// Seconds a sequence of the first few, whose median counts.
    first: [f64; FEW as usize],
}

impl Times {
    fn add(&mut self, step: &Timed) {
        let [seconds, sequences] = [self.seconds_of(step), step.sequences as f64];
        self.seconds = self.seconds * TIMES_MEMORY + seconds;
        self.sequences = self.sequences * TIMES_MEMORY + sequences;
        self.weight = self.weight * TIMES_MEMORY + 1.0;
        if let Some(first) = self.first.get_mut(self.steps as usize) {
            *first = seconds / sequences;
        }
        self.steps += 1;
        if self.steps == FEW {
            self.first.sort_by(f64::total_cmp);
            self.seconds = self.first[self.first.len() / 2] * self.sequences;
        }
    }

    /// What a step counts as.
    fn seconds_of(&self, step: &Timed) -> f64 {
        match self.is_known() && step.is_steady {
            true => step.seconds.min(OUTLIER * self.per_step()),
            false => step.seconds,
        }
    }

    fn is_known(&self) -> bool {
        self.steps >= FEW
    }

    fn per_step(&self) -> f64 {
        self.seconds / self.weight
    }

    fn per_sequence(&self) -> f64 {
        self.seconds / self.sequences
    }
}

/// A number of drafts on trial.
#[derive(Debug, Default)]
struct Trial {
    arm: usize,
    /// Of steady steps.
    times: Times,
    steps: u32,
}

/// The search at one size of batch.
#[derive(Debug, Default)]
struct Search {
    guessed_slope: f64,
    arm: usize,
    times: [Times; ARMS.len()],
    trial: Option<Trial>,
    /// Steady steps since the last trial.
    rested: u32,
    /// Steps with drafts since none were timed, and how many may be.
    since_none: u32,
    trust: u32,
}

/// Finds the number of drafts that pays.
#[derive(Debug)]
pub(crate) struct Adaptive {
    arms: usize,
    guessed_slope: f64,
    rates: Rates,
    /// By [`size`]: what pays for one sequence need not pay for many.
    searches: BTreeMap<u32, Search>,
    /// The size that was last asked for.
    size: u32,
    /// Seconds that drafts took longer than none, less what has been paid off.
    debt: f64,
}

impl Adaptive {
    /// Of at most so many drafts, looked up or made by a model.
    pub fn new(most: usize, by_model: bool) -> Adaptive {
        let arms = ARMS.iter().filter(|&&drafts| drafts <= most).count();
        let guessed_slope = if by_model { SLOPE_MODEL } else { SLOPE_LOOKUP };
        Adaptive {
            arms,
            guessed_slope,
            rates: Rates::default(),
            searches: BTreeMap::new(),
            size: 0,
            debt: 0.0,
        }
    }

    /// Drafts for the next step of so many sequences.
    pub fn drafts(&mut self, sequences: usize) -> usize {
        self.size = size(sequences);
        let guessed_slope = self.guessed_slope + SLOPE_OF_SIZE * f64::from(self.size);
        let search = self.searches.entry(self.size);
        ARMS[search.or_insert(Search { guessed_slope, ..Search::default() }).asked()]
    }

    /// A step is over.
    pub fn record(&mut self, step: Timed) {
        let is_as_asked = size(step.sequences) == self.size && step.tokens > 0;
        let Some(search) = self.searches.get_mut(&self.size).filter(|_| is_as_asked) else { return };
        self.rates.add(ARMS[search.asked()], &step);
        let debt = self.debt + search.lost(&step) - TRIALS_SHARE * step.seconds;
        // The first step of all may wait for a compiler; what drafts in use came to is paid off whole.
        let most = search.most_debt().max(self.debt);
        search.record(&step, &self.rates, debt);
        self.debt = debt.min(most).max(0.0);
        search.begin(self.arms, &self.rates, self.debt > 0.0);
    }
}

/// The size of a batch, as a power of two.
fn size(sequences: usize) -> u32 {
    sequences.max(1).ilog2()
}

impl Search {
    fn asked(&self) -> usize {
        self.trial.as_ref().map_or(self.arm, |trial| trial.arm)
    }

    /// Seconds by which a step with drafts took longer than its tokens without.
    fn lost(&self, step: &Timed) -> f64 {
        if step.verified.sequences == 0 || !self.times[0].is_known() {
            return 0.0;
        }
        let usual = self.trial.as_ref().map_or(&self.times[self.arm], |trial| &trial.times);
        usual.seconds_of(step) - step.tokens as f64 * self.times[0].per_sequence()
    }

    /// Seconds.
    fn most_debt(&self) -> f64 {
        let steps = if self.arm > 0 { MOST_INVESTED } else { MOST_DEBT };
        if self.times[0].is_known() { steps * self.times[0].per_step() } else { f64::INFINITY }
    }

    /// Takes a step in. Of `debt` seconds.
    fn record(&mut self, step: &Timed, rates: &Rates, debt: f64) {
        if step.verified.sequences == 0 && self.asked() > 0 {
            // Nobody had a draft.
            return;
        }
        let bankrupt = debt > self.most_debt();
        let here = self.per_token(self.arm, rates);
        let Some(trial) = &mut self.trial else {
            if step.is_steady {
                self.times[self.arm].add(step);
                self.rested += 1;
                self.since_none += 1;
            }
            if bankrupt && self.arm > 0 {
                self.move_to(0);
            }
            return;
        };
        trial.steps += 1;
        if step.is_steady {
            trial.times.add(step);
        }
        let Trial { arm, times, steps } = *trial;
        let cost = times.per_sequence() / rates.tokens(ARMS[arm]);
        let is_hopeless = times.is_known() && cost > HOPELESS * here;
        let is_judged = times.steps >= if arm == 0 { JUDGED_OF_NONE } else { JUDGED };
        if !(is_hopeless || is_judged || bankrupt || steps >= LONGEST_TRIAL) {
            return;
        }
        if times.is_known() {
            self.times[arm] = times;
        }
        if is_judged && cost < bound(arm) * here {
            self.move_to(arm);
        } else if arm == 0 {
            (self.since_none, self.trust) = (0, (2 * self.trust).min(LONGEST_TRUST));
        }
        (self.trial, self.rested) = (None, 0);
    }

    fn move_to(&mut self, arm: usize) {
        if self.arm == 0 || arm == 0 {
            (self.since_none, self.trust) = (0, SHORTEST_TRUST);
        }
        (self.arm, self.rested) = (arm, 0);
    }

    /// Begins a trial of the number that promises most, if it's time for one.
    fn begin(&mut self, arms: usize, rates: &Rates, in_debt: bool) {
        if self.trial.is_some() || self.rested < PAUSE || !self.times[0].is_known() {
            return;
        }
        if self.arm > 0 && self.since_none >= self.trust {
            self.trial = Some(Trial::default());
            return;
        }
        let promise = |arm: usize| {
            self.per_token(arm, rates) / if self.times[arm].is_known() { bound(arm) } else { 1.0 }
        };
        let others = (0..arms).filter(|&arm| arm != self.arm && (arm == 0 || !in_debt));
        let best = others.map(|arm| (promise(arm), arm)).min_by(|one, other| one.0.total_cmp(&other.0));
        if let Some((cost, arm)) = best
            && cost < self.per_token(self.arm, rates)
        {
            self.trial = Some(Trial { arm, ..Trial::default() });
        }
    }

    /// Seconds a token, as far as is known.
    fn per_token(&self, arm: usize, rates: &Rates) -> f64 {
        self.per_sequence(arm) / rates.tokens(ARMS[arm])
    }

    /// Seconds of a step, by its sequences: between or beyond numbers that were timed, what lies on a line with the nearest two.
    fn per_sequence(&self, arm: usize) -> f64 {
        let known = |&arm: &usize| self.times[arm].is_known();
        let time = |arm: usize| self.times[arm].per_sequence();
        if arm == 0 || known(&arm) {
            return time(arm);
        }
        let below = (1..arm).rev().find(known).unwrap_or(0);
        let other = (arm + 1..ARMS.len()).find(known).or_else(|| (0..below).rev().find(known));
        let slope = match other {
            Some(other) => (time(other) - time(below)) / (ARMS[other] as f64 - ARMS[below] as f64),
            None => self.guessed_slope * time(0),
        };
        time(below) + slope * (ARMS[arm] - ARMS[below]) as f64
    }
}

/// What a number of drafts must cost at most, of what the one in use does: none need only be as good.
fn bound(arm: usize) -> f64 {
    if arm == 0 { 1.0 } else { PAYS }
}
