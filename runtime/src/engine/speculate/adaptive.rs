//! How many drafts pay, found by timing: the seconds a token of steps with so many drafts, beside those of the numbers next to it.

use std::collections::BTreeMap;

/// Numbers of drafts that are tried, as far as the most allowed.
const ARMS: [usize; 9] = [0, 1, 2, 3, 4, 6, 8, 11, 15];
/// Steps before the first trial, and after one that paid.
const SHORTEST_PAUSE: u32 = 24;
/// Steps between trials that never pay.
const LONGEST_PAUSE: u32 = 1536;
/// Timed steps of a trial: at least, and at most.
const TRIAL_STEPS: [u32; 2] = [3, 10];
/// A trial that costs so many times as much is given up early.
const HOPELESS: f64 = 1.1;
/// What more drafts must cost at most, of what fewer do.
const PAYS: f64 = 0.97;
/// What is left of older timings at each new one.
const MEMORY: f64 = 0.9;

/// Seconds and the tokens they yielded, added up apart: a step that yields many isn't worth more than its tokens.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    seconds: f64,
    tokens: f64,
    steps: u32,
}

impl Cost {
    fn add(&mut self, memory: f64, seconds: f64, tokens: f64) {
        self.seconds = self.seconds * memory + seconds;
        self.tokens = self.tokens * memory + tokens;
        self.steps += 1;
    }

    fn per_token(&self) -> f64 {
        self.seconds / self.tokens
    }
}

/// A number of drafts on trial. Its first step isn't timed, as the draft model catches up in it.
#[derive(Debug)]
struct Trial {
    arm: usize,
    begun: bool,
    cost: Cost,
}

/// The search at one size of batch: a step up or down at a time, in ever longer intervals while nothing is gained.
#[derive(Debug)]
struct Search {
    arm: usize,
    cost: Cost,
    trial: Option<Trial>,
    pause: u32,
    until_trial: u32,
    tries_up: bool,
}

impl Default for Search {
    fn default() -> Self {
        let (pause, until_trial) = (SHORTEST_PAUSE, SHORTEST_PAUSE);
        Search { arm: 0, cost: Cost::default(), trial: None, pause, until_trial, tries_up: true }
    }
}

/// Finds the number of drafts that pays.
#[derive(Debug)]
pub(super) struct Adaptive {
    arms: usize,
    /// By the size of the batch, in powers of two: what pays for one sequence need not pay for many.
    searches: BTreeMap<u32, Search>,
}

impl Adaptive {
    pub fn new(most: usize) -> Adaptive {
        Adaptive { arms: ARMS.iter().filter(|&&drafts| drafts <= most).count(), searches: BTreeMap::new() }
    }

    /// Drafts for the next step of so many sequences.
    pub fn drafts(&mut self, sequences: usize) -> usize {
        let search = self.searches.entry(bucket(sequences)).or_default();
        ARMS[search.trial.as_ref().map_or(search.arm, |trial| trial.arm)]
    }

    /// A step of so many sequences that did nothing but choose `tokens` took `seconds`.
    pub fn record(&mut self, sequences: usize, tokens: usize, seconds: f64) {
        if tokens > 0 {
            let search = self.searches.entry(bucket(sequences)).or_default();
            search.record(self.arms, seconds, tokens as f64);
        }
    }
}

fn bucket(sequences: usize) -> u32 {
    sequences.max(1).ilog2()
}

impl Search {
    fn record(&mut self, arms: usize, seconds: f64, tokens: f64) {
        let Some(trial) = &mut self.trial else {
            self.cost.add(MEMORY, seconds, tokens);
            self.until_trial = self.until_trial.saturating_sub(1);
            if self.until_trial == 0 {
                self.begin(arms);
            }
            return;
        };
        if !trial.begun {
            trial.begun = true;
            return;
        }
        trial.cost.add(1.0, seconds, tokens);
        let [least, most] = TRIAL_STEPS;
        let hopeless = trial.cost.steps >= least && trial.cost.per_token() > HOPELESS * self.cost.per_token();
        if hopeless || trial.cost.steps >= most {
            self.end();
        }
    }

    fn begin(&mut self, arms: usize) {
        let up = self.arm + 1 < arms && (self.tries_up || self.arm == 0);
        let arm = match (up, self.arm) {
            (true, arm) => arm + 1,
            (false, 0) => return self.until_trial = LONGEST_PAUSE,
            (false, arm) => arm - 1,
        };
        self.trial = Some(Trial { arm, begun: false, cost: Cost::default() });
    }

    fn end(&mut self) {
        let Some(Trial { arm, cost, .. }) = self.trial.take() else { return };
        // More drafts must pay; fewer need only be as good.
        let bound = if arm > self.arm { PAYS } else { 1.0 };
        if cost.per_token() < bound * self.cost.per_token() {
            self.tries_up = arm > self.arm;
            self.arm = arm;
            self.cost = cost;
            self.pause = SHORTEST_PAUSE;
        } else {
            self.tries_up = !self.tries_up;
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        }
        self.until_trial = self.pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds a token, and the last number of drafts, of `steps` steps in which `k` drafts cost `step(k)` seconds and yield
    /// `tokens(k)`.
    fn run(
        most: usize,
        steps: usize,
        step: impl Fn(usize) -> f64,
        tokens: impl Fn(usize) -> f64,
    ) -> (f64, usize) {
        let mut adaptive = Adaptive::new(most);
        let (mut seconds, mut said, mut last) = (0.0, 0.0, 0);
        for _ in 0..steps {
            let drafts = adaptive.drafts(1);
            // A thousand sequences' tokens, so that fractions count.
            adaptive.record(1, (1000.0 * tokens(drafts)) as usize, 1000.0 * step(drafts));
            seconds += step(drafts);
            said += tokens(drafts);
            last = drafts;
        }
        (seconds / said, last)
    }

    /// Tokens of a step whose drafts stand with probability `a`.
    fn yields(a: f64, drafts: usize) -> f64 {
        (0..=drafts).map(|i| a.powi(i as i32)).sum()
    }

    #[test]
    fn drafts_that_pay_are_found() {
        let (cost, drafts) = run(8, 2000, |k| 1.0 + 0.1 * k as f64, |k| yields(0.8, k));
        let best =
            (0..=8).map(|k| (1.0 + 0.1 * f64::from(k)) / yields(0.8, k as usize)).fold(f64::MAX, f64::min);
        assert!(cost < 1.1 * best, "{cost} a token, {best} at best, {drafts} drafts");
        assert!((3..=8).contains(&drafts), "{drafts} drafts");
    }

    #[test]
    fn drafts_that_do_not_pay_cost_next_to_nothing() {
        let (cost, drafts) = run(8, 512, |k| 1.0 + 0.6 * k as f64, |k| yields(0.3, k));
        assert!(cost < 1.03, "{cost} a token");
        assert_eq!(drafts, 0);
    }
}
