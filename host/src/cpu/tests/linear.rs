use super::*;
use crate::Error;

fn product(x: &[f32], w: &[f64], bias: Option<&[f32]>, [m, n, k]: [usize; 3]) -> Vec<f64> {
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let sum: f64 = (0..k).map(|l| f64::from(x[i * k + l]) * w[j * k + l]).sum();
            out.push(sum + bias.map_or(0.0, |bias| f64::from(bias[j])));
        }
    }
    out
}

#[test]
fn products_agree_with_plain_loops() {
    let mut numbers = Numbers::new(1);
    let shapes = [
        [1, 1, 1],
        [1, 70, 300],
        [2, 33, 16],
        [3, 47, 257],
        [4, 16, 5],
        [5, 80, 64],
        [6, 15, 513],
        [7, 31, 260],
        [13, 130, 31],
        [200, 17, 40],
        [9, 20, 0],
        [11, 34, 1025],
        [103, 40, 2050],
    ];
    for device in devices() {
        for (case, [m, n, k]) in shapes.into_iter().enumerate() {
            let dtype = [DType::Bf16, DType::F16, DType::F32][case % 3];
            let (x, w) = (numbers.floats(m * k), numbers.floats(n * k));
            let (bias, before) = (numbers.floats(n), numbers.floats(m * n));
            let expected = product(&x, &stored(&w, dtype, device.precision), Some(&bias), [m, n, k]);
            let x = tensor(&device, m, k, &x);
            let w = matrix(&device, n, k, &w, dtype);
            let bias = device.vector(&bias).unwrap();
            let mut out = tensor(&device, m, n, &[]);
            device.linear(&x, &w, Some(&bias), &mut out).unwrap();
            assert_close(&device, "linear", &device.read(&out).unwrap(), &expected, 1e-4);

            let mut residual = tensor(&device, m, n, &before);
            device.linear_residual(&x, &w, Some(&bias), &mut residual).unwrap();
            let sum: Vec<f64> = expected.iter().zip(&before).map(|(a, &b)| a + f64::from(b)).collect();
            assert_close(&device, "linear_residual", &device.read(&residual).unwrap(), &sum, 1e-4);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_on_any_threads() {
    let [m, n, k] = [203, 170, 2300];
    let mut numbers = Numbers::new(2);
    let (x, w) = (numbers.floats(m * k), numbers.floats(n * k));
    for device in devices() {
        let w = matrix(&device, n, k, &w, DType::Bf16);
        let run = |first: usize, rows: usize, threads: usize| {
            with_threads(threads, || {
                let x = tensor(&device, rows, k, &x[first * k..(first + rows) * k]);
                let mut out = tensor(&device, rows, n, &[]);
                device.linear(&x, &w, None, &mut out).unwrap();
                bits(&device.read(&out).unwrap())
            })
        };
        let all = run(0, m, 3);
        for (first, rows, threads) in [
            (0, 1, 1),
            (202, 1, 3),
            (5, 2, 2),
            (7, 3, 1),
            (90, 4, 2),
            (91, 5, 1),
            (92, 6, 3),
            (3, 7, 2),
            (17, 151, 2),
            (0, m, 1),
        ] {
            let part = &all[first * n..(first + rows) * n];
            assert!(run(first, rows, threads) == part, "{rows} rows from {first} on {threads} threads");
        }
    }
}

#[test]
fn a_gated_product_has_the_bits_of_its_parts() {
    let mut numbers = Numbers::new(4);
    // Where the gate ends within a panel, and few rows, the parts are what is computed.
    let shapes = [
        [1, 16, 30],
        [6, 32, 7],
        [7, 16, 0],
        [7, 16, 64],
        [8, 40, 33],
        [97, 176, 1030],
        [193, 48, 384],
        [20, 64, 2049],
    ];
    for device in devices() {
        for (case, [m, inter, k]) in shapes.into_iter().enumerate() {
            let dtype = [DType::Bf16, DType::F16, DType::F32][case % 3];
            let (x, w) = (numbers.floats(m * k), numbers.floats(2 * inter * k));
            let x = tensor(&device, m, k, &x);
            let w = matrix(&device, 2 * inter, k, &w, dtype);
            let mut gate_up = tensor(&device, m, 2 * inter, &[]);
            let mut expected = tensor(&device, m, inter, &[]);
            device.linear(&x, &w, None, &mut gate_up).unwrap();
            device.silu_mul(&gate_up, &mut expected).unwrap();
            for threads in [1, 3] {
                let mut room = tensor(&device, m, 2 * inter, &[]);
                let mut out = tensor(&device, m, inter, &vec![f32::NAN; m * inter]);
                with_threads(threads, || device.linear_gated(&x, &w, &mut room, &mut out).unwrap());
                assert!(
                    bits(&device.read(&out).unwrap()) == bits(&device.read(&expected).unwrap()),
                    "{m} rows, {inter} gated columns, {k} columns, {threads} threads"
                );
            }
        }
    }
}

#[test]
fn embedding_gives_the_rows_back() {
    let mut numbers = Numbers::new(3);
    let table = numbers.floats(50 * 24);
    for device in devices() {
        for dtype in [DType::Bf16, DType::F16, DType::F32] {
            let w = matrix(&device, 50, 24, &table, dtype);
            let stored = stored(&table, dtype, device.precision);
            let mut batch = crate::Batch::default();
            batch.push(&[49, 0, 17, 33, 17], 0, &[0], 16, crate::Outputs::Last);
            let step = device.step(&batch).unwrap();
            let mut out = tensor(&device, 5, 24, &[]);
            device.embed(&w, &step, &mut out).unwrap();
            let expected: Vec<f64> =
                batch.ids.iter().flat_map(|&id| stored[id as usize * 24..][..24].to_vec()).collect();
            let found: Vec<f64> = device.read(&out).unwrap().into_iter().map(f64::from).collect();
            assert_eq!(found, expected);
            batch.ids[2] = 50;
            let refused = device.embed(&w, &device.step(&batch).unwrap(), &mut out);
            assert!(matches!(refused, Err(Error::Shape { op: "embed", what: "ids", .. })));
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let device = CpuDevice::new();
    let w = matrix(&device, 4, 8, &[0.0; 32], DType::F32);
    let bias = device.vector(&[0.0; 5]).unwrap();
    let (x, narrow) = (tensor(&device, 2, 8, &[0.0; 16]), tensor(&device, 2, 7, &[0.0; 14]));
    let mut out = device.tensor(2, 4).unwrap();
    let what = |result: crate::Result<()>| match result {
        Err(Error::Shape { op: "linear", what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(what(device.linear(&narrow, &w, None, &mut out)), "x");
    assert_eq!(what(device.linear(&x, &w, Some(&bias), &mut out)), "bias");
    assert_eq!(what(device.linear(&x, &w, None, &mut device.tensor(1, 4).unwrap())), "out");
    assert_eq!(what(device.linear(&x, &w, None, &mut device.tensor(2, 5).unwrap())), "out");
    let gated = |x, w, inter| {
        device.linear_gated(x, w, &mut device.tensor(2, 4).unwrap(), &mut device.tensor(2, inter).unwrap())
    };
    assert!(matches!(gated(&narrow, &w, 2), Err(Error::Shape { op: "linear_gated", what: "x", .. })));
    assert!(matches!(gated(&x, &w, 4), Err(Error::Shape { op: "linear_gated", what: "w", .. })));
    let short = HostMatrix { parts: vec![(4, &[0u8; 63])], cols: 8, dtype: DType::Bf16 };
    assert!(matches!(device.matrix(&short), Err(Error::Shape { op: "matrix", what: "parts", .. })));
    assert!(out.set_rows(3).is_err());
}
