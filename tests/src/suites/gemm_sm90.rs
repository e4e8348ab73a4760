use proptest::{prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi::{self, KernelSpec},
    gemm_sm90::{
        BF16_NARROW, BF16_WIDE, BLOCK_M, F16_NARROW, F16_WIDE, INT8_NARROW, INT8_WIDE, NARROW, Tile, WIDE,
        launch::{Element, MapShape},
    },
};
use tilewright_reference::{Bound, Floor, GemmProblem, compare, gemm, gemm_magnitude, round_bf16};

use super::{eights, half::Half, mismatch, sizes, wider::Wider};
use crate::{
    agreement::Scalar,
    harness::{Arena, Failure, Handle, Harness, f32_values, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct GemmSm90;

/// Blocks of a launch: few, so that each has several tiles.
const BLOCKS: u32 = 3;

#[derive(Debug, Clone)]
pub struct Case {
    wide: bool,
    element: Element,
    m: usize,
    n: usize,
    k: usize,
    band: u32,
    bias: bool,
    residual: bool,
    /// `residual` is `out`.
    in_place: bool,
    out_f32: bool,
    /// Columns of the matrix that `out` and `residual` are the first of.
    more_cols: usize,
    seed: u64,
}

/// As numbers; of bytes, without their scales.
struct Input {
    a: Vec<f32>,
    w: Vec<f32>,
    a_scales: Vec<f32>,
    w_scales: Vec<f32>,
    bias: Option<Vec<f32>>,
    residual: Option<Vec<f32>>,
}

impl Case {
    /// What `out`, and unless they are bytes the factors, are made of.
    fn half(&self) -> Half {
        if self.element == Element::F16 { Half::F16 } else { Half::Bf16 }
    }

    /// `out`, or `residual`.
    fn wider(&self, element_bytes: usize) -> Wider {
        let [row_bytes, more_bytes] = [self.n, self.more_cols].map(|cols| cols * element_bytes);
        Wider { row_bytes, more_bytes }
    }

    fn kernel(&self) -> (Tile, &'static KernelSpec) {
        match (self.element, self.wide) {
            (Element::Bf16, true) => (WIDE, &BF16_WIDE),
            (Element::Bf16, false) => (NARROW, &BF16_NARROW),
            (Element::F16, true) => (WIDE, &F16_WIDE),
            (Element::F16, false) => (NARROW, &F16_NARROW),
            (Element::Int8, true) => (WIDE, &INT8_WIDE),
            (Element::Int8, false) => (NARROW, &INT8_NARROW),
        }
    }

    fn input(&self) -> Input {
        let mut random = Random::new(self.seed);
        let (half, int8) = (self.half(), self.element == Element::Int8);
        let mut elements = |count| match int8 {
            true => (0..count).map(|_| random.below(256) as f32 - 128.0).collect(),
            false => half.random(&mut random, count, 1.0),
        };
        let (a, w) = (elements(self.m * self.k), elements(self.n * self.k));
        // Eight bits of scale times eight of value are exact in f32.
        let mut scales = |count| match int8 {
            true => (0..count).map(|_| round_bf16(0.001 + random.uniform() * 0.01)).collect(),
            false => vec![1.0; count],
        };
        let (a_scales, w_scales) = (scales(self.m), scales(self.n));
        Input {
            a,
            w,
            a_scales,
            w_scales,
            bias: self.bias.then(|| random.f32s(self.n, 2.0)),
            residual: self.residual.then(|| half.random(&mut random, self.m * self.n, 2.0)),
        }
    }
}

impl Property for GemmSm90 {
    const KERNEL: &'static str = "gemm_sm90";
    const EMULATED_CASES: u32 = 30;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let flags = any::<[bool; 5]>();
        let element = select(vec![Element::Bf16, Element::F16, Element::Int8]);
        let shape = (sizes(128, 300), eights(128, 540), eights(64, 600));
        (element, shape, (1..4u32, 0..3usize), flags, any::<u64>())
            .prop_map(|(element, (m, n, k), (band, more), flags, seed)| {
                let [wide, bias, residual, in_place, out_f32] = flags;
                Case {
                    wide,
                    element,
                    m,
                    n,
                    k: if element == Element::Int8 { k.next_multiple_of(16) } else { k },
                    band,
                    bias,
                    residual,
                    in_place,
                    out_f32,
                    more_cols: more * 24,
                    seed,
                }
            })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let mut corners = Vec::new();
        let elements = [Element::Bf16, Element::F16, Element::Int8];
        for (wide, element) in [true, false].into_iter().flat_map(|wide| elements.map(|of| (wide, of))) {
            let corner = |m, n, k, band, on| Case {
                wide,
                element,
                m,
                n,
                k,
                band,
                bias: on,
                residual: on,
                in_place: on,
                out_f32: !on,
                more_cols: if n > 8 { 8 } else { 0 },
                seed: 1,
            };
            corners.extend([
                corner(1, 8, 16, 16, true),
                corner(129, 264, 144, 1, true),
                corner(127, 248, 640, 16, false),
                corner(300, 136, 272, 2, true),
            ]);
        }
        corners
    }

    fn scalar(case: &Case, _: &str) -> Scalar {
        if case.out_f32 { Scalar::F32 } else { case.half().scalar() }
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let int8 = shape.flag("int8", false, "whether the factors are bytes");
        let f16 = shape.flag("f16", false, "half precision rather than bf16");
        let m = shape.size("m", 128, 1, "rows of a");
        let n = shape.size("n", 256, 8, "rows of w");
        let k = shape.size("k", 256, if int8 { 16 } else { 8 }, "columns of both");
        shape.fits(&[("a", &[m, k]), ("w", &[n, k]), ("out", &[m, n])]);
        Some(Case {
            wide: shape.one_of("block_n", 256, &[128, 256], "columns of the kernel's tile") == 256,
            element: match (int8, f16) {
                (true, _) => Element::Int8,
                (false, true) => Element::F16,
                (false, false) => Element::Bf16,
            },
            m,
            n,
            k,
            band: 16,
            bias: shape.flag("bias", false, "whether there is a bias"),
            residual: shape.flag("residual", false, "whether there is a residual"),
            in_place: shape.flag("in_place", false, "whether the residual is overwritten"),
            out_f32: shape.flag("out_f32", false, "whether the product is stored as f32"),
            more_cols: 0,
            seed: shape.inputs(),
        })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let input = case.input();
        let actual = run(harness, case, &input, BLOCKS)?;
        same_bits("other blocks", &actual, &run(harness, case, &input, BLOCKS + 2)?)?;

        let scaled = |values: &[f32], scales: &[f32]| -> Vec<f32> {
            let rows = values.chunks(case.k).zip(scales);
            rows.flat_map(|(row, scale)| row.iter().map(move |value| value * scale)).collect()
        };
        let (a, w) = (scaled(&input.a, &input.a_scales), scaled(&input.w, &input.w_scales));
        let problem = GemmProblem {
            a: &a,
            w: &w,
            bias: input.bias.as_deref(),
            residual: input.residual.as_deref(),
            m: case.m,
            n: case.n,
            k: case.k,
            stores_bf16: false,
        };
        let (truth, mut plain) = (gemm::<f64>(&problem), gemm::<f32>(&problem));
        if !case.out_f32 {
            plain.iter_mut().for_each(|value| *value = case.half().round(*value));
        }
        // A tensor core truncates where it adds: about a unit in the last place of f32 of the largest term for every 16 of k.
        let largest = gemm_magnitude(&problem).into_iter().fold(0.0, f64::max);
        let absolute = largest * (case.k.div_ceil(16) + 1) as f64 / f64::from(1 << 23);
        let (floor, values) = match case.out_f32 {
            true => (Floor::F32, f32_values(&actual)),
            false => (case.half().floor(), case.half().decode(&actual)),
        };
        let bound = Bound::from_plain(&[case.m, case.n], &truth, &plain, floor.with_absolute(absolute));
        compare("gemm_sm90", &values, &truth, &bound).map_err(mismatch)?;

        // The last row alone has the same bits, by the other tile.
        let last = case.m - 1;
        let alone = Input {
            a: input.a[last * case.k..].to_vec(),
            a_scales: input.a_scales[last..].to_vec(),
            residual: input.residual.map(|residual| residual[last * case.n..].to_vec()),
            ..input
        };
        let row = run(harness, &Case { m: 1, wide: !case.wide, ..case.clone() }, &alone, 1)?;
        same_bits("the last row alone", &actual[last * row.len()..], &row)
    }
}

/// A matrix of the case's element.
fn factor<D: Driver>(
    arena: &mut Arena<'_, D>,
    case: &Case,
    name: &'static str,
    values: &[f32],
) -> Result<Handle, Failure> {
    if case.element != Element::Int8 {
        return arena.input_bytes(name, &case.half().encode(values));
    }
    let bytes: Vec<u8> = values.iter().map(|&value| (value as i8).cast_unsigned()).collect();
    arena.input_bytes(name, &bytes)
}

fn run<D: Driver>(harness: &Harness<D>, case: &Case, input: &Input, blocks: u32) -> Result<Vec<u8>, Failure> {
    let (tile, kernel) = case.kernel();
    let mut arena = harness.arena();
    let a = factor(&mut arena, case, "a", &input.a)?;
    let w = factor(&mut arena, case, "w", &input.w)?;
    let mut f32s = |name, values: &[f32]| arena.input_f32(name, values).map(|at| arena.address(at));
    let (a_scales, w_scales) = match case.element == Element::Int8 {
        true => (f32s("a_scales", &input.a_scales)?, f32s("w_scales", &input.w_scales)?),
        false => (0, 0),
    };
    let bias = input.bias.as_ref().map_or(Ok(0), |bias| f32s("bias", bias))?;
    let in_place = case.in_place && !case.out_f32;
    let residual = match &input.residual {
        Some(residual) if in_place => {
            Some(case.wider(2).alloc(&mut arena, "residual", Some(&case.half().encode(residual)), case.m)?)
        }
        Some(residual) => {
            Some(arena.input_bytes("residual", &case.wider(2).spread(&case.half().encode(residual)))?)
        }
        None => None,
    };
    let wider = case.wider(if case.out_f32 { 4 } else { 2 });
    let out = match residual {
        Some(residual) if in_place => residual,
        _ => wider.alloc(&mut arena, "out", None, case.m)?,
    };
    let out_stride = (case.n + case.more_cols) as u32;
    let (m, n, k) = (case.m as u32, case.n as u32, case.k as u32);
    let bytes = case.element.bytes();
    let out_map = match case.out_f32 {
        true => abi::TensorMap::default(),
        false => arena.tensor_map(&MapShape::new(2, m, n, 64).spaced(out_stride).at(arena.address(out)))?,
    };
    let params = abi::GemmSm90 {
        a_map: arena.tensor_map(&MapShape::new(bytes, m, k, BLOCK_M).at(arena.address(a)))?,
        w_map: arena.tensor_map(&MapShape::new(bytes, n, k, tile.block_n).at(arena.address(w)))?,
        out_map,
        bias,
        residual: residual.map_or(0, |residual| arena.address(residual)),
        out_f32: if case.out_f32 { arena.address(out) } else { 0 },
        a_scales,
        w_scales,
        m,
        n,
        k,
        band: case.band,
        out_stride,
        reserved: 0,
    };
    arena.launch(kernel, [blocks, 1, 1], &params)?;
    wider.rows(&arena.all_bytes(out)?)
}
