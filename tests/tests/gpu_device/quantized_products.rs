//! Products with quantised weights on Hopper: what keeps its bits, by which kernels, and what becomes bf16.

use tilewright_host::{
    ActivationBits, CodeBits, DType, Device, Error, HostQuantized, QuantizedPart, QuantizedSpec,
};

use super::{
    products::{Case, Weights},
    setup::*,
};

/// A part of 4 bits with random codes; symmetric ones have no zero points of their own.
pub fn part(rows: usize, cols: usize, group: usize, scale_type: DType, symmetric: bool) -> QuantizedSpec {
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

pub fn stacked(specs: Vec<QuantizedSpec>) -> Weights {
    let parts = specs.into_iter().map(|spec| QuantizedPart::new(spec).expect("a valid part")).collect();
    Weights::Quantized(HostQuantized::new(parts).expect("parts that stack"))
}

/// A part of bytes for activations of bytes.
pub fn bytes(rows: usize, cols: usize) -> QuantizedSpec {
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
    let both = |whole| ["dequantize_int4", "gemm_sm90_bf16_128x128", whole];
    // Splits of the rows that a block would have to take are more than it has warps.
    assert_eq!(
        case(3, 1, part(264, 512, 128, f16, true)),
        ["dequantize_int4", "gemm_few_int4_g128_8", "gemm_sm90_bf16_128x128"]
    );
    assert_eq!(case(20, 3, part(72, 320, 64, bf16, false)), both("gemm_whole_int4_g64"));
    assert_eq!(case(9, 9, part(264, 192, 32, f16, false)), ["gemm_few_int4_g32_16"]);
    assert_eq!(case(40, 2, part(16, 576, 256, f16, false)), both("gemm_whole_int4_g128"));
    assert_eq!(case(40, 40, part(16, 576, 256, f16, false)), ["gemm_few_int4_g128_64"]);
    // A scale a row, of whatever length.
    assert_eq!(case(2, 1, part(24, 192, 192, bf16, true)), both("gemm_whole_half_int4_g128"));
    assert_eq!(case(2, 1, part(24, 64, 64, f16, false)), both("gemm_whole_half_int4_g128"));
}

#[test]
fn what_has_no_kernel_is_dequantised() {
    let good = || part(16, 128, 64, DType::F16, false);
    let case = |what: &str, specs: Vec<QuantizedSpec>| {
        let (n, k) = (specs.iter().map(|spec| spec.rows).sum(), specs[0].cols);
        let kernels = Case { rows: 3, generated: 1, n, k, weights: stacked(specs) }.check(what);
        assert_eq!(kernels, ["gemm_sm90_bf16_128x128", "gemm_whole_bf16"], "{what}");
    };
    case("factors", vec![QuantizedSpec { pre_scale: Some(vec![0.5; 128]), ..good() }]);
    case("mixed bits", vec![good(), QuantizedSpec { bits: CodeBits::Eight, ..good() }]);
    let large = QuantizedSpec { bits: CodeBits::Eight, scales: vec![4096.0; 32], ..good() };
    case("eight bits with scales that f16 has no 16th multiple of", vec![large]);
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
    let kernels = |whole| ["dequantize_int4", "gather_columns", "gemm_sm90_bf16_128x128", whole];
    assert_eq!(case(3, 1, vec![ordered(37, good(264, 64))]), kernels("gemm_whole_half_int4_g64"));
    let both = kernels("gemm_whole_int4_g64");
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
        ["dequantize_int4", both[2], "gemm_whole_int4_g32", both[3]]
    );
}

/// A part of 8 bits for activations that keep theirs; bf16 holds the weights.
fn eight(rows: usize, cols: usize, group: usize, scale_type: DType) -> QuantizedSpec {
    let groups = cols.div_ceil(group);
    let codes = |seed, count| -> Vec<u8> {
        Numbers::new(seed).take(count, 128.0).iter().map(|x| (x + 128.0) as u8).collect()
    };
    let scales = (0..rows * groups).map(|at| [0.5, 0.25, 0.125][at % 3] / 64.0).collect();
    QuantizedSpec {
        bits: CodeBits::Eight,
        codes: codes(35, rows * cols),
        scales,
        zeros: codes(36, rows * groups),
        ..part(rows, cols, group, scale_type, true)
    }
}

#[test]
fn eight_bits_are_two_halves_of_four() {
    let case = |rows, generated, specs: Vec<QuantizedSpec>| {
        let (n, k) = (specs.iter().map(|spec| spec.rows).sum(), specs[0].cols);
        let what =
            format!("{rows} x {n} x {k} of 8 bits, {generated} generated, groups of {}", specs[0].group);
        Case { rows, generated, n, k, weights: stacked(specs) }.check(&what)
    };
    let ordered = |step, spec: QuantizedSpec| {
        let order = (0..spec.cols).map(|col| ((col * step + 5) % spec.cols) as u32).collect();
        QuantizedSpec { permutation: Some(order), ..spec }
    };
    let [f16, bf16] = [DType::F16, DType::Bf16];
    let both = |few| vec!["dequantize_int4_halves", "gather_columns", "gemm_sm90_bf16_128x128", few];
    assert_eq!(case(3, 1, vec![eight(24, 320, 64, f16)]), both("gemm_whole_half_int4_g64"));
    assert_eq!(case(9, 9, vec![eight(24, 192, 192, bf16)]), ["gather_columns", "gemm_few_int4_g128_16"]);
    assert_eq!(case(4, 2, vec![eight(16, 512, 256, f16)]), both("gemm_whole_int4_g128"));
    assert_eq!(
        case(40, 0, vec![eight(16, 64, 32, bf16)]),
        ["dequantize_int4_halves", "gemm_sm90_bf16_128x128"]
    );
    let parts = vec![ordered(37, eight(24, 320, 32, f16)), ordered(3, eight(8, 320, 32, f16))];
    assert_eq!(case(4, 2, parts), both("gemm_whole_int4_g32"));
}

#[test]
fn eight_bits_take_half_of_the_memory() {
    let device = hopper();
    let before = device.driver().allocated_bytes();
    let weights = stacked(vec![eight(512, 1024, 128, DType::F16)]);
    let matrix = Case { rows: 1, generated: 0, n: 512, k: 1024, weights }.matrix(&device);
    // A byte a weight; of each half two bytes of scale and two of zero point a group of 128; two bytes of order for a column of either half.
    assert_eq!(device.driver().allocated_bytes() - before, 512 * 1024 + 2 * 512 * 8 * 4 + 2 * 1024 * 2);
    drop(matrix);
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
