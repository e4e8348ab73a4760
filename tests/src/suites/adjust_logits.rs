use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi::{self, ChangedRow, LogitChange},
    adjust_logits::ADJUST_LOGITS,
};
use tilewright_reference::{LogitPenalty, adjusted_logit};

use super::{argmax::fill_row, sizes};
use crate::{
    agreement::Scalar,
    harness::{Failure, Harness, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct AdjustLogits;

#[derive(Debug, Clone)]
pub struct Case {
    rows: usize,
    cols: usize,
    /// Changes of a row, at most; rows have fewer, and some have none.
    changes: usize,
    seed: u64,
}

/// A row's changes: what is asked for, by token.
type Asked = Vec<(u32, LogitPenalty)>;

impl Property for AdjustLogits {
    const KERNEL: &'static str = "adjust_logits";
    const EMULATED_CASES: u32 = 200;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        (1..8usize, sizes(512, 2100), sizes(256, 800), any::<u64>())
            .prop_map(|(rows, cols, changes, seed)| Case { rows, cols, changes, seed })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let corner = |rows, cols, changes| Case { rows, cols, changes, seed: 7 };
        vec![corner(1, 1, 1), corner(3, 257, 257), corner(4, 2049, 255), corner(2, 20_000, 1025)]
    }

    fn scalar(_: &Case, _: &str) -> Scalar {
        Scalar::F32
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let rows = shape.size("rows", 4, 1, "rows of logits");
        let cols = shape.size("cols", 4096, 1, "logits a row");
        let changes = shape.size("changes", 1024, 1, "changes of a row, at most");
        shape.fits(&[("logits", &[rows, cols])]);
        Some(Case { rows, cols, changes, seed: shape.inputs() })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let mut random = Random::new(case.seed);
        let mut logits = random.f32s(case.rows * case.cols, 4.0);
        logits.chunks_mut(case.cols).for_each(|row| fill_row(&mut random, row, 0.0));
        let asked: Vec<Asked> = (0..case.rows).map(|_| asked(&mut random, case)).collect();
        let all: Vec<usize> = (0..case.rows).collect();
        let actual = run(harness, case, &logits, &asked, &all)?;
        for (row, asked) in asked.iter().enumerate() {
            let mut expected = logits[row * case.cols..][..case.cols].to_vec();
            for (token, penalty) in asked {
                let logit = &mut expected[*token as usize];
                *logit = adjusted_logit(*logit, penalty);
            }
            for (col, (&actual, &expected)) in actual[row * case.cols..].iter().zip(&expected).enumerate() {
                if actual.to_bits() != expected.to_bits() && !(actual.is_nan() && expected.is_nan()) {
                    return Err(format!("logit ({row}, {col}): {actual:e}, expected {expected:e}"));
                }
            }
        }
        // Alone, in a launch of its own.
        let last = case.rows - 1;
        let alone = run(harness, case, &logits, &asked, &[last])?;
        let bytes = |values: &[f32]| bytemuck::cast_slice(&values[last * case.cols..]).to_vec();
        same_bits("the last row alone", &bytes(&actual), &bytes(&alone))
    }
}

/// What is asked of a row: nothing, or any part of it for some tokens.
fn asked(random: &mut Random, case: &Case) -> Asked {
    let most = case.changes.min(case.cols);
    let count = if random.below(4) == 0 { 0 } else { random.below(most) + 1 };
    let mut tokens = random.shuffled(case.cols);
    tokens.truncate(count);
    tokens.sort_unstable();
    let mut penalty = || LogitPenalty {
        repetition: (random.below(2) == 0).then(|| 0.5 + random.uniform()),
        less: (random.below(2) == 0).then(|| random.normal(1.0)),
        bias: match random.below(6) {
            0 | 1 => Some(random.normal(10.0)),
            2 => Some(f32::NEG_INFINITY),
            _ => None,
        },
    };
    tokens.into_iter().map(|token| (token, penalty())).collect()
}

/// The logits after a launch over those of `rows` of which something is asked.
fn run<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    logits: &[f32],
    asked: &[Asked],
    rows: &[usize],
) -> Result<Vec<f32>, Failure> {
    let (mut changed, mut changes) = (Vec::new(), Vec::new());
    for &row in rows.iter().filter(|&&row| !asked[row].is_empty()) {
        let (first, count) = (changes.len() as u32, asked[row].len() as u32);
        changed.push(ChangedRow { row: row as u32, first, count, reserved: 0 });
        changes.extend(asked[row].iter().map(|(token, penalty)| {
            let none = LogitChange::none(*token);
            LogitChange {
                token: *token,
                repetition: penalty.repetition.unwrap_or(none.repetition),
                less: penalty.less.unwrap_or(none.less),
                bias: penalty.bias.unwrap_or(none.bias),
            }
        }));
    }
    let mut arena = harness.arena();
    let g_logits = arena.alloc("logits", logits.len() * 4)?;
    arena.write(g_logits, 0, bytemuck::cast_slice(logits))?;
    let g_rows = arena.input_bytes("rows", bytemuck::cast_slice(&changed))?;
    let g_changes = arena.input_bytes("changes", bytemuck::cast_slice(&changes))?;
    let params = abi::AdjustLogits {
        logits: arena.address(g_logits),
        rows: arena.address(g_rows),
        changes: arena.address(g_changes),
        cols: case.cols as u32,
        reserved: 0,
    };
    if !changed.is_empty() {
        arena.launch(&ADJUST_LOGITS, [changed.len() as u32, 1, 1], &params)?;
    }
    arena.f32s(g_logits)
}
