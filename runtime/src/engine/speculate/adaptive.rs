//! How many drafts pay, found by timing: the seconds a token of steps with so many drafts, beside those of the numbers next to it.
//!
//! What was tried in vain is a debt, paid off by a share of the time that goes by; until it is, nothing else is tried. So trials cost no
//! more than that share and one trial, however many there would be to make: on a GPU each brings sizes of step that are new, and
//! whose first steps take many times as long as later ones. Those are paid for but not judged by.

use std::collections::BTreeMap;

#[cfg(test)]
mod tests;

/// Numbers of drafts that are tried, as far as the most allowed.
const ARMS: [usize; 9] = [0, 1, 2, 3, 4, 6, 8, 11, 15];
/// Of all time, what trials that don't pay may take.
const TRIALS_SHARE: f64 = 0.01;
/// Steps before the first trial, and between those of a number that doesn't pay.
const SHORTEST_PAUSE: u32 = 24;
const LONGEST_PAUSE: u32 = 1536;
/// Steps before a trial of more drafts where the last one paid.
const PAUSE_AFTER_GAIN: u32 = 12;
/// Steps of a trial that are judged: at least, at most, and the sequences' steps that are enough in between.
const JUDGED: [u32; 2] = [6, 24];
const JUDGED_OF_SEQUENCES: u32 = 48;
/// All steps of a trial.
const LONGEST_TRIAL: u32 = 64;
/// Debt at which there are no more drafts, in steps without: steps whose sizes are new all the time never pay.
const MOST_DEBT: f64 = 24.0;
/// A trial that costs so many times as much is given up after a few steps.
const HOPELESS: f64 = 1.1;
const HOPELESS_AFTER: u32 = 3;
/// What more drafts must cost at most, of what fewer do.
const PAYS: f64 = 0.95;
/// What is left of older timings at each new one.
const MEMORY: f64 = 0.97;
/// A step counts as at most so many average ones: whatever else the machine did is no news of drafts.
const OUTLIER: f64 = 2.0;

/// A step that did nothing but choose tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timed {
    /// Whose.
    pub sequences: usize,
    /// How many.
    pub tokens: usize,
    pub seconds: f64,
    /// Whether steps like it will take as long.
    pub is_steady: bool,
}

/// Seconds and the tokens they yielded, added up apart: a step that yields many isn't worth more than its tokens.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    seconds: f64,
    tokens: f64,
    /// Steps as they are remembered, and all.
    weight: f64,
    steps: u32,
}

impl Cost {
    fn add(&mut self, memory: f64, step: Timed) {
        self.seconds = self.seconds * memory + self.seconds_of(step);
        self.tokens = self.tokens * memory + step.tokens as f64;
        self.weight = self.weight * memory + 1.0;
        self.steps += 1;
    }

    /// What a step counts as.
    fn seconds_of(&self, step: Timed) -> f64 {
        match self.steps {
            0..3 => step.seconds,
            _ if !step.is_steady => step.seconds,
            _ => step.seconds.min(OUTLIER * self.per_step()),
        }
    }

    fn per_token(&self) -> f64 {
        self.seconds / self.tokens
    }

    fn per_step(&self) -> f64 {
        self.seconds / self.weight
    }
}

/// A number of drafts on trial.
#[derive(Debug, Default)]
struct Trial {
    arm: usize,
    /// Of steady steps.
    cost: Cost,
    steps: u32,
}

/// The search at one size of batch: a step up or down at a time, in ever longer intervals while nothing is gained.
#[derive(Debug)]
struct Search {
    arm: usize,
    cost: Cost,
    /// What no drafts cost when last seen, where there are some now.
    off: Option<Cost>,
    trial: Option<Trial>,
    pause: u32,
    until_trial: u32,
    tries_up: bool,
}

impl Default for Search {
    fn default() -> Self {
        let (pause, until_trial) = (SHORTEST_PAUSE, SHORTEST_PAUSE);
        let (cost, off, trial) = (Cost::default(), None, None);
        Search { arm: 0, cost, off, trial, pause, until_trial, tries_up: true }
    }
}

/// Finds the number of drafts that pays.
#[derive(Debug)]
pub(crate) struct Adaptive {
    arms: usize,
    /// By the size of the batch, in powers of two: what pays for one sequence need not pay for many.
    searches: BTreeMap<u32, Search>,
    /// Seconds that drafts took longer than none, less what has been paid off.
    debt: f64,
}

impl Adaptive {
    pub fn new(most: usize) -> Adaptive {
        let arms = ARMS.iter().filter(|&&drafts| drafts <= most).count();
        Adaptive { arms, searches: BTreeMap::new(), debt: 0.0 }
    }

    /// Drafts for the next step of so many sequences.
    pub fn drafts(&mut self, sequences: usize) -> usize {
        let search = self.searches.entry(bucket(sequences)).or_default();
        ARMS[search.trial.as_ref().map_or(search.arm, |trial| trial.arm)]
    }

    /// A step is over.
    pub fn record(&mut self, step: Timed) {
        if step.tokens == 0 {
            return;
        }
        let search = self.searches.entry(bucket(step.sequences)).or_default();
        let lost = search.lost(step);
        self.debt = (self.debt + lost - TRIALS_SHARE * step.seconds).max(0.0);
        search.record(step, self.arms, self.debt);
    }
}

fn bucket(sequences: usize) -> u32 {
    sequences.max(1).ilog2()
}

impl Search {
    /// What its tokens cost without drafts.
    fn off(&self) -> Cost {
        self.off.unwrap_or(self.cost)
    }

    /// Seconds by which a step with drafts took longer than its tokens without.
    fn lost(&self, step: Timed) -> f64 {
        let usual = match &self.trial {
            Some(trial) => &trial.cost,
            None if self.arm > 0 => &self.cost,
            None => return 0.0,
        };
        usual.seconds_of(step) - step.tokens as f64 * self.off().per_token()
    }

    /// Takes a step in. Of `debt` seconds.
    fn record(&mut self, step: Timed, arms: usize, debt: f64) {
        let bankrupt = self.arm > 0 && debt > MOST_DEBT * self.off().per_step();
        let Some(trial) = &mut self.trial else {
            if step.is_steady {
                self.cost.add(MEMORY, step);
            }
            if bankrupt {
                self.move_to(0, self.off());
            } else if step.is_steady {
                self.until_trial = self.until_trial.saturating_sub(1);
                self.begin(arms, debt > 0.0);
            }
            return;
        };
        trial.steps += 1;
        if step.is_steady {
            trial.cost.add(1.0, step);
        }
        let judged = trial.cost.steps;
        let hopeless = judged >= HOPELESS_AFTER && trial.cost.per_token() > HOPELESS * self.cost.per_token();
        let [least, most] = JUDGED;
        let enough = judged >= least && judged.saturating_mul(step.sequences as u32) >= JUDGED_OF_SEQUENCES;
        let too_dear = trial.steps >= LONGEST_TRIAL || debt > MOST_DEBT * self.off().per_step();
        if hopeless || too_dear || enough || judged >= most {
            self.end(hopeless || (too_dear && !enough));
        }
    }

    /// Begins a trial if it's time for one.
    fn begin(&mut self, arms: usize, in_debt: bool) {
        let per_token = self.cost.per_token();
        let rested = self.cost.steps >= SHORTEST_PAUSE;
        if self.arm > 0 && rested && self.off.is_some_and(|off| per_token > off.per_token()) {
            // What is said has changed, or the first trial misled.
            self.trial = Some(Trial::default());
            return;
        }
        if self.until_trial > 0 || in_debt {
            return;
        }
        let up = self.arm + 1 < arms && (self.tries_up || self.arm == 0);
        let arm = match (up, self.arm) {
            (true, arm) => arm + 1,
            (false, 0) => return self.until_trial = LONGEST_PAUSE,
            (false, arm) => arm - 1,
        };
        self.trial = Some(Trial { arm, ..Trial::default() });
    }

    fn end(&mut self, failed: bool) {
        let Some(Trial { arm, cost, .. }) = self.trial.take() else { return };
        if arm == 0 && cost.steps > 0 {
            self.off = Some(cost);
        }
        // More drafts must pay; fewer need only be as good.
        let bound = if arm > self.arm { PAYS } else { 1.0 };
        if !failed && cost.per_token() < bound * self.cost.per_token() {
            self.move_to(arm, cost);
        } else {
            self.tries_up = arm < self.arm;
            self.rest();
        }
    }

    fn move_to(&mut self, arm: usize, cost: Cost) {
        if self.arm == 0 {
            self.off = Some(self.cost);
        }
        self.tries_up = arm > self.arm;
        (self.arm, self.cost) = (arm, cost);
        if arm == 0 {
            self.off = None;
        }
        if self.tries_up {
            self.pause = SHORTEST_PAUSE;
            self.until_trial = PAUSE_AFTER_GAIN;
        } else {
            // Up and down again has gained nothing.
            self.rest();
        }
    }

    fn rest(&mut self) {
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        self.until_trial = self.pause;
    }
}
