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
    assert_eq!(case(3, 1, 264, 320), ["gemm_few_bf16_8", "gemm_sm90_bf16_128x128"]);
    assert_eq!(case(70, 66, 72, 328), ["gemm_few_bf16_128", "gemm_sm90_bf16_128x128"]);
    assert_eq!(case(34, 33, 72, 328), ["gemm_few_bf16_64", "gemm_sm90_bf16_128x128"]);
    assert_eq!(case(12, 12, 136, 40), ["gemm_few_bf16_16"]);
    assert_eq!(case(130, 0, 8, 8), ["gemm_sm90_bf16_128x128"]);
    assert_eq!(case(2, 1, 600, 24), ["gemm_few_bf16_8", "gemm_sm90_bf16_128x256"]);
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

/// A part of 4 bits with random codes; symmetric ones have no zero points of their own.
fn part(rows: usize, cols: usize, group: usize, scale_type: DType, symmetric: bool) -> QuantizedSpec {
    let groups = cols.div_ceil(group);
    let codes = |seed, count| -> Vec<u8> {
        Numbers::new(seed).take(count, 8.0).iter().map(|x| ((x + 8.0) as u8).min(15)).collect()
    };
    // Few bits, so that either type holds them, and bf16 their products with codes.
    let scales = Numbers::new(32)
        .take(rows * groups, 1.0)
        .into_iter()
        .map(|x| (1 + (x.abs() * 8.0) as u32) as f32 / 256.0);
    QuantizedSpec {
        rows,
        cols,
        bits: CodeBits::Four,
        group,
        codes: codes(30, rows * cols),
        scales: scales.collect(),
        scale_type,
        zeros: if symmetric { vec![8; rows * groups] } else { codes(31, rows * groups) },
        permutation: None,
        pre_scale: None,
        activations: ActivationBits::Full,
    }
}

fn stacked(specs: Vec<QuantizedSpec>) -> Weights {
    let parts = specs.into_iter().map(|spec| QuantizedPart::new(spec).expect("a valid part")).collect();
    Weights::Quantized(HostQuantized::new(parts).expect("parts that stack"))
}

/// A part of bytes for activations of bytes.
fn bytes(rows: usize, cols: usize) -> QuantizedSpec {
    let codes = Numbers::new(33).take(rows * cols, 120.0).iter().map(|x| (x + 128.0) as u8).collect();
    QuantizedSpec {
        bits: CodeBits::Eight,
        group: cols,
        codes,
        zeros: vec![128; rows],
        activations: ActivationBits::Eight,
        ..part(rows, cols, cols, DType::F32, true)
    }
}

/// As [`bytes`], with factors of activations.
fn smoothed(rows: usize, cols: usize) -> QuantizedSpec {
    let factors = Numbers::new(34).take(cols, 0.5).iter().map(|x| 1.0 + x).collect();
    QuantizedSpec { pre_scale: Some(factors), ..bytes(rows, cols) }
}

#[test]
fn bytes_meet_activations_of_bytes() {
    let case = |rows, generated, spec: QuantizedSpec| {
        let (n, k) = (spec.rows, spec.cols);
        let what = format!("{rows} x {n} x {k} of bytes, {generated} generated");
        Case { rows, generated, n, k, weights: stacked(vec![spec]) }.check(&what)
    };
    let both = ["gemm_few_int8_8", "gemm_sm90_int8_128x128", "quantize_rows"];
    assert_eq!(case(3, 1, bytes(264, 512)), both);
    assert_eq!(case(3, 2, smoothed(24, 144)), both);
    assert_eq!(case(40, 40, bytes(72, 16)), ["gemm_few_int8_64", both[2]]);
    // Neither zero points nor half a vector of 16 bytes has a kernel: what is dequantised doesn't round activations.
    for spec in [QuantizedSpec { zeros: vec![127; 16], ..bytes(16, 128) }, bytes(16, 24)] {
        let (n, k, device) = (16, spec.cols, hopper());
        Case { rows: 1, generated: 1, n, k, weights: stacked(vec![spec]) }.run(&device, 0, 1);
        let launched = device.driver().take_launched();
        assert!(launched.iter().all(|it| !it.kernel.contains("int8") && it.kernel != "quantize_rows"));
    }
}

#[test]
fn a_norm_leaves_codes_for_the_product_that_reads_it() {
    let device = hopper();
    let matrix = |spec: QuantizedSpec| match stacked(vec![spec]) {
        Weights::Quantized(weights) => device.quantized(&weights).expect("a matrix"),
        Weights::Bf16(_) => panic!("of bytes"),
    };
    let (rows, cols) = (3, 144);
    let x = tensor_of(&device, &Numbers::new(6).take(rows * cols, 1.0), cols, 1);
    let weight = device.vector(&Numbers::new(7).take(cols, 2.0)).expect("a vector");
    for spec in [bytes(24, cols), smoothed(24, cols)] {
        let (w, mut normed) = (matrix(spec), device.tensor(rows, cols).expect("a tensor"));
        let mut outs = [0, 1].map(|_| device.tensor(rows, 24).expect("a tensor"));
        device.rms_norm(&x, &weight, 1e-5, &mut normed).expect("a norm");
        device.linear(&normed, &w, None, &mut outs[0]).expect("a product");
        device.driver().take_launched();
        device.rms_norm_for(&x, &weight, 1e-5, &w, &mut normed).expect("a norm");
        device.linear(&normed, &w, None, &mut outs[1]).expect("a product");
        let launched: Vec<_> = device.driver().take_launched().iter().map(|it| it.kernel).collect();
        assert_eq!(launched, ["rms_norm_int8", "gemm_few_int8_8", "gemm_sm90_int8_128x128"]);
        let [apart, fused] = outs.each_ref().map(|out| bits(&device.read(out).expect("activations")));
        assert!(apart == fused, "the product differs by where activations were rounded");
        // Codes are nobody else's.
        let other = matrix(bytes(24, cols));
        let refused = device.linear(&normed, &other, None, &mut outs[0]);
        assert!(matches!(refused, Err(Error::Shape { what: "x", .. })), "{refused:?}");
        assert!(matches!(device.read(&normed), Err(Error::Shape { what: "tensor", .. })));
        device.rms_norm(&x, &weight, 1e-5, &mut normed).expect("a norm");
        assert!(device.read(&normed).is_ok());
    }
}

#[test]
fn packed_weights_stay_packed() {
    let case = |rows, generated, spec: QuantizedSpec| {
        let (n, k) = (spec.rows, spec.cols);
        let what = format!("{rows} x {n} x {k}, {generated} generated, groups of {}", spec.group);
        Case { rows, generated, n, k, weights: stacked(vec![spec]) }.check(&what)
    };
    let [f16, bf16] = [DType::F16, DType::Bf16];
    let both = ["dequantize_int4", "gemm_few_int4_g128_8", "gemm_sm90_bf16_128x128"];
    // Splits of the rows that a block would have to take are more than it has warps.
    assert_eq!(case(3, 1, part(264, 512, 128, f16, true)), both);
    let whole = |groups| ["dequantize_int4", both[2], groups];
    assert_eq!(case(20, 3, part(72, 320, 64, bf16, false)), whole("gemm_whole_int4_g64"));
    assert_eq!(case(9, 9, part(264, 192, 32, f16, false)), ["gemm_few_int4_g32_16"]);
    assert_eq!(case(40, 2, part(16, 576, 256, f16, false)), whole("gemm_whole_int4_g128"));
    assert_eq!(case(40, 40, part(16, 576, 256, f16, false)), ["gemm_few_int4_g128_64"]);
    // A scale a row, of whatever length.
    assert_eq!(case(2, 1, part(24, 192, 192, bf16, true)), whole("gemm_whole_int4_g128"));
    assert_eq!(case(2, 1, part(24, 64, 64, f16, false)), whole("gemm_whole_int4_g128"));
}

#[test]
fn what_has_no_kernel_is_dequantised() {
    let good = || part(16, 128, 64, DType::F16, false);
    let case = |what: &str, specs: Vec<QuantizedSpec>| {
        let (n, k) = (specs.iter().map(|spec| spec.rows).sum(), specs[0].cols);
        let kernels = Case { rows: 3, generated: 1, n, k, weights: stacked(specs) }.check(what);
        assert_eq!(kernels, ["gemm_few_bf16_8", "gemm_sm90_bf16_128x128"], "{what}");
    };
    case("factors", vec![QuantizedSpec { pre_scale: Some(vec![0.5; 128]), ..good() }]);
    case("eight bits", vec![QuantizedSpec { bits: CodeBits::Eight, ..good() }]);
    case("f32 scales", vec![QuantizedSpec { scale_type: DType::F32, ..good() }]);
    case("an odd group", vec![part(16, 128, 48, DType::F16, false)]);
    case("short rows", vec![part(16, 96, 32, DType::F16, false)]);
    case("a part of two", vec![good(), part(16, 128, 48, DType::F16, false)]);
}

#[test]
fn parts_that_differ_stay_packed() {
    let case = |rows, generated, specs: Vec<QuantizedSpec>| {
        let (n, k) = (specs.iter().map(|spec| spec.rows).sum(), specs[0].cols);
        let orders = specs.iter().filter(|spec| spec.permutation.is_some()).count();
        let what = format!("{rows} x {n} x {k}, {generated} generated, {orders} orders");
        Case { rows, generated, n, k, weights: stacked(specs) }.check(&what)
    };
    let good = |rows, group| part(rows, 320, group, DType::F16, false);
    let ordered = |step, spec: QuantizedSpec| {
        let order = (0..spec.cols).map(|col| ((col * step + 5) % spec.cols) as u32).collect();
        QuantizedSpec { permutation: Some(order), ..spec }
    };
    let both = ["dequantize_int4", "gather_columns", "gemm_few_int4_g64_8", "gemm_sm90_bf16_128x128"];
    assert_eq!(case(3, 1, vec![ordered(37, good(264, 64))]), both);
    assert_eq!(case(20, 20, vec![ordered(37, good(24, 64))]), ["gather_columns", "gemm_few_int4_g64_128"]);
    // Each part in an order of its own, and one in that of the activations.
    assert_eq!(
        case(
            4,
            2,
            vec![ordered(37, good(24, 64)), good(8, 64), ordered(3, good(264, 64)), ordered(7, good(8, 64))]
        ),
        both
    );
    assert_eq!(
        case(40, 3, vec![good(16, 64), good(8, 32)]),
        ["dequantize_int4", "gemm_few_int4_g32_8", both[2], both[3]]
    );
}

#[test]
fn packed_weights_take_a_quarter_of_the_memory() {
    let device = hopper();
    let weights = stacked(vec![part(512, 1024, 128, DType::F16, true)]);
    let before = device.driver().allocated_bytes();
    let case = Case { rows: 1, generated: 0, n: 512, k: 1024, weights };
    let packed = case.matrix(&device);
    let bytes = device.driver().allocated_bytes() - before;
    // Half a byte a weight, two bytes a group of 128.
    let of_weights = 512 * 1024 / 2 + 512 * 8 * 2;
    assert_eq!(bytes, of_weights);
    drop(packed);
    assert_eq!(device.driver().allocated_bytes(), before);
    // In act-order, two bytes a column beside.
    let order = (0..1024).map(|col| (col * 37 + 5) % 1024).collect();
    let spec = QuantizedSpec { permutation: Some(order), ..part(512, 1024, 128, DType::F16, true) };
    let ordered = Case { weights: stacked(vec![spec]), ..case }.matrix(&device);
    assert_eq!(device.driver().allocated_bytes() - before, of_weights + 1024 * 2);
    drop(ordered);
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
