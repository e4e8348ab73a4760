use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi::{self, GELU_ERF, GELU_TANH},
    gelu::GELU,
};
use tilewright_reference::{Bound, Floor, GeluForm, compare, gelu};

use super::{eights, mismatch};
use crate::{
    harness::{Failure, Harness, bf16_values, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct Gelu;

#[derive(Debug, Clone)]
pub struct Case {
    rows: usize,
    cols: usize,
    /// The approximation.
    tanh: bool,
    deviation: f32,
    seed: u64,
}

impl Property for Gelu {
    const KERNEL: &'static str = "gelu";
    const EMULATED_CASES: u32 = 200;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let deviation = prop_oneof![Just(1.0f32), Just(0.01), Just(5.0), Just(40.0)];
        (1..6usize, eights(2048, 4200), any::<bool>(), deviation, any::<u64>())
            .prop_map(|(rows, cols, tanh, deviation, seed)| Case { rows, cols, tanh, deviation, seed })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let corner = |cols, tanh, deviation| Case { rows: 2, cols, tanh, deviation, seed: 1 };
        // The cube of 1e18 is infinite in f32, and so is the square of 1e20.
        vec![
            corner(8, false, 1.0),
            corner(8, true, 1.0),
            corner(2040, false, 40.0),
            corner(2048, true, 40.0),
            corner(2056, false, 3.0),
            corner(2056, true, 1e18),
            corner(2048, false, 1e20),
        ]
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let rows = shape.size("rows", 4, 1, "rows");
        let cols = shape.size("cols", 4096, 8, "columns");
        shape.fits(&[("x and out", &[2, rows, cols])]);
        Some(Case {
            rows,
            cols,
            tanh: shape.flag("tanh", false, "whether it is the approximation"),
            deviation: shape.number("deviation", 1.0, "deviation of the inputs"),
            seed: shape.inputs(),
        })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let x = Random::new(case.seed).bf16s(case.rows * case.cols, case.deviation);
        let (kind, form) = if case.tanh { (GELU_TANH, GeluForm::Tanh) } else { (GELU_ERF, GeluForm::Erf) };
        let run = |x: &[f32]| -> Result<Vec<u8>, Failure> {
            let rows = x.len() / case.cols;
            let mut arena = harness.arena();
            let g_x = arena.input_bf16("x", x)?;
            let out = arena.alloc("out", x.len() * 2)?;
            let params = abi::Gelu {
                x: arena.address(g_x),
                out: arena.address(out),
                rows: rows as u32,
                cols: case.cols as u32,
                kind,
                reserved: 0,
            };
            arena.launch(&GELU, [rows as u32, 1, 1], &params)?;
            arena.all_bytes(out)
        };
        let actual = run(&x)?;
        same_bits("the second run", &actual, &run(&x)?)?;
        let truth: Vec<f64> = gelu(&x, form);
        let plain: Vec<f32> = gelu(&x, form);
        let bound = Bound::from_plain(&[case.rows, case.cols], &truth, &plain, Floor::BF16);
        compare("gelu", &bf16_values(&actual), &truth, &bound).map_err(mismatch)?;
        let last = (case.rows - 1) * case.cols;
        same_bits("the last row alone", &actual[last * 2..], &run(&x[last..])?)
    }
}
