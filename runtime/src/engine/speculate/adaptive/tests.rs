//! The policy alone, over machines that are made up: what steps take and how many drafts stand is known, and so is what would be best.

use std::collections::BTreeMap;

use super::*;

/// Numbers that look random, in [0, 1).
struct Chance(u64);

impl Chance {
    fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

/// What steps take, in seconds.
#[derive(Clone, Copy)]
struct Machine {
    /// A forward pass of so many rows, and one of the draft model; `None` where drafts are looked up.
    target: fn(usize) -> f64,
    draft: Option<fn(usize) -> f64>,
    /// What the first and the second step of a size take more, and a size of the draft model's.
    first_steps: [f64; 2],
    first_drafts: [f64; 2],
    /// The largest part by which a step may be off.
    noise: f64,
    /// How often a step takes this many times as long, because the machine does something else.
    hiccups: f64,
    hiccup: f64,
}

/// A GPU that serves a small model: fitted to an H200's tokens a second of the demo models (2026-11-29) and to what its first
/// steps took (2026-11-30).
const GPU: Machine = Machine {
    target: |rows| match rows {
        0..=8 => 0.2e-3 + 6.0e-6 * rows as f64,
        9..=16 => 0.31e-3,
        _ => 0.31e-3 + 8.0e-6 * (rows - 16) as f64,
    },
    draft: Some(|rows| 0.07e-3 + 2.0e-6 * rows as f64),
    first_steps: [0.2e-3, 0.8e-3],
    first_drafts: [0.1e-3, 0.5e-3],
    noise: 0.05,
    hiccups: 0.0,
    hiccup: 1.0,
};

/// A CPU, where rows cost nearly as much as steps, and no step is new.
const CPU: Machine = Machine {
    target: |rows| 0.4e-3 + 0.25e-3 * rows as f64,
    draft: Some(|rows| 0.08e-3 + 0.03e-3 * rows as f64),
    first_steps: [0.0; 2],
    first_drafts: [0.0; 2],
    noise: 0.3,
    hiccups: 0.0,
    hiccup: 1.0,
};

/// A sequence that is served.
#[derive(Clone, Copy)]
struct Served {
    tokens: usize,
    left: usize,
    drafted: usize,
}

/// How many drafts a step.
enum Drafts<'a> {
    Fixed(usize),
    Adaptive(&'a mut Adaptive),
}

/// A machine that serves.
struct World {
    machine: Machine,
    chance: Chance,
    seen: BTreeMap<(bool, usize, usize), usize>,
}

impl World {
    fn new(machine: Machine, seed: u64) -> World {
        World { machine, chance: Chance(seed), seen: BTreeMap::new() }
    }

    /// Seconds of a pass, and whether they are those of any pass like it.
    fn pass(&mut self, is_draft: bool, rows: usize, longest: usize) -> (f64, bool) {
        let pages = longest.div_ceil(16).next_power_of_two();
        let seen = self.seen.entry((is_draft, rows, pages)).or_default();
        *seen += 1;
        let Machine { target, draft, first_steps, first_drafts, .. } = self.machine;
        let (time, first) =
            if is_draft { (draft.unwrap_or(|_| 0.0), first_drafts) } else { (target, first_steps) };
        let extra = first.get(*seen - 1).copied().unwrap_or(0.0);
        (time(rows) + extra, extra == 0.0)
    }

    /// A step with `drafts` drafts of each sequence, of which one stands behind another with a chance of `stands`.
    fn step(&mut self, sequences: &mut Vec<Served>, stands: f64, drafts: usize) -> Timed {
        let longest = sequences.iter().map(|it| it.tokens).max().unwrap_or(0);
        let (mut seconds, mut is_steady) = (0.0, true);
        let asked: Vec<usize> = sequences.iter().map(|it| drafts.min(it.left - 1)).collect();
        if self.machine.draft.is_some() {
            for place in 0..drafts {
                let drafting = || sequences.iter().zip(&asked).filter(|(_, asked)| **asked > place);
                let behind = |it: &Served| (it.tokens - it.drafted).max(2);
                let rows = match place {
                    0 => drafting().map(|(it, _)| behind(it)).sum(),
                    _ => drafting().count(),
                };
                if rows > 0 {
                    let catches_up = place == 0 && drafting().any(|(it, _)| behind(it) > 2);
                    let (pass, usual) = self.pass(true, rows, longest + place);
                    (seconds, is_steady) = (seconds + pass, is_steady && usual && !catches_up);
                }
            }
        }
        let rows = asked.iter().map(|asked| 1 + asked).sum();
        let (pass, usual) = self.pass(false, rows, longest + drafts);
        seconds = (seconds + pass) * (1.0 + self.machine.noise * self.chance.draw());
        if self.chance.draw() < self.machine.hiccups {
            seconds *= self.machine.hiccup;
        }
        let count = sequences.len();
        let (mut tokens, mut verified) = (0, Verified::default());
        for (it, asked) in sequences.iter_mut().zip(asked) {
            let stood = (0..asked).take_while(|_| self.chance.draw() < stands).count();
            verified.add(asked, stood);
            if asked > 0 {
                it.drafted = (it.tokens + asked - 1).min(it.tokens + stood);
            }
            it.tokens += stood + 1;
            it.left -= stood + 1;
            tokens += stood + 1;
        }
        sequences.retain(|it| it.left > 0);
        Timed { sequences: count, tokens, verified, seconds, is_steady: is_steady && usual }
    }

    /// Seconds of a round: so many sequences answered to their ends, with so many drafts a step or as many as pay.
    fn round(&mut self, count: usize, stands: f64, mut drafts: Drafts<'_>) -> f64 {
        let mut sequences = vec![Served { tokens: 16, left: TOKENS, drafted: 16 }; count];
        let mut seconds = 0.0;
        while !sequences.is_empty() {
            let wanted = match &mut drafts {
                Drafts::Fixed(drafts) => *drafts,
                Drafts::Adaptive(adaptive) => adaptive.drafts(sequences.len()),
            };
            let step = self.step(&mut sequences, stands, wanted);
            seconds += step.seconds;
            if let Drafts::Adaptive(adaptive) = &mut drafts {
                adaptive.record(step);
            }
        }
        seconds
    }
}

/// Tokens of an answer, and rounds of answers.
const TOKENS: usize = 160;
const FEW_ROUNDS: usize = 5;
const MANY_ROUNDS: usize = 60;

/// Each round's speed, as many times as fast as without drafts; adaptive, up to 8 of them.
fn speeds(machine: Machine, stands: f64, count: usize, rounds: usize, seed: u64) -> Vec<f64> {
    let mut adaptive = Adaptive::new(8, machine.draft.is_some());
    speeds_of(&mut adaptive, machine, |_| stands, count, rounds, seed)
}

/// As [`speeds`], where `stands(round)` of a round's drafts stand.
fn speeds_of(
    adaptive: &mut Adaptive,
    machine: Machine,
    stands: impl Fn(usize) -> f64,
    count: usize,
    rounds: usize,
    seed: u64,
) -> Vec<f64> {
    let (mut plain, mut drafted) = (World::new(machine, seed), World::new(machine, seed + 1));
    let speed = |round| {
        let off = plain.round(count, 0.0, Drafts::Fixed(0));
        off / drafted.round(count, stands(round), Drafts::Adaptive(adaptive))
    };
    (0..rounds).map(speed).collect()
}

/// The speed over all rounds, which take alike without drafts.
fn whole(speeds: &[f64]) -> f64 {
    speeds.len() as f64 / speeds.iter().map(|speed| 1.0 / speed).sum::<f64>()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Of some seeds, the median.
fn usually(found: impl Fn(u64) -> f64) -> f64 {
    median((0..15).map(|seed| found(7 * seed + 1)).collect())
}

/// Two CPU cores as the demo models were timed on them (2026-11-30): two to five rows take as long as each other.
const BLOCKS: Machine = Machine {
    target: |rows| match rows {
        0..=1 => 0.72e-3,
        2..=5 => 1.15e-3,
        _ => 0.29e-3 * rows as f64,
    },
    draft: Some(|rows| 0.1e-3 + 0.03e-3 * rows as f64),
    ..CPU
};

const MACHINES: [(&str, Machine); 5] = [
    ("a GPU", GPU),
    ("a GPU, by lookup", Machine { draft: None, ..GPU }),
    ("a CPU", CPU),
    ("a CPU of blocks", BLOCKS),
    ("a CPU of blocks, by lookup", Machine { draft: None, ..BLOCKS }),
];
const COUNTS: [usize; 3] = [1, 4, 16];

#[test]
fn drafts_never_cost_more_than_their_share() {
    for (name, machine) in MACHINES {
        for count in COUNTS {
            for stands in [0.0, 0.3, 0.55, 0.71, 0.8, 0.9] {
                let found = usually(|seed| whole(&speeds(machine, stands, count, MANY_ROUNDS, seed)));
                assert!(found > 0.985, "{found} on {name}, {count} sequences, {stands} of drafts stand");
            }
        }
    }
}

/// Five rounds of 160 tokens are 0.18 s at four sequences on an H200, where the median round of a search that judged by first steps, and tried
/// whatever it cost, was 0.93 times as fast as no drafts (2026-11-29), and 0.94 times on the machine here. One that judged by a number's own
/// tokens found nothing in time where few pay (2026-11-30).
#[test]
fn a_short_run_is_hardly_slower_than_without_drafts() {
    for (name, machine) in MACHINES {
        for count in COUNTS {
            for stands in [0.3, 0.55, 0.71, 0.8, 0.9] {
                let found = usually(|seed| median(speeds(machine, stands, count, FEW_ROUNDS, seed)));
                assert!(found > 0.97, "{found} on {name}, {count} sequences, {stands} of drafts stand");
                let found = usually(|seed| whole(&speeds(machine, stands, count, FEW_ROUNDS, seed)));
                assert!(
                    found > 0.965,
                    "{found} over all on {name}, {count} sequences, {stands} of drafts stand"
                );
            }
        }
    }
    for (machine, count, least) in [(GPU, 4, 1.04), (GPU, 1, 1.15), (BLOCKS, 1, 1.08)] {
        let found = usually(|seed| median(speeds(machine, 0.71, count, FEW_ROUNDS, seed)));
        assert!(found > least, "{found} of {least}");
    }
}

#[test]
fn drafts_that_pay_are_found() {
    let busy = ("a busy CPU", Machine { hiccups: 0.01, hiccup: 40.0, ..CPU });
    for (name, machine) in MACHINES.into_iter().chain([busy]) {
        // What is best doesn't depend on chance.
        let quiet = Machine { hiccups: 0.0, ..machine };
        let long = usually(|seed| whole(&speeds(machine, 0.9, 1, MANY_ROUNDS, seed)));
        let fixed = |drafts: usize| {
            let (mut plain, mut drafted) = (World::new(quiet, 5), World::new(quiet, 6));
            let round = |world: &mut World, drafts| world.round(1, 0.9, Drafts::Fixed(drafts));
            let speed = |_| round(&mut plain, 0) / round(&mut drafted, drafts);
            whole(&(0..MANY_ROUNDS).map(speed).collect::<Vec<_>>())
        };
        let best = ARMS[..7].iter().map(|&drafts| fixed(drafts)).fold(0.0, f64::max);
        assert!(best > 1.15 && long > 0.85 * best, "{long} on {name}, {best} at best");
    }
}

#[test]
fn drafts_that_no_longer_stand_are_given_up() {
    for (name, machine) in MACHINES {
        let found = usually(|seed| {
            let stands = |round| if round < 20 { 0.9 } else { 0.0 };
            let speeds =
                speeds_of(&mut Adaptive::new(8, machine.draft.is_some()), machine, stands, 1, 2 * 20, seed);
            assert!(whole(&speeds[10..20]) > 1.1, "{name}: {speeds:?}");
            whole(&speeds[20..])
        });
        assert!(found > 0.96, "{found} on {name}");
    }
}

#[test]
fn sizes_that_are_always_new_are_left_alone() {
    let mut adaptive = Adaptive::new(8, true);
    let (mut with, mut without) = (0.0, 0.0);
    for _ in 0..20_000 {
        let drafts = adaptive.drafts(4);
        // However many stand, it doesn't pay.
        let seconds = if drafts == 0 { 1.0 } else { 40.0 };
        let tokens = 4 + 4 * drafts;
        let mut verified = Verified::default();
        (0..4).for_each(|_| verified.add(drafts, drafts));
        adaptive.record(Timed { sequences: 4, tokens, verified, seconds, is_steady: drafts == 0 });
        with += seconds;
        without += tokens as f64 / 4.0;
    }
    assert!(with < 1.02 * without, "{with} seconds, {without} without drafts");
}

#[test]
fn nothing_is_tried_while_the_last_trial_is_not_paid_off() {
    let mut adaptive = Adaptive::new(8, true);
    let mut spans = Vec::new();
    let (mut since, mut lost) = (0.0, 0.0);
    for _ in 0..20_000 {
        let drafts = adaptive.drafts(1);
        // They would pay if they stood.
        let seconds = if drafts == 0 { 1.0 } else { 2.0 };
        let mut verified = Verified::default();
        verified.add(drafts, 0);
        adaptive.record(Timed { sequences: 1, tokens: 1, verified, seconds, is_steady: true });
        if drafts > 0 {
            if lost == 0.0 {
                spans.push(since);
            }
            lost += seconds - 1.0;
            since = 0.0;
        } else {
            if since == 0.0 && lost > 0.0 {
                assert!(lost <= 3.0, "three steps tell a hopeless number, {lost} seconds were lost");
                lost = 0.0;
            }
            since += seconds;
        }
    }
    assert!(spans.len() > 8, "{spans:?}");
    assert_eq!(spans[0], f64::from(PAUSE));
    assert!(spans[1..].iter().all(|&span| span > 2.9 / TRIALS_SHARE), "{spans:?}");
}

#[test]
fn none_are_timed_again_while_there_are_drafts() {
    let mut adaptive = Adaptive::new(8, true);
    let mut chance = Chance(3);
    let mut drafted = 0;
    for step in 0..2000 {
        let drafts = adaptive.drafts(1);
        let stood = (0..drafts).take_while(|_| chance.draw() < 0.6).count();
        let mut verified = Verified::default();
        verified.add(drafts, stood);
        // The machine is slow at first, so that drafts seem to pay.
        let seconds = if drafts > 0 {
            1.0 + 0.9 * drafts as f64
        } else if step < 10 {
            3.0
        } else {
            1.0
        };
        adaptive.record(Timed { sequences: 1, tokens: 1 + stood, verified, seconds, is_steady: true });
        drafted += usize::from(drafts > 0);
    }
    assert!((16..100).contains(&drafted), "{drafted} of 2000 steps");
}

#[test]
fn a_step_that_waits_for_a_compiler_is_not_paid_off_for_ever() {
    let mut adaptive = Adaptive::new(8, true);
    let mut first = None;
    let mut drafted = 0;
    for step in 0..10_000 {
        let drafts = adaptive.drafts(1);
        let is_first = drafts > 0 && *first.get_or_insert(step) == step;
        let mut verified = Verified::default();
        verified.add(drafts, drafts);
        let seconds = if is_first { 2000.0 } else { 1.0 + 0.2 * drafts as f64 };
        let tokens = 1 + drafts;
        adaptive.record(Timed { sequences: 1, tokens, verified, seconds, is_steady: !is_first });
        drafted += usize::from(drafts > 0);
    }
    assert!(drafted > 6000, "{drafted} of 10 000 steps");
}

/// As on an H200, where the drafts that paid were given up for 2400 steps after fourteen of their first hundred had been of new sizes
/// (2026-11-30).
#[test]
fn what_new_sizes_cost_once_is_no_reason_to_give_drafts_up() {
    let mut adaptive = Adaptive::new(8, true);
    let mut drafted = 0;
    for _ in 0..2000 {
        let drafts = adaptive.drafts(1);
        // Drafts save a sixth of the time; of the first hundred steps every seventh waits for a size.
        let is_new = drafts > 0 && drafted < 100 && drafted % 7 == 6;
        drafted += usize::from(drafts > 0);
        let mut verified = Verified::default();
        verified.add(drafts, drafts);
        let tokens = 1 + drafts;
        let seconds = if drafts > 0 { tokens as f64 / 1.2 } else { 1.0 } + if is_new { 6.0 } else { 0.0 };
        adaptive.record(Timed { sequences: 1, tokens, verified, seconds, is_steady: !is_new });
    }
    assert!(drafted > 1800, "{drafted} of 2000 steps");
}
