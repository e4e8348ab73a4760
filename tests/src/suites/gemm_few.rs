use proptest::{prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi,
    gemm_few::{
        Activations, ROWS, VARIANTS, Variant, Weights,
        launch::{self, Follow, Follower},
        layout,
        pack::{Packed, Plain, Rows},
    },
    gemm_sm90::launch::MapShape,
};
use tilewright_reference::{bf16_bits, round_bf16};

use super::{eights, half::Half, sizes, wider::Wider};
use crate::{
    agreement::Scalar,
    harness::{Arena, Failure, Handle, Harness, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

mod oracle;
mod whole;

pub struct GemmFew;

/// That launches are made for: so few that some blocks have several splits of a tile, or several tiles.
const MULTIPROCESSORS: u32 = 3;
/// So many more that blocks of a tile wait for each other, with two splits each, or don't, with one.
const MORE_MULTIPROCESSORS: [u32; 2] = [5, 16];

#[derive(Debug, Clone)]
pub struct Case {
    variant: usize,
    m: usize,
    n: usize,
    k: usize,
    /// Of 4 bits: groups of the variant's size times this where that has 128 columns.
    group_factor: usize,
    zeros: bool,
    scales_f16: bool,
    bias: bool,
    residual: bool,
    /// `residual` is `out`.
    in_place: bool,
    silu: bool,
    out_f32: bool,
    /// Columns of the matrix that `out` and `residual` are the first of.
    more_cols: usize,
    /// Splits of `k` at most: two of a variant that takes as many side by side.
    most_splits: u32,
    /// Of f16: activations are about two to that.
    exponent: i32,
    seed: u64,
}

/// Of f16: results that become infinite, and numbers that are denormal.
const EXPONENTS: [i32; 3] = [0, 13, -14];

/// As numbers; of bytes, without their scales.
struct Input {
    a: Vec<f32>,
    w: Vec<f32>,
    a_scales: Vec<f32>,
    w_scales: Vec<f32>,
    packed: Option<Packed>,
    bias: Option<Vec<f32>>,
    residual: Option<Vec<f32>>,
}

impl Case {
    fn variant(&self) -> &'static Variant {
        &VARIANTS[self.variant]
    }

    /// Sizes that the variant takes.
    fn fitting(self) -> Case {
        let k = match self.variant().weights {
            Weights::Bf16 => self.k,
            Weights::Int8 => self.k.next_multiple_of(16),
            Weights::Int4 { .. } => self.k.next_multiple_of(64),
        };
        let n = if self.silu { self.n.next_multiple_of(16) } else { self.n };
        let exponent = if self.half() == Half::F16 { self.exponent } else { 0 };
        let most_splits = if self.variant().tile.abreast == 2 { 2 } else { layout::MAX_SPLITS };
        Case { k, n, exponent, most_splits, ..self }
    }

    fn splits(&self) -> u32 {
        let stage_k = stage_k(self.variant().weights) as u32;
        launch::splits(self.n as u32, self.k as u32, stage_k).min(self.most_splits)
    }

    /// What `out`, and unless they are bytes `a`, are made of.
    fn half(&self) -> Half {
        match self.variant().weights {
            Weights::Int4 { activations: Activations::F16, .. } => Half::F16,
            _ => Half::Bf16,
        }
    }

    fn group_size(&self, groups: u32) -> usize {
        if groups == 1 { 128 * self.group_factor } else { 128 / groups as usize }
    }

    fn out_cols(&self) -> usize {
        if self.silu { self.n / 2 } else { self.n }
    }

    /// `out`, or `residual`.
    fn wider(&self, element_bytes: usize) -> Wider {
        let [row_bytes, more_bytes] = [self.out_cols(), self.more_cols].map(|cols| cols * element_bytes);
        Wider { row_bytes, more_bytes }
    }

    fn input(&self) -> Input {
        let mut random = Random::new(self.seed);
        let int8 = self.variant().weights == Weights::Int8;
        let mut bytes = |count| (0..count).map(|_| random.below(256) as f32 - 128.0).collect::<Vec<f32>>();
        let (a8, w8) =
            if int8 { (bytes(self.m * self.k), bytes(self.n * self.k)) } else { Default::default() };
        // Eight bits of scale times eight of value are exact in f32.
        let mut scales = |count| match int8 {
            true => (0..count).map(|_| round_bf16(0.001 + random.uniform() * 0.01)).collect(),
            false => vec![1.0; count],
        };
        let (a_scales, w_scales) = (scales(self.m), scales(self.n));
        let half = self.half();
        let deviation = 2f32.powi(self.exponent);
        let a = if int8 { a8 } else { half.random(&mut random, self.m * self.k, deviation) };
        let (w, packed) = match self.variant().weights {
            Weights::Int8 => (w8, None),
            Weights::Bf16 => (random.bf16s(self.n * self.k, 1.0), None),
            Weights::Int4 { groups, .. } => {
                let (w, packed) = self.int4(&mut random, groups);
                (w, Some(packed))
            }
        };
        let bias = self.bias.then(|| random.f32s(self.n, 2.0));
        let residual = self.residual.then(|| half.random(&mut random, self.m * self.out_cols(), 2.0));
        Input { a, w, a_scales, w_scales, packed, bias, residual }
    }

    fn int4(&self, random: &mut Random, groups: u32) -> (Vec<f32>, Packed) {
        let group_size = self.group_size(groups);
        let of_row = self.k.div_ceil(group_size);
        let values: Vec<u8> = (0..self.n * self.k).map(|_| random.below(16) as u8).collect();
        let zeros: Option<Vec<u8>> =
            self.zeros.then(|| (0..self.n * of_row).map(|_| random.below(17) as u8).collect());
        let scales: Vec<f32> = (0..self.n * of_row).map(|_| 0.01 + random.uniform() * 0.1).collect();
        let bits: Vec<u16> = match self.scales_f16 {
            true => scales.iter().map(|&scale| half::f16::from_f32(scale).to_bits()).collect(),
            false => scales.iter().map(|&scale| bf16_bits(scale)).collect(),
        };
        let of_bits = |bits: u16| match self.scales_f16 {
            true => half::f16::from_bits(bits).to_f32(),
            false => half::bf16::from_bits(bits).to_f32(),
        };
        // Five bits times at most eleven: exact.
        let w = (0..self.n * self.k).map(|at| {
            let group = at / self.k * of_row + at % self.k / group_size;
            let zero = zeros.as_ref().map_or(8, |zeros| zeros[group]);
            (f32::from(values[at]) - f32::from(zero)) * of_bits(bits[group])
        });
        let w = w.collect();
        let plain = Plain {
            n: self.n,
            k: self.k,
            group_size,
            values: &values,
            scales: &bits,
            zeros: zeros.as_deref(),
        };
        (w, Packed::new(&plain, Rows::AsGiven))
    }
}

/// Columns of a stage.
fn stage_k(weights: Weights) -> usize {
    match weights {
        Weights::Bf16 => 64,
        Weights::Int8 => 128,
        Weights::Int4 { .. } => layout::TILE_K as usize,
    }
}

impl Property for GemmFew {
    const KERNEL: &'static str = "gemm_few";
    const EMULATED_CASES: u32 = 40;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let flags = any::<[bool; 7]>();
        let shape = (sizes(8, 140), eights(256, 540), eights(64, 600));
        (
            0..VARIANTS.len(),
            shape,
            select(vec![1usize, 2, 4]),
            flags,
            select(vec![0usize, 8, 40]),
            (select(EXPONENTS.to_vec()), any::<u64>()),
        )
            .prop_map(|(variant, (m, n, k), group_factor, flags, more_cols, (exponent, seed))| {
                let [zeros, scales_f16, bias, residual, in_place, silu, out_f32] = flags;
                Case {
                    variant,
                    m,
                    n,
                    k,
                    group_factor,
                    zeros,
                    scales_f16,
                    bias,
                    residual,
                    in_place,
                    silu,
                    out_f32,
                    more_cols,
                    most_splits: layout::MAX_SPLITS,
                    exponent,
                    seed,
                }
                .fitting()
            })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let mut corners = Vec::new();
        for (variant, of) in VARIANTS.iter().enumerate() {
            let tokens = of.tile.tokens as usize;
            let steps = (layout::MAX_SPLITS * (of.tile.stages + 1)) as usize;
            let corner = |m, n, k, on: bool| {
                Case {
                    variant,
                    m,
                    n,
                    k,
                    group_factor: 1,
                    zeros: on,
                    scales_f16: on,
                    bias: on,
                    residual: on,
                    in_place: on,
                    silu: !on,
                    out_f32: false,
                    more_cols: if on { 8 } else { 0 },
                    most_splits: layout::MAX_SPLITS,
                    exponent: 0,
                    seed: 1,
                }
                .fitting()
            };
            corners.extend([
                corner(1, 8, 16, true),
                corner(tokens, 256, 512, false),
                corner(tokens + 1, 264, 704, true),
                // So long that every block fills its first stage again: of one part of a tile it has fewer steps else.
                corner(8, 8, steps * stage_k(of.weights), true),
            ]);
            if of.tile.is_staged() {
                // Lines of the output with a bias; and gated ones of a block that goes on to keep sums of its next tile.
                corners.push(Case { bias: true, silu: false, ..corner(tokens, 640, 128, false) });
                corners.push(corner(tokens, 640, 256, false));
            }
            if of.tile.abreast == 2 {
                // The one split is longer than the other, and both fill the ring again.
                corners.push(corner(9, 136, (4 * of.tile.stages as usize + 3) * stage_k(of.weights), false));
            }
            if of.weights == Weights::Bf16 && tokens == 8 {
                // Rings of warps that have all of a split are filled more than twice.
                corners.push(corner(3, 24, layout::MAX_SPLITS as usize * 9 * stage_k(of.weights), true));
            }
            if matches!(of.weights, Weights::Int4 { activations: Activations::F16, .. }) {
                let far = |exponent| Case { exponent, ..corner(tokens, 256, 512, true) };
                corners.extend([far(EXPONENTS[1]), far(EXPONENTS[2])]);
            }
        }
        corners
    }

    fn scalar(case: &Case, _: &str) -> Scalar {
        if case.out_f32 { Scalar::F32 } else { case.half().scalar() }
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let kinds = ["bf16", "int8", "g128", "g64", "g32"];
        let kind =
            shape.one_of("kind", 2, &[0, 1, 2, 3, 4], "weights: bf16, int8, 4 bits in groups of 128, 64, 32");
        let tokens = shape.one_of("tokens", 8, &[8, 16, 32, 64, 128], "rows of the kernel's tile");
        let f16 = shape.flag("f16", false, "half precision rather than bf16");
        let pair = shape.flag("pair", false, "two splits of k side by side in a block");
        let [pair, f16] = [(pair, "_pair"), (f16, "_f16")].map(|(is, name)| if is { name } else { "" });
        let ending = format!("{}_{tokens}{pair}{f16}", kinds[kind]);
        let m = shape.size("m", 8, 1, "rows of a");
        let n = shape.size("n", 512, 8, "rows of w");
        let k = shape.size("k", 512, 8, "columns of both");
        shape.fits(&[("a", &[m, k]), ("w", &[n, k]), ("out", &[m, n])]);
        let case = Case {
            variant: VARIANTS.iter().position(|variant| variant.spec.name.ends_with(&ending))?,
            m,
            n,
            k,
            group_factor: 1,
            zeros: shape.flag("zeros", false, "whether there are zero points"),
            scales_f16: shape.flag("scales_f16", false, "whether scales are f16"),
            bias: shape.flag("bias", false, "whether there is a bias"),
            residual: shape.flag("residual", false, "whether there is a residual"),
            in_place: shape.flag("in_place", false, "whether the residual is overwritten"),
            silu: shape.flag("silu", false, "whether rows are gate and up"),
            out_f32: shape.flag("out_f32", false, "whether the product is stored as f32"),
            more_cols: 0,
            most_splits: layout::MAX_SPLITS,
            exponent: 0,
            seed: shape.inputs(),
        };
        Some(case.fitting())
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let input = case.input();
        let actual = run(harness, case, &input, MULTIPROCESSORS)?;
        same_bits("the second run", &actual, &run(harness, case, &input, MULTIPROCESSORS)?)?;
        if case.variant().tile.is_persistent() {
            for more in MORE_MULTIPROCESSORS {
                let others = run(harness, case, &input, more)?;
                same_bits(&format!("blocks for {more} multiprocessors"), &actual, &others)?;
            }
        }
        oracle::agrees(case, &input, &actual)?;
        whole::blocks_agree(harness, case, &input, &actual)?;

        // The last row alone has the same bits, by the entry of the fewest tokens.
        let last = case.m - 1;
        let alone = Input {
            a: input.a[last * case.k..].to_vec(),
            a_scales: input.a_scales[last..].to_vec(),
            residual: input.residual.map(|residual| residual[last * case.out_cols()..].to_vec()),
            ..input
        };
        let smallest = VARIANTS.iter().position(|variant| variant.weights == case.variant().weights);
        let smallest = smallest.ok_or("no entry of these weights")?;
        let row = run(harness, &Case { m: 1, variant: smallest, ..case.clone() }, &alone, MULTIPROCESSORS)?;
        same_bits("the last row alone", &actual[last * row.len()..], &row)
    }
}

fn run<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    input: &Input,
    multiprocessors: u32,
) -> Result<Vec<u8>, Failure> {
    let variant = case.variant();
    let mut arena = harness.arena();
    let (m, n, k) = (case.m as u32, case.n as u32, case.k as u32);
    let mut params = abi::GemmFew { m, n, ..Default::default() };
    let as_bytes =
        |values: &[f32]| -> Vec<u8> { values.iter().map(|&value| (value as i8).cast_unsigned()).collect() };
    let (element_bytes, a) = match variant.weights {
        Weights::Int8 => (1, arena.input_bytes("a", &as_bytes(&input.a))?),
        _ => (2, arena.input_bytes("a", &case.half().encode(&input.a))?),
    };
    params.a_map =
        arena.tensor_map(&MapShape::new(element_bytes, m, k, variant.tile.tokens).at(arena.address(a)))?;
    match &input.packed {
        Some(packed) => {
            let tiles = arena.input_bytes("packed", &packed.bytes)?;
            params.packed = arena.address(tiles);
            params.piece_bytes = packed.piece_bytes;
            params.zeros = u32::from(packed.zeros);
            params.scales_f16 = u32::from(case.scales_f16);
        }
        None => {
            let w = match variant.weights {
                Weights::Int8 => arena.input_bytes("w", &as_bytes(&input.w))?,
                _ => arena.input_bf16("w", &input.w)?,
            };
            params.w_map =
                arena.tensor_map(&MapShape::new(element_bytes, n, k, ROWS).at(arena.address(w)))?;
        }
    }
    if variant.weights == Weights::Int8 {
        let mut f32s = |name, values: &[f32]| arena.input_f32(name, values).map(|at| arena.address(at));
        params.a_scales = f32s("a_scales", &input.a_scales)?;
        params.w_scales = f32s("w_scales", &input.w_scales)?;
    }
    let Ends { bias, residual, out, wider } = Ends::new(&mut arena, case, input)?;
    params.bias = bias;
    params.residual = residual;
    params.out = arena.address(out);
    let stage_k = stage_k(variant.weights) as u32;
    params.steps = k.div_ceil(stage_k);
    params.splits = case.splits();
    params.out_f32 = u32::from(case.out_f32);
    params.silu = u32::from(case.silu);
    params.out_stride = (case.out_cols() + case.more_cols) as u32;
    if input.packed.is_some() {
        // As if the same weights followed.
        let next = Follower::from(&params);
        params.follow(&next, 16 << 20);
    }
    let zeros = vec![0; launch::partial_bytes(variant, m, n, params.splits)];
    let partials = arena.alloc("partials", zeros.len())?;
    arena.write(partials, 0, &zeros)?;
    let counters = arena.input_u32("counters", &vec![0; launch::tiles(variant, m, n) as usize])?;
    params.partials = arena.address(partials);
    // As all that is brought in, they are to be what they were.
    params.counters = arena.address(counters);
    let grid = launch::grid(variant, m, n, params.splits, multiprocessors);
    arena.launch(&variant.spec, grid, &params)?;
    if variant.tile.is_mailed() {
        same_bits("the mail", &zeros, &arena.all_bytes(partials)?)?;
    }
    wider.rows(&arena.all_bytes(out)?)
}

/// What a product is added to and written to.
struct Ends {
    bias: u64,
    residual: u64,
    out: Handle,
    wider: Wider,
}

impl Ends {
    fn new<D: Driver>(arena: &mut Arena<'_, D>, case: &Case, input: &Input) -> Result<Ends, Failure> {
        let bias = match &input.bias {
            Some(bias) => Some(arena.input_f32("bias", bias)?),
            None => None,
        };
        let in_place = case.in_place && !case.out_f32;
        let residual = match &input.residual {
            Some(residual) if in_place => {
                Some(case.wider(2).alloc(arena, "residual", Some(&case.half().encode(residual)), case.m)?)
            }
            Some(residual) => {
                Some(arena.input_bytes("residual", &case.wider(2).spread(&case.half().encode(residual)))?)
            }
            None => None,
        };
        let wider = case.wider(if case.out_f32 { 4 } else { 2 });
        let out = match residual {
            Some(residual) if in_place => residual,
            _ => wider.alloc(arena, "out", None, case.m)?,
        };
        let address = |buffer: Option<Handle>| buffer.map_or(0, |buffer| arena.address(buffer));
        Ok(Ends { bias: address(bias), residual: address(residual), out, wider })
    }
}
