use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{abi, sample::SAMPLE};
use tilewright_reference::{SampleSettings, sample_candidates};

use super::{argmax::fill_row, sizes};
use crate::{
    agreement::Scalar,
    harness::{Failure, Harness, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct Sample;

#[derive(Debug, Clone)]
pub struct Case {
    rows: usize,
    cols: usize,
    /// Deviation of the logits.
    spread: f32,
    /// Logits are multiples of this, so that there are ties; 0 for none.
    step: f32,
    seed: u64,
}

/// How far sums of f32 exponentials may move a threshold.
const TOLERANCE: f64 = 1e-4;

impl Property for Sample {
    const KERNEL: &'static str = "sample";
    const EMULATED_CASES: u32 = 120;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let spread = prop_oneof![Just(0.0f32), Just(1.0), Just(5.0), Just(100.0)];
        let step = prop_oneof![Just(0.0f32), Just(0.5), Just(4.0)];
        (1..5usize, sizes(1024, 2100), spread, step, any::<u64>())
            .prop_map(|(rows, cols, spread, step, seed)| Case { rows, cols, spread, step, seed })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let corner = |rows, cols, spread, step| Case { rows, cols, spread, step, seed: 7 };
        vec![
            corner(4, 1, 1.0, 0.0),
            corner(4, 1023, 1.0, 0.0),
            corner(4, 1025, 5.0, 4.0),
            corner(2, 2049, 0.0, 0.0),
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
            spread: shape.number("spread", 5.0, "deviation of the logits"),
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
        let mut logits = random.f32s(case.rows * case.cols, case.spread);
        let mut params = Vec::new();
        for row in logits.chunks_mut(case.cols) {
            fill_row(&mut random, row, case.step);
            params.push(draw_params(&mut random, case.cols));
        }
        let run = |logits: &[f32], params: &[abi::SampleRow]| -> Result<Vec<u32>, Failure> {
            let mut arena = harness.arena();
            let g_logits = arena.input_f32("logits", logits)?;
            let row_params = arena.input("row_params", bytemuck::cast_slice(params))?;
            let out = arena.alloc("out", params.len() * 4)?;
            let rows = params.len() as u32;
            let params = abi::Sample {
                logits: arena.address(g_logits),
                row_params: arena.address(row_params),
                out: arena.address(out),
                rows,
                cols: case.cols as u32,
            };
            arena.launch(&SAMPLE, [rows, 1, 1], &params)?;
            arena.u32s(out)
        };
        let actual = run(&logits, &params)?;
        let again = run(&logits, &params)?;
        same_bits("the second run", bytemuck::cast_slice(&actual), bytemuck::cast_slice(&again))?;
        for (row, ((&actual, logits), params)) in
            actual.iter().zip(logits.chunks(case.cols)).zip(&params).enumerate()
        {
            let settings = SampleSettings {
                temperature: f64::from(params.temperature),
                top_p: f64::from(params.top_p),
                min_p: f64::from(params.min_p),
                uniform: f64::from(params.uniform),
                top_k: params.top_k as usize,
            };
            let candidates = sample_candidates(logits, &settings, TOLERANCE);
            if !candidates.contains(&actual) {
                return Err(format!(
                    "sample of row {row}: {actual}, expected one of {candidates:?}; {params:?}"
                ));
            }
        }
        let last = case.rows - 1;
        let alone = run(&logits[last * case.cols..], &params[last..])?;
        same_bits("the last row alone", bytemuck::cast_slice(&actual[last..]), bytemuck::cast_slice(&alone))
    }
}

fn draw_params(random: &mut Random, cols: usize) -> abi::SampleRow {
    let pick = |random: &mut Random, values: &[f32]| values[random.below(values.len())];
    let (top_p, min_p, uniform) = (random.uniform().max(1e-3), random.uniform(), random.uniform());
    abi::SampleRow {
        temperature: pick(random, &[1.0, 0.7, 0.05, 3.0]),
        top_p: pick(random, &[1.0, 1.0, 0.9, top_p]),
        min_p: pick(random, &[0.0, 0.0, 0.05, min_p]),
        uniform: pick(random, &[0.0, 0.5, 0.999_999_9, uniform, uniform]),
        top_k: [0, 0, 1, 40, random.below(cols) as u32 + 1, cols as u32 + 5][random.below(6)],
        reserved: 0,
    }
}
