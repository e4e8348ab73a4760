use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{abi, rms_norm::RMS_NORM};
use tilewright_reference::{Bound, Floor, compare, rms_norm};

use super::{eights, mismatch};
use crate::{
    harness::{Failure, Harness, bf16_values, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct RmsNorm;

#[derive(Debug, Clone)]
pub struct Case {
    rows: usize,
    cols: usize,
    residual: bool,
    /// `out` is `x`.
    in_place: bool,
    deviation: f32,
    seed: u64,
}

struct Input {
    x: Vec<f32>,
    residual: Option<Vec<f32>>,
    weight: Vec<f32>,
}

const EPS: f32 = 1e-5;

impl Property for RmsNorm {
    const KERNEL: &'static str = "rms_norm";
    const EMULATED_CASES: u32 = 200;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let deviation = prop_oneof![Just(1.0f32), Just(0.0), Just(1e-3), Just(50.0)];
        (1..6usize, eights(2048, 4200), any::<bool>(), any::<bool>(), deviation, any::<u64>())
            .prop_map(|(rows, cols, residual, in_place, deviation, seed)| Case {
                rows,
                cols,
                residual,
                in_place,
                deviation,
                seed,
            })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let corner = |cols, residual, in_place, deviation| Case {
            rows: 2,
            cols,
            residual,
            in_place,
            deviation,
            seed: 1,
        };
        vec![
            corner(8, false, false, 1.0),
            corner(8, true, true, 0.0),
            corner(2040, true, false, 1.0),
            corner(2048, false, true, 1.0),
            corner(2056, true, true, 30.0),
        ]
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let rows = shape.size("rows", 4, 1, "rows");
        let cols = shape.size("cols", 4096, 8, "columns");
        shape.fits(&[("x, its residual and out", &[3, rows, cols])]);
        Some(Case {
            rows,
            cols,
            residual: shape.flag("residual", true, "whether there is a residual"),
            in_place: shape.flag("in_place", false, "whether x is overwritten"),
            deviation: shape.number("deviation", 1.0, "deviation of the inputs"),
            seed: shape.inputs(),
        })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let mut random = Random::new(case.seed);
        let elements = case.rows * case.cols;
        let input = Input {
            x: random.bf16s(elements, case.deviation),
            residual: case.residual.then(|| random.bf16s(elements, case.deviation)),
            weight: random.f32s(case.cols, 1.0),
        };
        let (h, out) = run(harness, case, &input)?;
        let (h2, out2) = run(harness, case, &input)?;
        same_bits("the second run's h", &h, &h2)?;
        same_bits("the second run", &out, &out2)?;

        let shape = [case.rows, case.cols];
        let truth = rms_norm::<f64>(&input.x, input.residual.as_deref(), &input.weight, EPS);
        let plain = rms_norm::<f32>(&input.x, input.residual.as_deref(), &input.weight, EPS);
        let bound = Bound::from_plain(&shape, &truth.out, &plain.out, Floor::BF16);
        compare("rms_norm out", &bf16_values(&out), &truth.out, &bound).map_err(mismatch)?;
        if case.residual {
            let bound = Bound::from_plain(&shape, &truth.h, &plain.h, Floor::BF16);
            compare("rms_norm h", &bf16_values(&h), &truth.h, &bound).map_err(mismatch)?;
        }

        let last = (case.rows - 1) * case.cols;
        let alone = Input {
            x: input.x[last..].to_vec(),
            residual: input.residual.as_ref().map(|residual| residual[last..].to_vec()),
            weight: input.weight,
        };
        let (_, out_alone) = run(harness, &Case { rows: 1, ..case.clone() }, &alone)?;
        same_bits("the last row alone", &out[last * 2..], &out_alone)
    }
}

/// The bytes of `h` (empty without a residual) and of `out`.
fn run<D: Driver>(harness: &Harness<D>, case: &Case, input: &Input) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let mut arena = harness.arena();
    let (x, out) = if case.in_place {
        let x = arena.inout_bf16("x", &input.x)?;
        (x, x)
    } else {
        (arena.input_bf16("x", &input.x)?, arena.alloc("out", input.x.len() * 2)?)
    };
    let residual = match &input.residual {
        Some(residual) => Some(arena.inout_bf16("residual", residual)?),
        None => None,
    };
    let weight = arena.input_f32("weight", &input.weight)?;
    let params = abi::RmsNorm {
        x: arena.address(x),
        residual: residual.map_or(0, |residual| arena.address(residual)),
        weight: arena.address(weight),
        out: arena.address(out),
        rows: case.rows as u32,
        cols: case.cols as u32,
        eps: EPS,
        reserved: 0,
    };
    arena.launch(&RMS_NORM, [case.rows as u32, 1, 1], &params)?;
    let h = residual.map_or(Ok(Vec::new()), |residual| arena.all_bytes(residual))?;
    Ok((h, arena.all_bytes(out)?))
}
