//! Speculation must leave the target's distribution as it is: chi-square over samples of the very acceptance code, on models small
//! enough to be enumerated, and rules that are wrong on purpose, which the same test must find out.

use super::*;
use crate::sampling::{Adjustment, DrawKey, Penalties, SamplingParams};

const VOCAB: usize = 6;
/// Tokens of an answer.
const LEN: usize = 4;
/// Drafts a step.
const DRAFTS: usize = 3;
const SAMPLES: u64 = 100_000;
const PROMPT: [u32; 2] = [1, 4];

/// Logits that follow from what was said: a model of a few bits.
fn logits(model: u64, said: &[u32]) -> Vec<f32> {
    let mut state = said.iter().fold(model, |state, &token| {
        (state ^ u64::from(token + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    });
    (0..VOCAB)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 * 3.0
        })
        .collect()
}

/// The distribution behind `said`, as the engine makes it.
fn distribution(model: u64, said: &[u32], params: &SamplingParams, adjustment: &Adjustment) -> Distribution {
    let mut logits = logits(model, said);
    let mut adjustment = adjustment.clone();
    said.iter().for_each(|&token| adjustment.push(token));
    adjustment.apply(&mut logits);
    Distribution::new(&logits, params).expect("numbers")
}

/// One case: target and draft models, and how their tokens are drawn.
struct Case {
    target: u64,
    draft: u64,
    params: SamplingParams,
    adjustment: Adjustment,
}

impl Case {
    fn new(temperature: f32) -> Case {
        let penalties = Penalties { repetition: 1.3, presence: 0.4, frequency: 0.2 };
        Case {
            target: 11,
            draft: 12,
            params: SamplingParams { temperature, top_p: 0.9, min_p: 0.02, ..SamplingParams::default() },
            adjustment: Adjustment::new(penalties, &[(2, 0.5)], &PROMPT),
        }
    }

    fn behind(&self, model: u64, said: &[u32]) -> Distribution {
        distribution(model, said, &self.params, &self.adjustment)
    }

    /// An answer, by speculation under `rule`.
    fn speculate(&self, rule: (Stands, Instead), request: u64) -> Vec<u32> {
        let key = DrawKey { seed: 5, request, choice: 0 };
        let mut said: Vec<u32> = Vec::new();
        while said.len() < LEN {
            let mut drafts: Vec<Draft> = Vec::new();
            let mut guess = said.clone();
            for _ in 0..DRAFTS {
                let from = self.behind(self.draft, &guess);
                let token = from.draw(key.uniform(guess.len(), Draw::Draft));
                drafts.push(Draft { token, from });
                guess.push(token);
            }
            let start = said.len();
            let target = |index: usize| Some(self.behind(self.target, &guess[..start + index]));
            let uniform = |index: usize, draw| key.uniform(start + index, draw);
            let verdict = verify_by(rule, &drafts, target, uniform).expect("numbers");
            said.truncate(start);
            said.extend(&guess[start..start + verdict.accepted]);
            said.push(verdict.next);
        }
        said.truncate(LEN);
        said
    }

    /// The exact probability of every answer of [`LEN`] tokens.
    fn answers(&self) -> Vec<f64> {
        let mut all = vec![0.0; VOCAB.pow(LEN as u32)];
        let mut open = vec![(Vec::new(), 1.0)];
        while let Some((said, p)) = open.pop() {
            if said.len() == LEN {
                all[index(&said)] = p;
                continue;
            }
            let next = self.behind(self.target, &said);
            for token in 0..VOCAB as u32 {
                let q = next.probability(token);
                if q > 0.0 {
                    open.push(([&said[..], &[token]].concat(), p * q));
                }
            }
        }
        all
    }

    /// Chi-square of each position's marginal and of whole answers, each over its critical value.
    fn excess(&self, rule: (Stands, Instead)) -> Vec<f64> {
        let exact = self.answers();
        let mut counts = vec![0u64; exact.len()];
        for request in 0..SAMPLES {
            counts[index(&self.speculate(rule, request))] += 1;
        }
        let mut tables: Vec<(Vec<f64>, Vec<u64>)> = (0..LEN)
            .map(|position| {
                let (mut p, mut n) = (vec![0.0; VOCAB], vec![0; VOCAB]);
                for (answer, (&probability, &count)) in exact.iter().zip(&counts).enumerate() {
                    let token = answer / VOCAB.pow(position as u32) % VOCAB;
                    p[token] += probability;
                    n[token] += count;
                }
                (p, n)
            })
            .collect();
        tables.push((exact, counts));
        tables.into_iter().map(|(p, n)| chi_square_excess(&p, &n)).collect()
    }
}

/// An answer's number: its tokens as digits, the first the least.
fn index(said: &[u32]) -> usize {
    said.iter().rev().fold(0, |index, &token| index * VOCAB + token as usize)
}

/// Pearson's statistic over its critical value at one in a million (Wilson and Hilferty, 1931); cells that expect fewer than 10
/// are one. Infinite where something came that can't.
fn chi_square_excess(p: &[f64], counts: &[u64]) -> f64 {
    let (mut statistic, mut cells) = (0.0, 0);
    let (mut rare_expected, mut rare_found) = (0.0, 0.0);
    let mut add = |expected: f64, found: f64| {
        statistic += (found - expected).powi(2) / expected;
        cells += 1;
    };
    for (&p, &count) in p.iter().zip(counts) {
        let (expected, found) = (p * SAMPLES as f64, count as f64);
        if expected == 0.0 && found > 0.0 {
            return f64::INFINITY;
        }
        if expected >= 10.0 {
            add(expected, found);
        } else {
            rare_expected += expected;
            rare_found += found;
        }
    }
    if rare_expected > 0.0 {
        add(rare_expected, rare_found);
    }
    let freedom = f64::from(cells - 1);
    let spread = 2.0 / (9.0 * freedom);
    statistic / (freedom * (1.0 - spread + 4.753 * spread.sqrt()).powi(3))
}

#[test]
fn speculation_keeps_the_distribution() {
    for temperature in [0.7, 1.0] {
        let case = Case::new(temperature);
        for (position, excess) in case.excess((stands, instead)).into_iter().enumerate() {
            assert!(excess < 1.0, "temperature {temperature}, position {position}: {excess} of the bound");
        }
    }
}

#[test]
fn wrong_rules_are_found_out() {
    let rules: [(&str, (Stands, Instead)); 5] = [
        ("the place of a fallen draft is drawn from the target", (stands, |p, _| p.clone())),
        ("drafts stand at half their due", (|p, q, u| u * q < 0.5 * p, instead)),
        ("drafts that are likely enough stand", (|p, q, u| p > 0.0 && u * q < 1.2 * p, instead)),
        ("drafts stand by the target's probability alone", (|p, _, u| u < p, instead)),
        ("all drafts stand", (|_, _, _| true, instead)),
    ];
    for (what, rule) in rules {
        let worst = Case::new(1.0).excess(rule).into_iter().fold(0.0, f64::max);
        assert!(worst > 2.0, "unnoticed: {what}: {worst} of the bound");
    }
}

#[test]
fn greedy_choices_are_the_target_s() {
    let greedy = SamplingParams::default();
    let case = Case { params: greedy, ..Case::new(1.0) };
    let mut said = Vec::new();
    for _ in 0..LEN {
        said.push(case.behind(case.target, &said).draw(0.5));
    }
    assert_eq!(case.speculate((stands, instead), 3), said);
}

#[test]
fn all_drafts_and_one_more() {
    let drafts = [Draft::certain(3), Draft::certain(1)];
    let target = |index: usize| Some(Distribution::certain([3, 1, 5][index]));
    assert_eq!(verify(&drafts, target, |_, _| 0.999), Some(Verdict { accepted: 2, next: 5 }));
    let parted = |index: usize| Some(Distribution::certain([3, 2, 5][index]));
    assert_eq!(verify(&drafts, parted, |_, _| 0.0), Some(Verdict { accepted: 1, next: 2 }));
    assert_eq!(verify(&drafts, |index| (index == 0).then(|| Distribution::certain(3)), |_, _| 0.0), None);
}
