use super::*;
use crate::cpu::cache::Stored;
use crate::{Batch, CacheSpec, Gelu, KvDType, Outputs, RopeAppend};

fn normalised(x: &[f64], weight: &[f32], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, &w)| x / (mean + eps).sqrt() * f64::from(w)).collect()
}

fn widened(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn norms_agree_with_plain_loops() {
    let mut numbers = Numbers::new(6);
    for device in devices() {
        for (rows, cols) in [(1, 1), (3, 16), (5, 100), (40, 2000)] {
            let (x, before, weight) =
                (numbers.floats(rows * cols), numbers.floats(rows * cols), numbers.floats(cols));
            let vector = device.vector(&weight).unwrap();
            let t = tensor(&device, rows, cols, &x);
            let mut out = tensor(&device, rows, cols, &[]);
            device.rms_norm(&t, &vector, 1e-5, &mut out).unwrap();
            let expected: Vec<f64> =
                widened(&x).chunks(cols).flat_map(|row| normalised(row, &weight, 1e-5)).collect();
            assert_close(&device, "rms_norm", &device.read(&out).unwrap(), &expected, 2e-6);

            let mut residual = tensor(&device, rows, cols, &before);
            device.add_rms_norm(&t, &mut residual, &vector, 1e-5, &mut out).unwrap();
            let sum: Vec<f64> = x.iter().zip(&before).map(|(&a, &b)| f64::from(a) + f64::from(b)).collect();
            assert_close(&device, "residual", &device.read(&residual).unwrap(), &sum, 2e-7);
            let expected: Vec<f64> =
                sum.chunks(cols).flat_map(|row| normalised(row, &weight, 1e-5)).collect();
            assert_close(&device, "add_rms_norm", &device.read(&out).unwrap(), &expected, 2e-6);
        }
    }
}

#[test]
fn gating_agrees_with_plain_loops_even_at_the_ends() {
    let mut numbers = Numbers::new(7);
    for device in devices() {
        for (rows, cols) in [(1, 1), (3, 37), (20, 640)] {
            let mut x: Vec<f32> = numbers.floats(rows * 2 * cols).iter().map(|x| x * 8.0).collect();
            x[0] = [-100.0, 100.0, 0.0][rows % 3];
            let mut out = tensor(&device, rows, cols, &[]);
            device.silu_mul(&tensor(&device, rows, 2 * cols, &x), &mut out).unwrap();
            let expected: Vec<f64> = widened(&x)
                .chunks(2 * cols)
                .flat_map(|row| {
                    (0..cols).map(|j| row[j] / (1.0 + (-row[j]).exp()) * row[cols + j]).collect::<Vec<_>>()
                })
                .collect();
            assert_close(&device, "silu_mul", &device.read(&out).unwrap(), &expected, 1e-6);
        }
    }
}

#[test]
fn rotation_normalises_rotates_and_appends() {
    let mut numbers = Numbers::new(8);
    let (q_heads, kv_heads, head_dim, tokens) = (3, 2, 20, 9);
    let cols = (q_heads + 2 * kv_heads) * head_dim;
    let freqs: Vec<f32> = (0..head_dim / 2).map(|i| 1.0 / 100f32.powf(i as f32 / 10.0)).collect();
    for device in devices() {
        for norms in [false, true] {
            let (qkv, qw, kw) =
                (numbers.floats(tokens * cols), numbers.floats(head_dim), numbers.floats(head_dim));
            let (q_norm, k_norm) = (device.vector(&qw).unwrap(), device.vector(&kw).unwrap());
            let rope = device.rope(&freqs, 1.5, 64).unwrap();
            let mut cache = device
                .cache(CacheSpec {
                    layers: 1,
                    pages: 5,
                    page_size: 18,
                    kv_heads,
                    head_dim,
                    dtype: KvDType::Native,
                })
                .unwrap();
            let mut batch = Batch::default();
            batch.push(&vec![0; tokens], 13, &[4, 2], 18, Outputs::None);
            let step = device.step(&batch).unwrap();
            let mut q = tensor(&device, tokens, q_heads * head_dim, &[]);
            let t = tensor(&device, tokens, cols, &qkv);
            let qk_norm = norms.then_some((&q_norm, &k_norm, 1e-6));
            let args = RopeAppend { qkv: &t, qk_norm, rope: &rope, q_heads, layer: 0 };
            device.rope_append(args, &step, &mut cache, &mut q).unwrap();
            let Stored::F32 { keys, values } = &cache.layers[0] else { panic!("of another kind") };
            for token in 0..tokens {
                let rotated = |head: usize, weight: &[f32]| {
                    let mut x = widened(&qkv[token * cols + head * head_dim..][..head_dim]);
                    if norms {
                        x = normalised(&x, weight, 1e-6);
                    }
                    let half = head_dim / 2;
                    (0..head_dim)
                        .map(|i| {
                            let angle = (13 + token) as f64 * f64::from(freqs[i % half]);
                            let (sin, cos) = angle.sin_cos();
                            let other = if i < half { -x[i + half] } else { x[i - half] };
                            1.5 * (x[i] * cos + other * sin)
                        })
                        .collect::<Vec<f64>>()
                };
                for head in 0..q_heads {
                    let found = &q.row(token)[head * head_dim..][..head_dim];
                    assert_close(&device, "query", found, &rotated(head, &qw), 2e-6);
                }
                let (page, offset) = if token < 5 { (4, 13 + token) } else { (2, token - 5) };
                for head in 0..kv_heads {
                    let panel = cache.layout.key_panel(page, head, offset) + offset % 16;
                    let found: Vec<f32> = (0..head_dim).map(|i| keys[panel + i * 16]).collect();
                    assert_close(&device, "key", &found, &rotated(q_heads + head, &kw), 2e-6);
                    let value = &values[cache.layout.value(page, head, offset)..][..head_dim];
                    let from = token * cols + (q_heads + kv_heads + head) * head_dim;
                    assert_eq!(bits(value), bits(&qkv[from..from + head_dim]).to_vec());
                }
            }
        }
    }
}

#[test]
fn outputs_are_selected_in_order() {
    let device = CpuDevice::new();
    let mut batch = Batch::default();
    batch.push(&[0; 3], 0, &[0], 8, Outputs::Last);
    batch.push(&[0; 2], 0, &[1], 8, Outputs::All);
    batch.push(&[0; 1], 0, &[2], 8, Outputs::None);
    let x = tensor(&device, 6, 1, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let mut out = device.tensor(3, 1).unwrap();
    device.select_outputs(&x, &device.step(&batch).unwrap(), &mut out).unwrap();
    assert_eq!(device.read(&out).unwrap(), [2.0, 3.0, 4.0]);
}

#[test]
fn the_exponential_is_exact_where_attention_relies_on_it() {
    use crate::cpu::isa::{Isa, Kernel};
    struct Check;
    impl Kernel for Check {
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) {
            let exp = |x: f32| isa.to_array(isa.exp(isa.splat(x)))[7];
            assert_eq!(exp(0.0).to_bits(), 1f32.to_bits());
            assert_eq!(exp(-0.0).to_bits(), 1f32.to_bits());
            assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
            assert_eq!(exp(-90.0).to_bits(), 0);
            assert!(exp(f32::NAN).is_nan());
            assert!(exp(f32::INFINITY) > 1e38);
            let of_loss = |x: f32| isa.to_array(isa.exp_of_loss(isa.splat(x)))[7];
            assert_eq!(of_loss(0.0).to_bits(), 1f32.to_bits());
            assert_eq!(of_loss(-0.0).to_bits(), 1f32.to_bits());
            assert_eq!(of_loss(f32::NEG_INFINITY).to_bits(), 0);
            assert_eq!(of_loss(-88.0).to_bits(), 0);
            assert!(of_loss(f32::NAN).is_nan());
            for i in -8760..=0 {
                let x = i as f32 / 100.0;
                let (exact, bound) = (f64::from(x).exp(), 1.5e-7 + 8e-8 * f64::from(x.abs()));
                assert!(
                    (f64::from(of_loss(x)) / exact - 1.0).abs() < bound,
                    "{x}: {} is not {exact}",
                    of_loss(x)
                );
            }
            for i in -8700..8800 {
                let x = i as f32 / 100.0;
                let exact = f64::from(x).exp();
                assert!((f64::from(exp(x)) / exact - 1.0).abs() < 2.5e-7, "{x}: {} is not {exact}", exp(x));
            }
        }
    }
    devices().into_iter().for_each(|device| device.level.run(Check));
}

/// The complementary error function by the trapezoidal rule over `exp(-u^2)`, which converges faster than any power of the step.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    // The integral over u >= 0 of exp(-(x + u)^2), by the substitution u = exp(s - exp(-s)).
    let step = 1.0 / 64.0;
    let sum: f64 = (-400..400)
        .map(|i| f64::from(i) * step)
        .map(|s| {
            let u = (s - (-s).exp()).exp();
            (-(x + u).powi(2)).exp() * u * (1.0 + (-s).exp())
        })
        .sum();
    2.0 / std::f64::consts::PI.sqrt() * sum * step
}

#[test]
fn softmax_is_of_the_keys_up_to_a_query_alone() {
    let mut numbers = Numbers::new(10);
    for device in devices() {
        for (heads, tokens) in [(1, 1), (3, 5), (2, 37), (1, 130)] {
            let x: Vec<f32> = numbers.floats(heads * tokens * tokens).iter().map(|x| x * 40.0).collect();
            let mut scores = tensor(&device, heads * tokens, tokens, &x);
            device.causal_softmax(0.5, &mut scores).unwrap();
            let mut expected = Vec::new();
            for (row, x) in widened(&x).chunks(tokens).enumerate() {
                let seen = row % tokens + 1;
                let largest = x[..seen].iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let exponentials = x[..seen].iter().map(|x| (0.5 * (x - largest)).exp()).collect::<Vec<_>>();
                let sum: f64 = exponentials.iter().sum();
                expected.extend(exponentials.iter().map(|exponential| exponential / sum));
                expected.extend(std::iter::repeat_n(0.0, tokens - seen));
            }
            let found = device.read(&scores).unwrap();
            assert_close(&device, "causal_softmax", &found, &expected, 2e-6);
            let hidden = found.chunks(tokens).enumerate().flat_map(|(row, x)| &x[row % tokens + 1..]);
            assert!(hidden.into_iter().all(|weight| *weight == 0.0));
        }
    }
}

#[test]
fn gelu_agrees_with_its_definition_in_the_tails_too() {
    assert!((erfc(0.5) - 0.479_500_122_186_953).abs() < 1e-12, "{}", erfc(0.5));
    let mut numbers = Numbers::new(9);
    for device in devices() {
        for (rows, cols) in [(1, 1), (3, 37), (20, 640)] {
            let mut x: Vec<f32> = numbers.floats(rows * cols).iter().map(|x| x * 6.0).collect();
            x[0] = [-40.0, 40.0, 0.0][rows % 3];
            let t = tensor(&device, rows, cols, &x);
            let mut out = tensor(&device, rows, cols, &[]);
            device.gelu(&t, Gelu::Erf, &mut out).unwrap();
            let exact: Vec<f64> = widened(&x).into_iter().map(|x| 0.5 * x * erfc(-x / 2f64.sqrt())).collect();
            let found = device.read(&out).unwrap();
            assert_close(&device, "gelu", &found, &exact, 1e-6);
            if device.precision == Precision::F32 {
                // Where it is small it still has digits.
                for (&found, &exact) in found.iter().zip(&exact) {
                    assert!(
                        (f64::from(found) - exact).abs() <= 1e-5 * exact.abs() + 1e-37,
                        "{found} {exact}"
                    );
                }
            }
            device.gelu(&t, Gelu::Tanh, &mut out).unwrap();
            let tanh = |x: f64| {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            };
            let expected: Vec<f64> = widened(&x).into_iter().map(tanh).collect();
            assert_close(&device, "gelu by tanh", &device.read(&out).unwrap(), &expected, 1e-6);
        }
    }
}

#[test]
fn layer_norms_agree_with_plain_loops_far_from_zero_too() {
    let mut numbers = Numbers::new(10);
    for device in devices() {
        for (rows, cols) in [(1, 1), (3, 16), (5, 100), (40, 2000)] {
            for offset in [0.0, 1000.0] {
                let x: Vec<f32> = numbers.floats(rows * cols).iter().map(|x| x + offset).collect();
                let (weight, bias) = (numbers.floats(cols), numbers.floats(cols));
                let vectors = (device.vector(&weight).unwrap(), device.vector(&bias).unwrap());
                let t = tensor(&device, rows, cols, &x);
                let mut out = tensor(&device, rows, cols, &[]);
                device.layer_norm(&t, &vectors.0, Some(&vectors.1), 1e-5, &mut out).unwrap();
                let expected: Vec<f64> = widened(&x)
                    .chunks(cols)
                    .flat_map(|row| {
                        let mean = row.iter().sum::<f64>() / cols as f64;
                        let centred: Vec<f64> = row.iter().map(|x| x - mean).collect();
                        let variance = centred.iter().map(|x| x * x).sum::<f64>() / cols as f64;
                        (0..cols)
                            .map(|j| {
                                let scaled = centred[j] / (variance + 1e-5).sqrt();
                                scaled * f64::from(weight[j]) + f64::from(bias[j])
                            })
                            .collect::<Vec<_>>()
                    })
                    .collect();
                // Sums of some hundred numbers near 1000 are off by some thousandths at most; the deviation is about 0.6.
                let floor = if offset == 0.0 { 2e-6 } else { 5e-3 };
                assert_close(&device, "layer_norm", &device.read(&out).unwrap(), &expected, floor);
            }
        }
    }
}

#[test]
fn rows_of_the_host_and_sums_of_tables() {
    for device in devices() {
        let values = Numbers::new(11).floats(6 * 20);
        let mut written = tensor(&device, 6, 20, &[]);
        device.write(&values[..3 * 20], &mut written).unwrap();
        let stored = stored(&values, DType::F32, device.precision);
        assert_close(&device, "write", &device.read(&written).unwrap(), &stored[..3 * 20], 0.0);
        assert!(device.write(&values[..21], &mut written).is_err());
        let (table, places) = (
            matrix(&device, 6, 20, &values, DType::F32),
            matrix(&device, 3, 20, &values[20..80], DType::F32),
        );
        let mut batch = Batch::default();
        batch.push(&[4, 5], 1, &[0], 16, Outputs::None);
        let step = device.step(&batch).unwrap();
        device.embed_sum(&table, &places, &step, &mut written).unwrap();
        // Positions 1 and 2 of the places are rows 2 and 3 of the values.
        let expected: Vec<f64> = (0..40).map(|i| stored[80 + i] + stored[40 + i]).collect();
        assert_close(&device, "embed_sum", &device.read(&written).unwrap(), &expected, 1e-6);
        batch.positions[1] = 3;
        let step = device.step(&batch).unwrap();
        assert!(device.embed_sum(&table, &places, &step, &mut written).is_err());
    }
}
