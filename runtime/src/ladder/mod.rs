//! What each well-known optimisation is worth on this machine: the claim beside the measurement.
//!
//! A rung is one claim. Both sides of a comparison take turns, and the median of the rounds' ratios counts, so that whatever else the
//! machine does falls on both. A claim that this device, or a model this small, can't show is said to be so, with the reason; so is a gain
//! whose rounds lie too far apart.

mod attention;
mod cache;
mod paths;
mod product;
mod serving;
mod spread;
pub mod trace;
mod turns;
mod weights;

use self::turns::{Turns, in_turns, in_turns_within};
pub use self::{
    attention::{AttentionComparison, AttentionShape, Errors as AttentionErrors, attention_on},
    spread::{WIDEST_SPREAD, quantile, spread},
};

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use crate::{DeviceChoice, Model, Result};

/// What is measured, and how thoroughly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LadderOptions {
    /// Folder of the model, whose weights are bf16, f16 or f32.
    pub target: PathBuf,
    /// Folder of a smaller model of the same vocabulary.
    pub draft: PathBuf,
    /// What it runs on.
    pub device: DeviceChoice,
    /// Short texts and few rounds: whether it works, not how fast it is. Four-bit weights are rounded, not calibrated.
    pub quick: bool,
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The measurement is within the claim, or better; what is claimed to be up to so many times is so many.
    Met,
    /// It is a gain, but less than claimed.
    Partly,
    /// It is no gain here, or can't be had here.
    NotHere,
    /// Its rounds lie so far apart ([`WIDEST_SPREAD`]) that the machine must have done something else.
    NoResult,
}

impl Verdict {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Met => "met",
            Verdict::Partly => "partly",
            Verdict::NotHere => "not on this device",
            Verdict::NoResult => "no result",
        }
    }
}

/// What is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Claim {
    /// A gain of `from` to `to` times.
    Times {
        /// The least: 1 where up to so many are claimed.
        from: f64,
        /// The most.
        to: f64,
    },
    /// A loss below so many percent.
    LossBelow {
        /// The limit.
        percent: f64,
    },
}

/// A measurement that stands beside another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Also {
    /// Of what.
    pub what: String,
    /// As a sentence has it.
    pub value: String,
}

/// Why a gain is no result.
const DISTURBED: &str = "the outer tenths of the rounds' gains lie more than half of their median apart; the machine did something else";

/// One claim and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rung {
    /// Its name.
    pub name: &'static str,
    /// The claim in words.
    pub claim: &'static str,
    /// The claim as numbers.
    pub limits: Claim,
    /// Times gained, or percent lost; none where nothing could be measured.
    pub measured: Option<f64>,
    /// What the number is of.
    pub of: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it isn't met, where it isn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What else was measured.
    pub also: Vec<Also>,
    /// Seconds that measuring took.
    pub seconds: f64,
}

impl Rung {
    fn times(
        name: &'static str,
        claim: &'static str,
        [from, to]: [f64; 2],
        measured: f64,
        of: String,
    ) -> Rung {
        // To gain nothing is no claim: one without a lower end is held to its upper one.
        let least = if from > 1.0 { from } else { to };
        let verdict = match measured {
            times if times >= least => Verdict::Met,
            // What is within a few percent of nothing is nothing.
            times if times > 1.05 => Verdict::Partly,
            _ => Verdict::NotHere,
        };
        let limits = Claim::Times { from, to };
        let (reason, also, seconds) = (None, Vec::new(), 0.0);
        Rung { name, claim, limits, measured: Some(measured), of, verdict, reason, also, seconds }
    }

    fn loss(name: &'static str, claim: &'static str, limit: f64, percent: f64, of: String) -> Rung {
        let verdict = if percent < limit { Verdict::Met } else { Verdict::NotHere };
        let limits = Claim::LossBelow { percent: limit };
        let (reason, also, seconds) = (None, Vec::new(), 0.0);
        Rung { name, claim, limits, measured: Some(percent), of, verdict, reason, also, seconds }
    }

    /// A claim that isn't measured, and why.
    fn not_here(name: &'static str, claim: &'static str, limits: Claim, reason: impl Into<String>) -> Rung {
        Rung {
            name,
            claim,
            limits,
            measured: None,
            of: String::new(),
            verdict: Verdict::NotHere,
            reason: Some(reason.into()),
            also: Vec::new(),
            seconds: 0.0,
        }
    }

    /// With a reason, where the claim isn't met.
    fn because(mut self, reason: impl Into<String>) -> Rung {
        if matches!(self.verdict, Verdict::Partly | Verdict::NotHere) {
            self.reason = Some(reason.into());
        }
        self
    }

    /// With the rounds that the gain is the median of, where there was more than one: they tell how steady it was, and whether it is a
    /// result.
    fn of_rounds(mut self, turns: &Turns) -> Rung {
        let (Some(least), Some(most), 2..) = (turns.ratios.first(), turns.ratios.last(), turns.ratios.len())
        else {
            return self;
        };
        if spread(&turns.ratios) > WIDEST_SPREAD {
            self.verdict = Verdict::NoResult;
            self.reason = Some(DISTURBED.to_string());
        }
        let rounds = turns.ratios.len();
        self.also("gain in each round", format!("median of {rounds}, {least:.2}x to {most:.2}x"))
    }

    fn also(mut self, what: &str, value: String) -> Rung {
        self.also.push(Also { what: what.to_string(), value });
        self
    }
}

/// All claims.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ladder {
    /// The device in words.
    pub device: String,
    /// The model's folder.
    pub model: PathBuf,
    /// Whether it was but a trial.
    pub quick: bool,
    /// The claims in their order.
    pub rungs: Vec<Rung>,
    /// Seconds that all took.
    pub seconds: f64,
}

/// Measures all claims. `progress` is told what is about to be measured.
///
/// # Errors
/// A model that can't be loaded or is quantised already, a device that fails.
pub fn measure(options: &LadderOptions, progress: &mut dyn FnMut(&str)) -> Result<Ladder> {
    let began = Instant::now();
    weights::check(options)?;
    let model = Model::load(&options.target, options.device)?;
    // What the weights are judged by is a text.
    model.require_tokenizer()?;
    let bench = Bench { options, model: &model };
    let mut ladder = Ladder {
        device: model.device(),
        model: options.target.clone(),
        quick: options.quick,
        rungs: Vec::new(),
        seconds: 0.0,
    };
    type Measure = fn(&Bench<'_>) -> Result<Vec<Rung>>;
    let all: [(&str, Measure); 5] = [
        ("KV cache", cache::rungs),
        ("attention", attention::rungs),
        ("weights", weights::rungs),
        ("speculation", serving::speculation),
        ("batching", serving::batching),
    ];
    for (what, measure) in all {
        progress(what);
        let start = Instant::now();
        let mut rungs = measure(&bench)?;
        let seconds = start.elapsed().as_secs_f64() / rungs.len().max(1) as f64;
        rungs.iter_mut().for_each(|rung| rung.seconds = seconds);
        ladder.rungs.extend(rungs);
    }
    ladder.seconds = began.elapsed().as_secs_f64();
    Ok(ladder)
}

/// What the rungs are measured with.
struct Bench<'a> {
    options: &'a LadderOptions,
    model: &'a Model,
}

impl Bench<'_> {
    /// One of two sizes.
    fn size(&self, full: usize, quick: usize) -> usize {
        if self.options.quick { quick } else { full }
    }
}

/// A measurement that can be repeated: the larger the better.
type Rate<'a> = Box<dyn FnMut() -> Result<f64> + 'a>;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_claim_is_judged_by_its_lower_end_if_it_has_one() {
        let verdict = |times| {
            Rung::times("x", "2 to 4 times", [2.0, 4.0], times, String::new()).because("small").verdict
        };
        assert_eq!([5.0, 2.0, 1.99, 1.06, 1.05, 0.5, f64::NAN].map(verdict), {
            use Verdict::{Met, NotHere, Partly};
            [Met, Met, Partly, Partly, NotHere, NotHere, NotHere]
        });
        let up_to = |times| Rung::times("x", "up to 4 times", [1.0, 4.0], times, String::new()).verdict;
        assert_eq!([4.0, 3.9, 1.0].map(up_to), [Verdict::Met, Verdict::Partly, Verdict::NotHere]);
        let loss = |percent| Rung::loss("x", "under 1%", 1.0, percent, String::new()).verdict;
        assert_eq!([-0.1, 0.99, 1.0, f64::NAN].map(loss), {
            use Verdict::{Met, NotHere};
            [Met, Met, NotHere, NotHere]
        });
        assert_eq!(Rung::times("x", "", [2.0, 4.0], 3.0, String::new()).because("small").reason, None);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let mut round = 0.0;
        let slow_machine = std::cell::Cell::new(1.0);
        let first: Rate<'_> = Box::new(|| {
            round += 1.0;
            slow_machine.set(1.0 / round);
            Ok(10.0 * slow_machine.get())
        });
        let second: Rate<'_> = Box::new(|| Ok(30.0 * slow_machine.get()));
        let found = in_turns(3, vec![first, second]).expect("numbers");
        assert!((found[1].ratio() - 3.0).abs() < 1e-12 && (found[0].ratio() - 1.0).abs() < 1e-12);
        assert!((found[0].rate - 5.0).abs() < 1e-12);
        let steps = |ratios: &[f64]| Turns { rate: 1.0, ratios: ratios.to_vec() };
        assert_eq!(steps(&[0.5, 1.0, 4.0]).inverse(), steps(&[0.25, 1.0, 2.0]));
        let rung = || Rung::times("x", "", [2.0, 4.0], 3.0, String::new());
        assert!(rung().of_rounds(&steps(&[3.0])).also.is_empty());
        let once = vec![Box::new(|| Ok(1.0)) as Rate<'_>];
        let once = in_turns_within(Duration::ZERO, 3, once).expect("numbers");
        assert_eq!(once[0].ratios.len(), 1);
        assert_eq!(rung().of_rounds(&steps(&[2.0, 3.0, 3.5])).also[0].value, "median of 3, 2.00x to 3.50x");
    }

    #[test]
    fn rounds_far_apart_are_no_result() {
        let rung = |ratios: &[f64]| {
            let turns = Turns { rate: 1.0, ratios: ratios.to_vec() };
            let rung = Rung::times("x", "", [2.0, 4.0], turns.ratio(), String::new());
            let rung = rung.of_rounds(&turns).because("small");
            (rung.verdict, rung.reason)
        };
        let none = (Verdict::NoResult, Some(DISTURBED.to_string()));
        assert_eq!(rung(&[1.0, 3.0, 3.0]), none);
        assert_eq!(rung(&[0.5, 1.0, 1.5]), none);
        assert_eq!(rung(&[2.7, 3.0, 3.3]), (Verdict::Met, None));
        assert_eq!(rung(&[1.3, 1.5, 1.6]), (Verdict::Partly, Some("small".to_string())));
        // One round in five that another program had a part of.
        assert_eq!(rung(&[3.0, 3.0, 3.0, 3.1, 9.0]).0, Verdict::NoResult);
        assert_eq!(rung(&[2.4, 3.0, 3.0, 3.0, 3.9]).0, Verdict::Met);
        // How far apart one round is from itself, nobody knows.
        assert_eq!(rung(&[3.0]), (Verdict::Met, None));
    }

    #[test]
    fn every_claim_is_measured_or_says_why_not() {
        let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
        let options = LadderOptions {
            target: demo.join("target"),
            draft: demo.join("draft"),
            device: DeviceChoice::Cpu,
            quick: true,
        };
        let mut told = Vec::new();
        let ladder = measure(&options, &mut |what| told.push(what.to_string())).expect("measured");
        assert_eq!((told.len(), ladder.rungs.len()), (5, 11));
        for rung in &ladder.rungs {
            assert!(rung.measured.is_some_and(f64::is_finite), "{rung:?}");
            assert!(rung.verdict == Verdict::Met || rung.reason.is_some(), "{rung:?}");
            assert!(!rung.of.is_empty() && rung.seconds > 0.0, "{rung:?}");
        }
        // Sizes are no matter of luck.
        let measured =
            |name: &str| ladder.rungs.iter().find(|rung| rung.name == name).and_then(|rung| rung.measured);
        assert!(measured("INT8, size").is_some_and(|times| (1.9..2.0).contains(&times)));
        assert!(measured("INT4, size").is_some_and(|times| (3.6..4.0).contains(&times)));
    }
}
