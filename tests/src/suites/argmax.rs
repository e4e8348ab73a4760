use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi,
    argmax::{ARGMAX, MAX_PARTS},
};
use tilewright_reference::argmax;

use super::sizes;
use crate::{
    agreement::Scalar,
    harness::{Failure, Harness, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct Argmax;

#[derive(Debug, Clone)]
pub struct Case {
    rows: usize,
    cols: usize,
    /// Blocks a row.
    parts: usize,
    /// Logits are multiples of this, so that there are ties; 0 for none.
    step: f32,
    seed: u64,
}

impl Property for Argmax {
    const KERNEL: &'static str = "argmax";
    const EMULATED_CASES: u32 = 200;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let step = prop_oneof![Just(0.0f32), Just(0.5), Just(4.0)];
        (1..8usize, sizes(512, 2100), 1..6usize, step, any::<u64>())
            .prop_map(|(rows, cols, parts, step, seed)| Case { rows, cols, parts, step, seed })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let corner = |rows, cols, parts, step| Case { rows, cols, parts, step, seed: 3 };
        vec![
            corner(8, 1, 1, 0.0),
            corner(8, 511, 2, 4.0),
            corner(8, 512, 1, 4.0),
            corner(8, 513, 3, 0.0),
            corner(1, 4099, 1, 4.0),
            corner(2, 20_000, MAX_PARTS as usize, 4.0),
        ]
    }

    fn scalar(_: &Case, _: &str) -> Scalar {
        Scalar::U32
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let rows = shape.size("rows", 4, 1, "rows of logits");
        let cols = shape.size("cols", 4096, 1, "logits a row");
        shape.fits(&[("logits", &[rows, cols])]);
        Some(Case {
            rows,
            cols,
            parts: shape.size("parts", 1, 1, "blocks a row, at most 32").min(MAX_PARTS as usize),
            step: shape.number(
                "step",
                0.0,
                "what logits are multiples of, so that there are ties; 0 for none",
            ),
            seed: shape.inputs(),
        })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let mut random = Random::new(case.seed);
        let mut logits = random.f32s(case.rows * case.cols, 2.0);
        for row in logits.chunks_mut(case.cols) {
            fill_row(&mut random, row, case.step);
        }
        let mut arena = harness.arena();
        let g_logits = arena.input_f32("logits", &logits)?;
        let out = arena.alloc("out", case.rows * 4)?;
        let partials = arena.alloc("partials", case.rows * case.parts * 16)?;
        let counters = arena.alloc("counters", case.rows * 4)?;
        arena.write(counters, 0, &vec![0; case.rows * 4])?;
        let params = abi::Argmax {
            logits: arena.address(g_logits),
            out: arena.address(out),
            partials: arena.address(partials),
            counters: arena.address(counters),
            rows: case.rows as u32,
            cols: case.cols as u32,
        };
        let grid = [case.rows as u32, case.parts as u32, 1];
        arena.launch(&ARGMAX, grid, &params)?;
        let actual = arena.u32s(out)?;
        // What counts is left as it was found.
        arena.launch(&ARGMAX, grid, &params)?;
        same_bits("the second run", &arena.all_bytes(out)?, &u32_bytes(&actual))?;
        same_bits("the counters", &vec![0; case.rows * 4], &arena.all_bytes(counters)?)?;
        for (row, (&actual, logits)) in actual.iter().zip(logits.chunks(case.cols)).enumerate() {
            let expected = argmax(logits);
            if actual != expected {
                return Err(format!("argmax of row {row}: {actual}, expected {expected}"));
            }
        }
        Ok(())
    }
}

fn u32_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Makes ties, and some rows what vocabularies with masks and broken models have: -inf, NaN, nothing at all.
pub(super) fn fill_row(random: &mut Random, row: &mut [f32], step: f32) {
    if step > 0.0 {
        row.iter_mut().for_each(|logit| *logit = (*logit / step).round() * step);
    }
    let at = random.below(row.len());
    match random.below(10) {
        0 => row[at] = f32::NAN,
        1 => row[at] = -f32::NAN,
        2 => row.fill(f32::NEG_INFINITY),
        3 => {
            row.fill(f32::NEG_INFINITY);
            row[at] = -3e38;
        }
        4 => row.iter_mut().step_by(2).for_each(|logit| *logit = f32::NEG_INFINITY),
        5 => row.iter_mut().for_each(|logit| *logit = -logit.abs() - 1.0),
        6 => {
            row.fill(-0.0);
            row[at] = 0.0;
        }
        _ => {}
    }
}
