use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi,
    quantize_rows::QUANTIZE_ROWS,
    rms_norm::{RMS_NORM, RMS_NORM_INT8},
};
use tilewright_reference::{Bound, KvFormat, compare, kv_scale};

use super::{eights, mismatch};
use crate::{
    harness::{Failure, Harness, bf16_values, f32_values, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

/// Alone, and with the norm before it.
pub struct QuantizeRows;

#[derive(Debug, Clone)]
pub struct Case {
    rows: usize,
    cols: usize,
    factors: bool,
    deviation: f32,
    /// An element of the first row, if not 0: a NaN or an infinity.
    odd: f32,
    seed: u64,
}

struct Input {
    x: Vec<f32>,
    weight: Vec<f32>,
    factors: Option<Vec<f32>>,
}

/// Bytes of both outputs.
type Output = [Vec<u8>; 2];

const EPS: f32 = 1e-5;

impl Property for QuantizeRows {
    const KERNEL: &'static str = "quantize_rows";
    const EMULATED_CASES: u32 = 100;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let deviation = prop_oneof![Just(1.0f32), Just(0.0), Just(1e-3), Just(50.0)];
        let odd = prop_oneof![6 => Just(0.0f32), 1 => Just(f32::NAN), 1 => Just(f32::INFINITY)];
        (1..6usize, eights(2048, 4200), any::<bool>(), deviation, odd, any::<u64>())
            .prop_map(|(rows, cols, factors, deviation, odd, seed)| Case {
                rows,
                cols,
                factors,
                deviation,
                odd,
                seed,
            })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let corner = |cols, factors, deviation, odd| Case { rows: 2, cols, factors, deviation, odd, seed: 1 };
        vec![
            corner(8, false, 1.0, 0.0),
            corner(8, true, 0.0, 0.0),
            corner(2040, true, 1.0, f32::NAN),
            corner(2048, false, 1.0, f32::NEG_INFINITY),
            corner(2056, true, 30.0, 0.0),
            corner(6000, false, 1.0, 0.0),
        ]
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let rows = shape.size("rows", 4, 1, "rows");
        let cols = shape.size("cols", 4096, 8, "columns");
        shape.fits(&[("x, the norm and codes", &[3, rows, cols])]);
        Some(Case {
            rows,
            cols,
            factors: shape.flag("factors", false, "whether activations have factors"),
            deviation: shape.number("deviation", 1.0, "deviation of the inputs"),
            odd: 0.0,
            seed: shape.inputs(),
        })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let mut random = Random::new(case.seed);
        let mut x = random.bf16s(case.rows * case.cols, case.deviation);
        if case.odd != 0.0 {
            x[case.cols / 2] = case.odd;
        }
        // The largest is often among the last columns, which a block reads last.
        x[case.rows * case.cols - 1] *= 4.0;
        let weight = random.f32s(case.cols, 1.0);
        let factors = case.factors.then(|| random.f32s(case.cols, 1.0));
        let input = Input { x, weight, factors };

        let actual = quantized(harness, case.cols, &input, &input.x)?;
        check_codes(case, &input, &actual)?;
        same("the second run", &actual, &quantized(harness, case.cols, &input, &input.x)?)?;

        // With the norm before it, what it makes of the norm's own output.
        let fused = normed_and_quantized(harness, case.cols, &input)?;
        let normed = normed(harness, case.cols, &input)?;
        same("with the norm", &fused, &quantized(harness, case.cols, &input, &normed)?)?;
        same("the second run with the norm", &fused, &normed_and_quantized(harness, case.cols, &input)?)?;

        let last = (case.rows - 1) * case.cols;
        let alone = Input { x: input.x[last..].to_vec(), ..input };
        let [codes, scales] = normed_and_quantized(harness, case.cols, &alone)?;
        same_bits("the last row alone", &fused[0][last..], &codes)?;
        same_bits("the last row's scale alone", &fused[1][(case.rows - 1) * 4..], &scales)
    }
}

fn same(what: &str, a: &Output, b: &Output) -> Result<(), Failure> {
    same_bits(&format!("{what}: codes"), &a[0], &b[0])?;
    same_bits(&format!("{what}: scales"), &a[1], &b[1])
}

/// Each scale must be that of its row, each code as near to its value as a rounding can be that saw the scale's own.
fn check_codes(case: &Case, input: &Input, [codes, scales]: &Output) -> Result<(), Failure> {
    let scales = f32_values(scales);
    let factor = |col: usize| input.factors.as_ref().map_or(1.0, |factors| f64::from(factors[col]));
    for (row, x) in input.x.chunks(case.cols).enumerate() {
        let y: Vec<f64> = x.iter().enumerate().map(|(col, &x)| f64::from(x) * factor(col)).collect();
        if y.iter().any(|y| !y.is_finite()) {
            if scales[row].is_finite() {
                return Err(format!("row {row} isn't finite, its scale is {}", scales[row]));
            }
            continue;
        }
        let scale = kv_scale(KvFormat::Int8, &y).ok_or("a format without scales")?;
        let bound = Bound { shape: vec![1], limits: vec![scale * 3e-7] };
        compare(&format!("scale of row {row}"), &scales[row..=row], &[scale], &bound).map_err(mismatch)?;
        let values: Vec<f64> = y.iter().map(|y| if scale == 0.0 { 0.0 } else { y / scale }).collect();
        let bound = Bound { shape: vec![case.cols], limits: vec![0.5 + 127.0 * 5e-7; case.cols] };
        let found: Vec<f32> =
            codes[row * case.cols..][..case.cols].iter().map(|&code| f32::from(code as i8)).collect();
        compare(&format!("codes of row {row}"), &found, &values, &bound).map_err(mismatch)?;
    }
    Ok(())
}

fn quantized<D: Driver>(
    harness: &Harness<D>,
    cols: usize,
    input: &Input,
    x: &[f32],
) -> Result<Output, Failure> {
    let (mut arena, rows) = (harness.arena(), x.len() / cols);
    let x = arena.input_bf16("x", x)?;
    let factors = match &input.factors {
        Some(factors) => Some(arena.input_f32("factors", factors)?),
        None => None,
    };
    let (codes, scales) = (arena.alloc("codes", rows * cols)?, arena.alloc("scales", rows * 4)?);
    let params = abi::QuantizeRows {
        x: arena.address(x),
        factors: factors.map_or(0, |factors| arena.address(factors)),
        codes: arena.address(codes),
        scales: arena.address(scales),
        rows: rows as u32,
        cols: cols as u32,
    };
    arena.launch(&QUANTIZE_ROWS, [rows as u32, 1, 1], &params)?;
    Ok([arena.all_bytes(codes)?, arena.all_bytes(scales)?])
}

fn normed_and_quantized<D: Driver>(
    harness: &Harness<D>,
    cols: usize,
    input: &Input,
) -> Result<Output, Failure> {
    let (mut arena, rows) = (harness.arena(), input.x.len() / cols);
    let (x, weight) = (arena.input_bf16("x", &input.x)?, arena.input_f32("weight", &input.weight)?);
    let factors = match &input.factors {
        Some(factors) => Some(arena.input_f32("factors", factors)?),
        None => None,
    };
    let (codes, scales) = (arena.alloc("codes", rows * cols)?, arena.alloc("scales", rows * 4)?);
    let params = abi::RmsNormInt8 {
        x: arena.address(x),
        weight: arena.address(weight),
        factors: factors.map_or(0, |factors| arena.address(factors)),
        codes: arena.address(codes),
        scales: arena.address(scales),
        rows: rows as u32,
        cols: cols as u32,
        eps: EPS,
        reserved: 0,
    };
    arena.launch(&RMS_NORM_INT8, [rows as u32, 1, 1], &params)?;
    Ok([arena.all_bytes(codes)?, arena.all_bytes(scales)?])
}

/// The output of the norm alone.
fn normed<D: Driver>(harness: &Harness<D>, cols: usize, input: &Input) -> Result<Vec<f32>, Failure> {
    let (mut arena, rows) = (harness.arena(), input.x.len() / cols);
    let (x, weight) = (arena.input_bf16("x", &input.x)?, arena.input_f32("weight", &input.weight)?);
    let out = arena.alloc("out", input.x.len() * 2)?;
    let params = abi::RmsNorm {
        x: arena.address(x),
        residual: 0,
        weight: arena.address(weight),
        out: arena.address(out),
        rows: rows as u32,
        cols: cols as u32,
        eps: EPS,
        reserved: 0,
    };
    arena.launch(&RMS_NORM, [rows as u32, 1, 1], &params)?;
    Ok(bf16_values(&arena.all_bytes(out)?))
}
