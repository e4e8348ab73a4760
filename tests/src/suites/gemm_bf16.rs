use proptest::prelude::*;
use tilewright_host::gpu::Driver;
use tilewright_kernels::{abi, gemm_bf16::TILES};
use tilewright_reference::{Bound, Floor, GemmProblem, compare, gemm, gemm_magnitude};

use super::{eights, mismatch, sizes};
use crate::{
    agreement::Scalar,
    harness::{Failure, Harness, bf16_values, f32_values, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct GemmBf16;

#[derive(Debug, Clone)]
pub struct Case {
    tile: usize,
    m: usize,
    n: usize,
    k: usize,
    bias: bool,
    residual: bool,
    /// `residual` is `out`.
    in_place: bool,
    out_f32: bool,
    seed: u64,
}

struct Input {
    a: Vec<f32>,
    w: Vec<f32>,
    bias: Option<Vec<f32>>,
    residual: Option<Vec<f32>>,
}

impl Property for GemmBf16 {
    const KERNEL: &'static str = "gemm_bf16";
    const EMULATED_CASES: u32 = 120;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        (0..TILES.len(), sizes(16, 140), sizes(64, 140), eights(32, 280), flags, any::<u64>())
            .prop_map(|(tile, m, n, k, (bias, residual, in_place, out_f32), seed)| Case {
                tile,
                m,
                n,
                k,
                bias,
                residual,
                in_place,
                out_f32,
                seed,
            })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let mut corners = Vec::new();
        for (index, tile) in TILES.iter().enumerate() {
            let (m, n) = (tile.block_m as usize, tile.block_n as usize);
            let corner = |m, n, k, on| Case {
                tile: index,
                m,
                n,
                k,
                bias: on,
                residual: on,
                in_place: on,
                out_f32: !on,
                seed: 1,
            };
            corners.extend([
                corner(1, 1, 8, true),
                corner(m, n, 32, true),
                corner(m - 1, n + 1, 40, false),
                corner(m + 1, n - 1, 264, true),
            ]);
        }
        corners
    }

    fn scalar(case: &Case, _: &str) -> Scalar {
        if case.out_f32 { Scalar::F32 } else { Scalar::Bf16 }
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let tiles: Vec<usize> = TILES.iter().map(|tile| tile.block_m as usize).collect();
        let block_m = shape.one_of("block_m", 64, &tiles, "rows of the kernel's tile");
        let m = shape.size("m", 64, 1, "rows of a");
        let n = shape.size("n", 128, 1, "rows of w");
        let k = shape.size("k", 256, 8, "columns of both");
        shape.fits(&[("a", &[m, k]), ("w", &[n, k]), ("out", &[m, n])]);
        Some(Case {
            tile: tiles.iter().position(|&tile| tile == block_m)?,
            m,
            n,
            k,
            bias: shape.flag("bias", false, "whether there is a bias"),
            residual: shape.flag("residual", false, "whether there is a residual"),
            in_place: shape.flag("in_place", false, "whether the residual is overwritten"),
            out_f32: shape.flag("out_f32", false, "whether the product is stored as f32"),
            seed: shape.inputs(),
        })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let mut random = Random::new(case.seed);
        let input = Input {
            a: random.bf16s(case.m * case.k, 1.0),
            w: random.bf16s(case.n * case.k, 1.0),
            bias: case.bias.then(|| random.f32s(case.n, 2.0)),
            residual: case.residual.then(|| random.bf16s(case.m * case.n, 2.0)),
        };
        let actual = run(harness, case, &input)?;
        same_bits("the second run", &actual, &run(harness, case, &input)?)?;

        let problem = GemmProblem {
            a: &input.a,
            w: &input.w,
            bias: input.bias.as_deref(),
            residual: input.residual.as_deref(),
            m: case.m,
            n: case.n,
            k: case.k,
            stores_bf16: !case.out_f32,
        };
        let (truth, plain) = (gemm::<f64>(&problem), gemm::<f32>(&problem));
        // A tensor core truncates where it adds: about a unit in the last place of f32 of the largest term for every 16 of k.
        let largest = gemm_magnitude(&problem).into_iter().fold(0.0, f64::max);
        let absolute = largest * (case.k.div_ceil(16) + 1) as f64 / f64::from(1 << 23);
        let (floor, values) = if case.out_f32 {
            (Floor::F32, f32_values(&actual))
        } else {
            (Floor::BF16, bf16_values(&actual))
        };
        let bound = Bound::from_plain(&[case.m, case.n], &truth, &plain, floor.with_absolute(absolute));
        compare("gemm_bf16", &values, &truth, &bound).map_err(mismatch)?;

        // The last row alone has the same bits, whichever tile computes it.
        let last = case.m - 1;
        let alone = Input {
            a: input.a[last * case.k..].to_vec(),
            w: input.w,
            bias: input.bias,
            residual: input.residual.map(|residual| residual[last * case.n..].to_vec()),
        };
        let smallest = TILES.len() - 1;
        let row = run(harness, &Case { m: 1, tile: smallest, ..case.clone() }, &alone)?;
        same_bits("the last row alone", &actual[last * row.len()..], &row)
    }
}

fn run<D: Driver>(harness: &Harness<D>, case: &Case, input: &Input) -> Result<Vec<u8>, Failure> {
    let tile = &TILES[case.tile];
    let mut arena = harness.arena();
    let a = arena.input_bf16("a", &input.a)?;
    let w = arena.input_bf16("w", &input.w)?;
    let bias = match &input.bias {
        Some(bias) => arena.input_f32("bias", bias).map(|bias| arena.address(bias))?,
        None => 0,
    };
    let in_place = case.in_place && !case.out_f32;
    let residual = match &input.residual {
        Some(residual) if in_place => Some(arena.inout_bf16("residual", residual)?),
        Some(residual) => Some(arena.input_bf16("residual", residual)?),
        None => None,
    };
    let out = match residual {
        Some(residual) if in_place => residual,
        _ => arena.alloc("out", case.m * case.n * if case.out_f32 { 4 } else { 2 })?,
    };
    let params = abi::Gemm {
        a: arena.address(a),
        w: arena.address(w),
        bias,
        residual: residual.map_or(0, |residual| arena.address(residual)),
        out: arena.address(out),
        m: case.m as u32,
        n: case.n as u32,
        k: case.k as u32,
        out_f32: u32::from(case.out_f32),
    };
    let grid = [params.n.div_ceil(tile.block_n), params.m.div_ceil(tile.block_m), 1];
    arena.launch(tile.spec, grid, &params)?;
    arena.all_bytes(out)
}
