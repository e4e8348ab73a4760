use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi,
    silu_mul::{SILU_MUL, parts},
};
use tilewright_reference::{Bound, Floor, compare, silu_mul};

use super::{eights, mismatch};
use crate::{
    harness::{Failure, Harness, bf16_values, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct SiluMul;

#[derive(Debug, Clone)]
pub struct Case {
    rows: usize,
    inter: usize,
    deviation: f32,
    seed: u64,
}

impl Property for SiluMul {
    const KERNEL: &'static str = "silu_mul";
    const EMULATED_CASES: u32 = 200;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let deviation = prop_oneof![Just(1.0f32), Just(0.01), Just(40.0)];
        (1..6usize, eights(2048, 4200), deviation, any::<u64>())
            .prop_map(|(rows, inter, deviation, seed)| Case { rows, inter, deviation, seed })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let corner = |inter, deviation| Case { rows: 2, inter, deviation, seed: 1 };
        // exp(-gate) overflows at gates under -88.
        vec![corner(8, 1.0), corner(2040, 40.0), corner(2048, 100.0), corner(2056, 1.0)]
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let rows = shape.size("rows", 4, 1, "rows");
        let inter = shape.size("inter", 4096, 8, "columns of the result");
        shape.fits(&[("gate, up and out", &[3, rows, inter])]);
        Some(Case {
            rows,
            inter,
            deviation: shape.number("deviation", 1.0, "deviation of the inputs"),
            seed: shape.inputs(),
        })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let gate_up = Random::new(case.seed).bf16s(case.rows * 2 * case.inter, case.deviation);
        let run_as = |gate_up: &[f32], parts: u32, paired: bool| -> Result<Vec<u8>, Failure> {
            let rows = gate_up.len() / (2 * case.inter);
            let mut arena = harness.arena();
            let g_gate_up = arena.input_bf16("gate_up", gate_up)?;
            let out = arena.alloc("out", rows * case.inter * 2)?;
            let params = abi::SiluMul {
                gate_up: arena.address(g_gate_up),
                out: arena.address(out),
                rows: rows as u32,
                inter: case.inter as u32,
                paired: u32::from(paired),
                ..abi::SiluMul::default()
            };
            arena.launch(&SILU_MUL, [rows as u32, parts, 1], &params)?;
            arena.all_bytes(out)
        };
        let run = |gate_up: &[f32], parts: u32| run_as(gate_up, parts, false);
        let actual = run(&gate_up, parts(case.inter as u32))?;
        same_bits("the second run", &actual, &run(&gate_up, parts(case.inter as u32))?)?;
        let paired: Vec<f32> = gate_up.chunks(2 * case.inter).flat_map(pairs).collect();
        same_bits("eights in turn", &actual, &run_as(&paired, parts(case.inter as u32), true)?)?;
        same_bits("a block a row", &actual, &run(&gate_up, 1)?)?;
        let truth: Vec<f64> = silu_mul(&gate_up, case.inter);
        let plain: Vec<f32> = silu_mul(&gate_up, case.inter);
        let bound = Bound::from_plain(&[case.rows, case.inter], &truth, &plain, Floor::BF16);
        compare("silu_mul", &bf16_values(&actual), &truth, &bound).map_err(mismatch)?;
        let last = (case.rows - 1) * case.inter;
        same_bits("the last row alone", &actual[last * 2..], &run(&gate_up[last * 2..], 1)?)
    }
}

/// A row of gates and what they gate, in eights of both in turn.
fn pairs(row: &[f32]) -> Vec<f32> {
    let (gates, gated) = row.split_at(row.len() / 2);
    gates.chunks(8).zip(gated.chunks(8)).flat_map(|(gates, gated)| [gates, gated].concat()).collect()
}
