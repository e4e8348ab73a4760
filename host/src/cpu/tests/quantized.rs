use super::*;
use crate::{ActivationBits, CodeBits, HostQuantized, QuantizedPart, QuantizedSpec};

/// How a part is made up.
#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    cols: usize,
    bits: CodeBits,
    group: usize,
    symmetric: bool,
    ordered: bool,
    factors: bool,
    eight_bits: bool,
}

const FOUR: Case = Case {
    rows: 16,
    cols: 128,
    bits: CodeBits::Four,
    group: 32,
    symmetric: false,
    ordered: true,
    factors: false,
    eight_bits: false,
};
const EIGHT: Case = Case { bits: CodeBits::Eight, ..FOUR };

fn spec(numbers: &mut Numbers, case: Case) -> QuantizedSpec {
    let Case { rows, cols, bits, group, .. } = case;
    let groups = cols.div_ceil(group);
    let mut code = |symmetric: bool| match symmetric {
        true => bits.middle(),
        false => numbers.next() as u8 & bits.largest(),
    };
    let codes = (0..rows * cols).map(|_| code(false)).collect();
    let zeros = (0..rows * groups).map(|_| code(case.symmetric)).collect();
    let scales = numbers.floats(rows * groups).iter().map(|x| x * 0.1).collect();
    let mut order: Vec<u32> = (0..cols as u32).collect();
    for i in (1..cols).rev() {
        order.swap(i, numbers.next() as usize % (i + 1));
    }
    QuantizedSpec {
        rows,
        cols,
        bits,
        group,
        codes,
        scales,
        scale_type: DType::F32,
        zeros,
        permutation: (!case.ordered).then_some(order),
        pre_scale: case.factors.then(|| numbers.floats(cols).iter().map(|x| x + 1.5).collect()),
        activations: if case.eight_bits { ActivationBits::Eight } else { ActivationBits::Full },
    }
}

/// Sums in f64 of what the fields say, and of their magnitudes.
fn product(x: &[f32], m: usize, parts: &[QuantizedSpec]) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    for x in x.chunks_exact(parts[0].cols).take(m) {
        for part in parts {
            let factor = |col: usize| part.pre_scale.as_ref().map_or(1.0, |factors| factors[col]);
            let x: Vec<f32> = x.iter().enumerate().map(|(col, x)| x * factor(col)).collect();
            let scale = x.iter().fold(0.0f32, |a, x| a.max(x.abs())) / 127.0;
            let rounded = |x: f32| match part.activations {
                ActivationBits::Full => f64::from(x),
                ActivationBits::Eight => f64::from((x / scale).round_ties_even()) * f64::from(scale),
            };
            let groups = part.cols.div_ceil(part.group);
            for row in 0..part.rows {
                let terms = (0..part.cols).map(|col| {
                    let at = row * groups + col / part.group;
                    let code = i32::from(part.codes[row * part.cols + col]) - i32::from(part.zeros[at]);
                    let from = part.permutation.as_ref().map_or(col, |order| order[col] as usize);
                    f64::from(code) * f64::from(part.scales[at]) * rounded(x[from])
                });
                out.push(terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs())));
            }
        }
    }
    out
}

fn device_matrix(device: &CpuDevice, parts: &[QuantizedSpec]) -> super::super::CpuMatrix {
    let parts = parts.iter().map(|part| QuantizedPart::new(part.clone()).unwrap()).collect();
    device.quantized(&HostQuantized::new(parts).unwrap()).unwrap()
}

fn cases() -> Vec<Vec<Case>> {
    let w8a8 = Case { group: 100, cols: 100, symmetric: true, eight_bits: true, ..EIGHT };
    vec![
        vec![FOUR],
        vec![EIGHT],
        vec![Case { rows: 1, cols: 1, group: 1, ..FOUR }],
        vec![Case { rows: 1, cols: 1, group: 1, ..EIGHT }],
        vec![Case { rows: 33, cols: 127, ..FOUR }, Case { rows: 7, cols: 127, ..EIGHT }],
        // Groups that don't fill words, and a short last one.
        vec![
            Case { rows: 47, cols: 101, group: 11, ..FOUR },
            Case { rows: 3, cols: 101, group: 101, ..FOUR },
        ],
        vec![Case { rows: 150, cols: 701, group: 701, symmetric: true, ..EIGHT }],
        vec![Case { rows: 70, cols: 640, group: 320, ordered: false, ..FOUR }; 2],
        vec![Case { rows: 17, cols: 96, group: 13, ordered: false, factors: true, ..EIGHT }],
        vec![w8a8, Case { rows: 5, factors: true, ..w8a8 }, Case { rows: 31, ordered: false, ..w8a8 }],
    ]
}

#[test]
fn products_agree_with_plain_loops() {
    let mut numbers = Numbers::new(11);
    for device in devices() {
        for (index, cases) in cases().into_iter().enumerate() {
            let parts: Vec<QuantizedSpec> = cases.iter().map(|&case| spec(&mut numbers, case)).collect();
            if device.precision == Precision::Bf16 && cases.iter().any(|case| case.eight_bits) {
                continue;
            }
            let w = device_matrix(&device, &parts);
            let (n, k) = (w.rows, w.cols);
            for m in [0, 1, 2, 3, 5, 6, 7, 8, 13, 200] {
                let (x, bias) = (numbers.floats(m * k), numbers.floats(n));
                let before = numbers.floats(m * n);
                let expected = product(&x, m, &parts);
                let vector = device.vector(&bias).unwrap();
                let x = tensor(&device, m, k, &x);
                let mut out = tensor(&device, m, n, &[]);
                device.linear(&x, &w, Some(&vector), &mut out).unwrap();
                let mut residual = tensor(&device, m, n, &before);
                device.linear_residual(&x, &w, Some(&vector), &mut residual).unwrap();
                let (out, residual) = (device.read(&out).unwrap(), device.read(&residual).unwrap());
                let relative = if device.precision == Precision::Bf16 { 1.0 / 128.0 } else { 1e-6 };
                for (i, &(sum, size)) in expected.iter().enumerate() {
                    let (bias, before) = (f64::from(bias[i % n]), f64::from(before[i]));
                    let close = |found: f32, expected: f64| {
                        (f64::from(found) - expected).abs() <= relative * (size + expected.abs() + 1.0)
                    };
                    let at = format!("case {index}, {m} rows, element {i}, {}", device.describe());
                    assert!(close(out[i], sum + bias), "{at}: {} is not {}", out[i], sum + bias);
                    assert!(close(residual[i], sum + bias + before), "residual of {at}: {}", residual[i]);
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_on_any_threads() {
    let mut numbers = Numbers::new(12);
    let m = 211;
    for device in devices() {
        for cases in cases() {
            let parts: Vec<QuantizedSpec> = cases.iter().map(|&case| spec(&mut numbers, case)).collect();
            let w = device_matrix(&device, &parts);
            let (n, k) = (w.rows, w.cols);
            let x = numbers.floats(m * k);
            let run = |first: usize, rows: usize, threads: usize| {
                with_threads(threads, || {
                    let x = tensor(&device, rows, k, &x[first * k..(first + rows) * k]);
                    let mut out = tensor(&device, rows, n, &[]);
                    device.linear(&x, &w, None, &mut out).unwrap();
                    bits(&device.read(&out).unwrap())
                })
            };
            let all = run(0, m, 3);
            for (first, rows, threads) in
                [(0, 1, 1), (210, 1, 3), (5, 2, 2), (7, 3, 1), (90, 4, 2), (91, 5, 1)].into_iter().chain([
                    (92, 6, 3),
                    (3, 7, 2),
                    (17, 193, 2),
                    (0, m, 1),
                ])
            {
                let part = &all[first * n..(first + rows) * n];
                assert!(run(first, rows, threads) == part, "{rows} rows from {first} on {threads} threads");
            }
        }
    }
}

#[test]
fn embedding_gives_the_rows_back() {
    let mut numbers = Numbers::new(13);
    let parts = [
        Case { rows: 20, cols: 24, group: 5, ordered: false, ..FOUR },
        Case { rows: 30, cols: 24, group: 24, ..EIGHT },
    ]
    .map(|case| spec(&mut numbers, case));
    let expected =
        HostQuantized::new(parts.iter().map(|part| QuantizedPart::new(part.clone()).unwrap()).collect())
            .unwrap()
            .dequantized();
    let device = CpuDevice::new();
    let w = device_matrix(&device, &parts);
    let mut batch = crate::Batch::default();
    batch.push(&[49, 0, 19, 20, 21], 0, &[0], 16, crate::Outputs::Last);
    let step = device.step(&batch).unwrap();
    let mut out = tensor(&device, 5, 24, &[]);
    device.embed(&w, &step, &mut out).unwrap();
    let rows: Vec<f32> =
        batch.ids.iter().flat_map(|&id| expected[id as usize * 24..][..24].to_vec()).collect();
    assert_eq!(device.read(&out).unwrap(), rows);
}
