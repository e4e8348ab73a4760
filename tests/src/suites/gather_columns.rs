use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi,
    gather_columns::{GATHER_COLUMNS, MOST_COLS},
};
use tilewright_reference::gather_columns;

use super::eights;
use crate::{
    harness::{Failure, Harness, bf16_bytes, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct GatherColumns;

#[derive(Debug, Clone)]
pub struct Case {
    rows: usize,
    cols: usize,
    /// Each column as often.
    times: usize,
    orders: usize,
    seed: u64,
}

impl Property for GatherColumns {
    const KERNEL: &'static str = "gather_columns";
    const EMULATED_CASES: u32 = 100;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        (1..6usize, eights(1024, 9000), 1..3usize, 1..4usize, any::<u64>())
            .prop_map(|(rows, cols, times, orders, seed)| Case { rows, cols, times, orders, seed })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let corner = |rows, cols, times, orders| Case { rows, cols, times, orders, seed: 1 };
        vec![
            corner(1, 8, 1, 1),
            corner(2, 8184, 1, 2),
            corner(1, 8192, 2, 1),
            corner(3, 8200, 1, 3),
            corner(2, 4096, 2, 2),
            corner(1, MOST_COLS as usize, 2, 1),
        ]
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let rows = shape.size("rows", 4, 1, "rows");
        let cols = shape.size("cols", 4096, 8, "columns");
        let times = shape.size("times", 1, 1, "how often a column is wanted");
        let orders = shape.size("orders", 1, 1, "orders of the columns");
        shape.fits(&[("x", &[rows, cols]), ("out", &[orders, rows, times, cols])]);
        let case = Case { rows, cols, times, orders, seed: shape.inputs() };
        (cols <= MOST_COLS as usize).then_some(case)
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let mut random = Random::new(case.seed);
        let x = random.bf16s(case.rows * case.cols, 1.0);
        let mut orders: Vec<u16> = Vec::new();
        for _ in 0..case.orders {
            let mut order: Vec<u16> = (0..case.times).flat_map(|_| 0..case.cols as u16).collect();
            for last in (1..order.len()).rev() {
                order.swap(last, random.below(last + 1));
            }
            orders.extend(order);
        }
        let run = |x: &[f32]| -> Result<Vec<u8>, Failure> {
            let mut arena = harness.arena();
            let rows = x.len() / case.cols;
            let g_x = arena.input_bf16("x", x)?;
            let bytes: Vec<u8> = orders.iter().flat_map(|from| from.to_le_bytes()).collect();
            let g_orders = arena.input_bytes("orders", &bytes)?;
            let out = arena.alloc("out", case.orders * case.times * x.len() * 2)?;
            let params = abi::GatherColumns {
                x: arena.address(g_x),
                orders: arena.address(g_orders),
                out: arena.address(out),
                rows: rows as u32,
                cols: case.cols as u32,
                out_cols: (case.cols * case.times) as u32,
                reserved: 0,
            };
            arena.launch(&GATHER_COLUMNS, [rows as u32, case.orders as u32, 1], &params)?;
            arena.all_bytes(out)
        };
        let actual = run(&x)?;
        let expected = bf16_bytes(&gather_columns(&x, case.cols, &orders, case.cols * case.times));
        same_bits("gathered columns against the oracle", &actual, &expected)?;
        same_bits("the second run", &actual, &run(&x)?)
    }
}
