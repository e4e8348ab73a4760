//! Matrix products on Hopper: rows of generated tokens and of prompts in one batch, each by its own kernel, with bits that depend on
//! the class of a row alone.

use tilewright_host::{
    DType, Device, Error, HostMatrix, HostQuantized, QuantizedSpec, cpu::CpuDevice, gpu::GpuDevice,
};
use tilewright_tests::emulated::Emulated;

use super::{
    quantized_products::{bytes, part, stacked},
    setup::*,
};

/// As in the tests of every operation: twice the relative error of rounding to bf16.
const TWO_ROUNDINGS: f32 = 1.0 / 256.0;

/// Weights `[n, k]`.
#[derive(Clone)]
pub enum Weights {
    Bf16(Vec<f32>),
    Quantized(HostQuantized),
}

/// A product of `rows`, the first `generated` of which are generated tokens'.
pub struct Case {
    pub rows: usize,
    pub generated: usize,
    pub n: usize,
    pub k: usize,
    pub weights: Weights,
}

/// What a case's products gave, row by row: bits of the product, with bias, with bias and residual, as logits.
type Found = Vec<Vec<u32>>;

impl Case {
    pub fn matrix<D: Device>(&self, device: &D) -> D::Matrix {
        match &self.weights {
            Weights::Bf16(values) => matrix(device, values, self.k),
            Weights::Quantized(weights) => device.quantized(weights).expect("a matrix"),
        }
    }

    /// All products of rows `from..to`.
    pub fn run<D: Device>(&self, device: &D, from: usize, to: usize) -> Vec<Vec<f32>> {
        let (n, k, rows) = (self.n, self.k, to - from);
        let generated = self.generated.clamp(from, to) - from;
        let of_rows = |seed, cols: usize, scale| {
            Numbers::new(seed).take(self.rows * cols, scale)[from * cols..to * cols].to_vec()
        };
        let x = tensor_of(device, &of_rows(6, k, 1.0), k, generated);
        let mut residual = tensor_of(device, &of_rows(9, n, 2.0), n, generated);
        let bias = device.vector(&Numbers::new(8).take(n, 2.0)).expect("a vector");
        let w = self.matrix(device);
        let (mut plain, mut biased) =
            (device.tensor(rows, n).expect("out"), device.tensor(rows, n).expect("out"));
        let mut logits = device.logits(rows, n).expect("logits");
        device.linear(&x, &w, None, &mut plain).expect("a product");
        device.linear(&x, &w, Some(&bias), &mut biased).expect("a product");
        device.linear_residual(&x, &w, Some(&bias), &mut residual).expect("a product");
        device.project_logits(&x, &w, &mut logits).expect("logits");
        let [plain, biased, residual] =
            [&plain, &biased, &residual].map(|tensor| device.read(tensor).expect("activations"));
        vec![plain, biased, residual, device.read_logits(&logits).expect("logits")]
    }

    fn bits(&self, device: &GpuDevice<Emulated>, from: usize, to: usize) -> Found {
        self.run(device, from, to).iter().map(|values| bits(values)).collect()
    }

    /// Holds the case to the CPU and some of its rows alone to the same bits. The kernels it ran on, each once.
    pub fn check(&self, what: &str) -> Vec<&'static str> {
        let device = hopper();
        let found = self.run(&device, 0, self.rows);
        let mut kernels: Vec<_> =
            device.driver().take_launched().iter().map(|launched| launched.kernel).collect();
        let expected = self.run(&CpuDevice::new(), 0, self.rows);
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(what, found, expected, TWO_ROUNDINGS, 1e-4);
        }
        let generated = self.generated;
        for row in [0, generated.saturating_sub(1), generated, self.rows - 1] {
            if row < self.rows {
                let alone = self.bits(&device, row, row + 1);
                for (alone, all) in alone.iter().zip(&found) {
                    assert!(*alone == bits(&all[row * self.n..][..self.n]), "{what}: row {row} alone");
                }
            }
        }
        kernels.retain(|name| {
            name.starts_with("gemm")
                || name.starts_with("dequantize")
                || ["gather_columns", "quantize_rows"].contains(name)
        });
        kernels.sort_unstable();
        kernels.dedup();
        let unexpected = kernels.iter().find(|kernel| !device.driver().is_prepared(kernel));
        assert_eq!(unexpected, None, "{what}: not made ready with the matrix");
        kernels
    }
}

#[test]
fn bf16_rows_go_by_their_class() {
    let case = |rows, generated, n: usize, k: usize| {
        let weights = Weights::Bf16(Numbers::new(7).take(n * k, 1.0));
        Case { rows, generated, n, k, weights }.check(&format!("{rows} x {n} x {k}, {generated} generated"))
    };
    // Five lines of `k`: two splits.
    assert_eq!(case(3, 1, 264, 320), ["gemm_sm90_bf16_128x128", "gemm_whole_bf16"]);
    assert_eq!(case(70, 66, 72, 328), ["gemm_few_bf16_128", "gemm_sm90_bf16_128x128"]);
    assert_eq!(case(34, 33, 72, 328), ["gemm_few_bf16_64", "gemm_sm90_bf16_128x128"]);
    assert_eq!(case(12, 12, 136, 40), ["gemm_few_bf16_16"]);
    assert_eq!(case(130, 0, 8, 8), ["gemm_sm90_bf16_128x128"]);
    assert_eq!(case(2, 1, 600, 24), ["gemm_sm90_bf16_128x256", "gemm_whole_bf16"]);
    // More generated rows than one launch takes: the rest are a launch of their own.
    assert_eq!(case(260, 259, 16, 320), ["gemm_few_bf16_128", "gemm_few_bf16_8", "gemm_sm90_bf16_128x128"]);
}

#[test]
fn rows_of_weights_that_hopper_does_not_take_go_to_the_baseline() {
    let (rows, vocab, k) = (5, 83, 64);
    fn logits<D: Device>(device: &D, [rows, vocab, k]: [usize; 3]) -> Vec<f32> {
        let x = tensor_of(device, &Numbers::new(6).take(rows * k, 1.0), k, 2);
        let mut logits = device.logits(rows, vocab).expect("logits");
        let w = matrix(device, &Numbers::new(7).take(vocab * k, 1.0), k);
        device.project_logits(&x, &w, &mut logits).expect("logits");
        device.read_logits(&logits).expect("logits")
    }
    let device = hopper();
    let shape = [rows, vocab, k];
    assert_close("83 logits", &logits(&device, shape), &logits(&CpuDevice::new(), shape), 1e-5, 1e-5);
    let launched = device.driver().take_launched();
    let gemms: Vec<_> =
        launched.iter().map(|launched| launched.kernel).filter(|name| name.starts_with("gemm")).collect();
    assert_eq!(gemms, ["gemm_bf16_16x64"]);
}

/// `silu(gate) * up` of `rows` rows, the first `generated` generated ones, of which `from..to` are computed.
fn gated<D: Device>(device: &D, case: &Case, from: usize, to: usize) -> Vec<f32> {
    let (rows, inter, k) = (to - from, case.n / 2, case.k);
    let x = &Numbers::new(6).take(case.rows * k, 0.25)[from * k..to * k];
    let x = tensor_of(device, x, k, case.generated.clamp(from, to) - from);
    let w = match &case.weights {
        Weights::Bf16(values) => {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let (gate, up) = bytes.split_at(bytes.len() / 2);
            let parts = vec![(inter, gate), (inter, up)];
            device.gated(&HostMatrix { parts, cols: k, dtype: DType::F32 }).expect("a matrix")
        }
        Weights::Quantized(weights) => device.gated_quantized(weights).expect("a matrix"),
    };
    let mut gate_up = device.tensor(rows, case.n).expect("a tensor");
    let mut out = device.tensor(rows, inter).expect("a tensor");
    device.linear_gated(&x, &w, &mut gate_up, &mut out).expect("a product");
    device.read(&out).expect("activations")
}

#[test]
fn gates_are_joined_with_what_they_gate() {
    let bf16 = |rows, generated, n: usize, k: usize| {
        let weights = Weights::Bf16(Numbers::new(7).take(n * k, 0.5));
        Case { rows, generated, n, k, weights }
    };
    let int4 = |rows, generated, n, k| {
        let weights =
            stacked(vec![part(n / 2, k, 128, DType::F16, true), part(n / 2, k, 128, DType::F16, true)]);
        Case { rows, generated, n, k, weights }
    };
    let in_order = |rows, generated, n, k: usize| {
        let order: Vec<u32> = (0..k).map(|col| ((col * 37 + 5) % k) as u32).collect();
        let half =
            || QuantizedSpec { permutation: Some(order.clone()), ..part(n / 2, k, 128, DType::F16, true) };
        Case { rows, generated, n, k, weights: stacked(vec![half(), half()]) }
    };
    let int8 = |rows, generated, n, k| {
        let weights = stacked(vec![bytes(n / 2, k), bytes(n / 2, k)]);
        Case { rows, generated, n, k, weights }
    };
    let cases = [
        bf16(3, 2, 272, 320),
        bf16(70, 66, 48, 72),
        bf16(4, 0, 32, 64),
        int4(3, 2, 272, 256),
        int4(11, 11, 48, 128),
        in_order(5, 3, 48, 256),
        int8(9, 4, 48, 48),
        int8(9, 9, 272, 32),
    ];
    for (index, case) in cases.iter().enumerate() {
        let what = format!("gated product {index}");
        let device = hopper();
        let found = gated(&device, case, 0, case.rows);
        let silus = device.driver().take_launched().iter().filter(|it| it.kernel == "silu_mul").count();
        let is_apart = [true, true, true, true, false, true, true, false][index];
        assert_eq!(silus > 0, is_apart, "{what}");
        // Products that are stored before they are joined are rounded once more.
        assert_close(&what, &found, &gated(&CpuDevice::new(), case, 0, case.rows), 2.0 * TWO_ROUNDINGS, 0.02);
        let inter = case.n / 2;
        for row in [0, case.generated.saturating_sub(1), case.generated, case.rows - 1] {
            if row < case.rows {
                let alone = gated(&device, case, row, row + 1);
                assert!(bits(&alone) == bits(&found[row * inter..][..inter]), "{what}: row {row} alone");
            }
        }
    }
    let device = hopper();
    let w = device.gated_quantized(match &int4(1, 1, 48, 128).weights {
        Weights::Quantized(weights) => weights,
        Weights::Bf16(_) => panic!("of 4 bits"),
    });
    let x = tensor_of(&device, &[0.5; 128], 128, 1);
    let refused =
        device.linear(&x, &w.expect("a matrix"), None, &mut device.tensor(1, 48).expect("a tensor"));
    assert!(matches!(refused, Err(Error::Shape { what: "w", .. })), "{refused:?}");
}
