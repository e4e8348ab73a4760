use proptest::{prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{abi, causal_softmax::CAUSAL_SOFTMAX};
use tilewright_reference::{Bound, Floor, causal_softmax, compare};

use super::{eights, mismatch};
use crate::{
    harness::{Failure, Harness, bf16_values, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct CausalSoftmax;

/// What some seen scores are instead of numbers.
#[derive(Debug, Clone, Copy)]
enum Odd {
    None,
    /// All but one of a row -inf.
    OneNumber,
    /// All of a row -inf.
    NoNumber,
    /// One of a row NaN.
    Nan,
    /// One of a row +inf.
    Infinity,
}

#[derive(Debug, Clone)]
pub struct Case {
    rows: usize,
    cols: usize,
    /// Rows before these.
    first: usize,
    scale: f32,
    deviation: f32,
    /// Of every second row.
    odd: Odd,
    seed: u64,
}

impl Case {
    fn seen(&self, row: usize) -> usize {
        (self.first + row) % self.cols + 1
    }

    /// Scores; what a row doesn't see is NaN.
    fn input(&self) -> Vec<f32> {
        let mut random = Random::new(self.seed);
        let mut x = random.bf16s(self.rows * self.cols, self.deviation);
        for (row, scores) in x.chunks_mut(self.cols).enumerate() {
            let (seen, hidden) = scores.split_at_mut(self.seen(row));
            hidden.fill(f32::NAN);
            let one = random.below(seen.len());
            if row % 2 == 0 {
                match self.odd {
                    Odd::None => {}
                    Odd::OneNumber => {
                        let number = seen[one];
                        seen.fill(f32::NEG_INFINITY);
                        seen[one] = number;
                    }
                    Odd::NoNumber => seen.fill(f32::NEG_INFINITY),
                    Odd::Nan => seen[one] = f32::NAN,
                    Odd::Infinity => seen[one] = f32::INFINITY,
                }
            }
        }
        x
    }
}

impl Property for CausalSoftmax {
    const KERNEL: &'static str = "causal_softmax";
    const EMULATED_CASES: u32 = 200;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        // The largest bf16 are 3.4e38: differences of such overflow.
        let deviation = select(vec![1.0f32, 0.01, 30.0, 5e37]);
        let scale = select(vec![1.0f32, 0.125, 0.088_388_35, 3.0]);
        let odd = select(vec![Odd::None, Odd::None, Odd::OneNumber, Odd::NoNumber, Odd::Nan, Odd::Infinity]);
        (1..6usize, eights(2048, 4200), any::<usize>(), (scale, deviation), odd, any::<u64>())
            .prop_map(|(rows, cols, first, (scale, deviation), odd, seed)| Case {
                rows,
                cols,
                first: first % (2 * cols),
                scale,
                deviation,
                odd,
                seed,
            })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let corner =
            |rows, cols, first, odd| Case { rows, cols, first, scale: 0.125, deviation: 8.0, odd, seed: 1 };
        vec![
            // All rows of two heads.
            corner(16, 8, 0, Odd::None),
            corner(48, 24, 0, Odd::Nan),
            // The first row sees one key; the last all of them, and the next head begins.
            corner(2, 2048, 0, Odd::None),
            corner(3, 2048, 2046, Odd::None),
            corner(3, 2056, 2046, Odd::OneNumber),
            corner(4, 4104, 4102, Odd::NoNumber),
            corner(2, 2040, 1022, Odd::Infinity),
        ]
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let rows = shape.size("rows", 4, 1, "rows");
        let cols = shape.size("cols", 4096, 8, "columns");
        shape.fits(&[("x", &[rows, cols])]);
        Some(Case {
            rows,
            cols,
            first: shape.count("first", cols.saturating_sub(rows), "rows before these"),
            scale: shape.number("scale", 0.125, "what multiplies the scores"),
            deviation: shape.number("deviation", 8.0, "deviation of the scores"),
            odd: Odd::None,
            seed: shape.inputs(),
        })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let (x, cols) = (case.input(), case.cols);
        let run = |x: &[f32], first: usize| -> Result<Vec<u8>, Failure> {
            let rows = (x.len() / cols) as u32;
            let mut arena = harness.arena();
            let g_x = arena.inout_bf16("x", x)?;
            let (x, first) = (arena.address(g_x), first as u32);
            let params = abi::CausalSoftmax { x, rows, cols: cols as u32, scale: case.scale, first };
            arena.launch(&CAUSAL_SOFTMAX, [rows, 1, 1], &params)?;
            arena.all_bytes(g_x)
        };
        let actual = run(&x, case.first)?;
        same_bits("the second run", &actual, &run(&x, case.first)?)?;

        let truth: Vec<f64> = causal_softmax(&x, cols, case.first, case.scale);
        let plain: Vec<f32> = causal_softmax(&x, cols, case.first, case.scale);
        let found = bf16_values(&actual);
        for row in 0..case.rows {
            let of_row = row * cols..(row + 1) * cols;
            let (found, truth) = (&found[of_row.clone()], &truth[of_row.clone()]);
            let (seen, hidden) = found.split_at(case.seen(row));
            if hidden.iter().any(|weight| weight.to_bits() != 0) {
                return Err(format!("row {row}: a weight that isn't 0 of a key that isn't seen"));
            }
            if truth[0].is_nan() {
                if let Some(col) = seen.iter().position(|weight| !weight.is_nan()) {
                    return Err(format!("row {row}: {} at {col} of a softmax that isn't defined", seen[col]));
                }
                continue;
            }
            let bound = Bound::from_plain(&[1, cols], truth, &plain[of_row], Floor::BF16);
            compare("causal_softmax", found, truth, &bound).map_err(mismatch)?;
        }
        let last = case.rows - 1;
        let alone = run(&x[last * cols..], case.first + last)?;
        same_bits("the last row alone", &actual[last * cols * 2..], &alone)
    }
}
