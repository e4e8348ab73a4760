use proptest::{prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi::{self, GemmWhole, KernelSpec, RmsNorm},
    gemm_few::{
        self, Weights,
        launch::{self, Follow, Follower},
        layout,
        pack::{Packed, Plain, Rows},
    },
    gemm_sm90::launch::MapShape,
    gemm_whole::{self, MAIL_BYTES, MOST_PHASES, TOKENS, VARIANTS, Variant, WARPS},
    rms_norm::RMS_NORM,
};
use tilewright_reference::bf16_bits;

use super::{eights, sizes};
use crate::{
    harness::{Arena, Failure, Handle, Harness, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

/// What follows attention in a layer, and what begins the next one: a chain leaves what `rms_norm` and `gemm_few` leave one by one, whose own suites compare
/// them with the oracle.
pub struct Chains;

#[derive(Debug, Clone)]
pub struct Case {
    variant: usize,
    m: usize,
    /// Columns of what attention leaves, of the stream, of the gated product, and of the last product.
    attended: usize,
    stream: usize,
    gated: usize,
    last: usize,
    /// Which of the four phases there are: from the first to before the end.
    first: usize,
    end: usize,
    zeros: bool,
    scales_f16: bool,
    bias: bool,
    /// Of the first token's row, one value.
    nan: bool,
    blocks: u32,
    seed: u64,
}

/// The variants that have chains.
fn chained() -> Vec<(&'static Variant, &'static KernelSpec)> {
    VARIANTS.iter().filter_map(|variant| Some((variant, variant.chain?))).collect()
}

const EPS: f32 = 1e-5;
/// Blocks of the emulator that run at the same time, and as many on a device.
const MOST_BLOCKS: u32 = 8;

impl Case {
    fn variant(&self) -> &'static Variant {
        chained()[self.variant].0
    }

    /// Sizes that the variant takes.
    fn fitting(self) -> Case {
        let columns = |size: usize| size.next_multiple_of(64);
        let (attended, stream, gated) = (columns(self.attended), columns(self.stream), columns(self.gated));
        let widest = attended.max(stream).max(gated) as u32;
        // Rows that a block has room for.
        let most = (1..=TOKENS)
            .rev()
            .find(|&m| gemm_whole::launch::choose(self.variant().weights, [m, 8, widest], 1, 1).is_some());
        let m = self.m.min(most.unwrap_or(1) as usize);
        Case { m, attended, stream, gated, end: self.end.max(self.first + 1), ..self }
    }
}

impl Property for Chains {
    const KERNEL: &'static str = "gemm_whole";
    const EMULATED_CASES: u32 = 24;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let columns = (eights(64, 600), eights(64, 400), eights(64, 200), eights(64, 400));
        let part = (0..MOST_PHASES, 1..=MOST_PHASES);
        let more = (any::<[bool; 4]>(), select(vec![1, 3, MOST_BLOCKS, MOST_BLOCKS]), any::<u64>());
        (0..chained().len(), sizes(1, TOKENS as usize), columns, part, more)
            .prop_map(
                |(variant, m, columns, (first, end), ([zeros, scales_f16, bias, nan], blocks, seed))| {
                    let (attended, stream, gated, last) = columns;
                    let case = Case {
                        variant,
                        m,
                        attended,
                        stream,
                        gated,
                        last,
                        first,
                        end,
                        zeros,
                        scales_f16,
                        bias,
                        nan,
                        blocks,
                        seed,
                    };
                    case.fitting()
                },
            )
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let mut corners = Vec::new();
        for variant in 0..chained().len() {
            let whole = Case {
                variant,
                m: 1,
                attended: 640,
                stream: 384,
                gated: 256,
                last: 504,
                first: 0,
                end: MOST_PHASES,
                zeros: variant % 2 == 0,
                scales_f16: variant == 1,
                bias: true,
                nan: false,
                blocks: MOST_BLOCKS,
                seed: 1,
            };
            // A row of nothing but NaN; a gated product as wide as the stream; fewer groups of rows than blocks; a ring that is filled many times; as many rows as there can be; norms by all of a row's threads, of several
            // columns each.
            corners.extend([
                whole.clone(),
                Case { nan: true, ..whole.clone() },
                Case { attended: 64, gated: 192, blocks: 1, ..whole.clone() },
                Case { attended: 64, stream: 128, gated: 64, last: 8, ..whole.clone() }.fitting(),
                Case { m: 3, attended: 2496, stream: 128, gated: 2240, ..whole.clone() }.fitting(),
                Case { m: 3, stream: 6208, gated: 64, first: 1, end: 2, ..whole.clone() }.fitting(),
                Case { m: TOKENS as usize, first: 1, blocks: 1, ..whole }.fitting(),
            ]);
        }
        corners
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let variant = shape.one_of("kind", 0, &[0, 1, 2], "weights: 4 bits in groups of 128, 64, 32");
        let m = shape.size("m", 4, 1, "rows");
        let stream = shape.size("stream", 512, 8, "columns of the stream");
        let gated = shape.size("gated", 512, 8, "columns of the gated product");
        shape.fits(&[("the stream", &[m, stream]), ("weights", &[3, stream, gated])]);
        let case = Case {
            variant,
            m,
            attended: stream,
            stream,
            gated,
            last: stream,
            first: 0,
            end: MOST_PHASES,
            zeros: shape.flag("zeros", false, "whether there are zero points"),
            scales_f16: shape.flag("scales_f16", false, "whether scales are f16"),
            bias: shape.flag("bias", false, "whether the last product has a bias"),
            nan: shape.flag("nan", false, "whether a value is not a number"),
            blocks: MOST_BLOCKS,
            seed: shape.inputs(),
        };
        Some(case.fitting())
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let chained = run(harness, case, true)?;
        let others =
            [("one by one", run(harness, case, false)?), ("the second run", run(harness, case, true)?)];
        for (what, expected) in others {
            for ((name, actual), (_, expected)) in chained.iter().zip(&expected) {
                same_bits(&format!("the chain and {what}: {name}"), expected, actual)?;
            }
        }
        Ok(())
    }
}

/// The memory of a case, and what makes its weights.
struct Layer<'a, 'h, D: Driver> {
    arena: &'a mut Arena<'h, D>,
    case: &'a Case,
    random: Random,
}

impl<D: Driver> Layer<'_, '_, D> {
    /// A product of `a`, `[m, k]`, with fresh weights `[n, k]`.
    fn product(&mut self, a: Handle, [n, k]: [usize; 2], out: Handle) -> Result<GemmWhole, Failure> {
        // So small that a stream stays about as large as it is.
        let packed = self.packed(n, k, 1.0 / (k as f32).sqrt());
        let pieces = self.arena.input_bytes("packed", &packed.bytes)?;
        let (n, k) = (n as u32, k as u32);
        let splits = launch::splits(n, k, layout::TILE_K);
        // Products that add to the same rows have the same rows a block.
        let adding =
            [self.case.attended, self.case.gated].map(|k| launch::splits(n, k as u32, layout::TILE_K));
        let is_adding = n as usize == self.case.stream;
        let most = WARPS / if is_adding { adding[0].max(adding[1]).max(splits) } else { splits };
        let row_groups = n.div_ceil(layout::PIECE_ROWS).div_ceil(self.case.blocks);
        Ok(GemmWhole {
            a: self.arena.address(a),
            packed: self.arena.address(pieces),
            out: self.arena.address(out),
            m: self.case.m as u32,
            n,
            k,
            steps: packed.steps,
            splits,
            // Rows that this leaves out are not there: `run` makes sure that there are none.
            row_groups: row_groups.min(most),
            piece_bytes: packed.piece_bytes,
            out_stride: n,
            zeros: u32::from(packed.zeros),
            scales_f16: u32::from(self.case.scales_f16),
            ..Default::default()
        })
    }

    fn packed(&mut self, n: usize, k: usize, size: f32) -> Packed {
        let group_size = match self.case.variant().weights {
            Weights::Int4 { groups, .. } => 128 / groups as usize,
            Weights::Bf16 | Weights::Int8 => 128,
        };
        let groups = n * k.div_ceil(group_size);
        let values: Vec<u8> = (0..n * k).map(|_| self.random.below(16) as u8).collect();
        let scales = (0..groups).map(|_| size * (0.1 + self.random.uniform() * 0.1));
        let scales: Vec<u16> = match self.case.scales_f16 {
            true => scales.map(|scale| half::f16::from_f32(scale).to_bits()).collect(),
            false => scales.map(bf16_bits).collect(),
        };
        let zeros: Option<Vec<u8>> =
            self.case.zeros.then(|| (0..groups).map(|_| self.random.below(17) as u8).collect());
        let plain = Plain { n, k, group_size, values: &values, scales: &scales, zeros: zeros.as_deref() };
        Packed::new(&plain, Rows::AsGiven)
    }

    /// The product of the stream's norm.
    fn normed(&mut self, product: GemmWhole, x: Handle) -> Result<GemmWhole, Failure> {
        let weight: Vec<f32> = (0..self.case.stream).map(|_| 0.5 + self.random.uniform()).collect();
        let weight = self.arena.input_f32("norm", &weight)?;
        Ok(GemmWhole {
            norm_x: self.arena.address(x),
            norm_weight: self.arena.address(weight),
            norm_eps: EPS,
            ..product
        })
    }
}

/// What the phases leave, by name; as one chain or one launch after the other.
fn run<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    is_chained: bool,
) -> Result<Vec<(&'static str, Vec<u8>)>, Failure> {
    let Case { m, attended, stream, gated, last, .. } = *case;
    let mut arena = harness.arena();
    let mut random = Random::new(case.seed);
    let mut of_stream = random.bf16s(m * stream, 1.0);
    if case.nan {
        of_stream[stream / 2] = f32::NAN;
    }
    let x = arena.inout_bf16("x", &of_stream)?;
    let of_attention = arena.input_bf16("of attention", &random.bf16s(m * attended, 1.0))?;
    // What a phase that isn't there would have left.
    let mut left = |name, cols| arena.inout_bf16(name, &random.bf16s(m * cols, 1.0));
    let (normed, joined, out) = (left("normed", stream)?, left("joined", gated)?, left("out", last)?);
    let mut layer = Layer { arena: &mut arena, case, random };

    let residual = layer.arena.address(x);
    let mut phases = Vec::new();
    phases.push(GemmWhole { residual, ..layer.product(of_attention, [stream, attended], x)? });
    let product = GemmWhole {
        silu: 1,
        out_stride: gated as u32,
        ..layer.product(normed, [2 * gated, stream], joined)?
    };
    phases.push(layer.normed(product, x)?);
    phases.push(GemmWhole { residual, ..layer.product(joined, [stream, gated], x)? });
    let product = layer.product(normed, [last, stream], out)?;
    phases.push(layer.normed(product, x)?);
    if case.bias {
        let bias = layer.random.f32s(last, 1.0);
        let bias = layer.arena.input_f32("bias", &bias)?;
        phases[MOST_PHASES - 1].bias = layer.arena.address(bias);
    }
    let phases = &phases[case.first..case.end];

    if is_chained {
        launch_chain(&mut arena, chained()[case.variant], phases)?;
    } else {
        for phase in phases {
            launch_one(&mut arena, case.variant(), phase)?;
        }
    }
    [("x", x), ("normed", normed), ("joined", joined), ("out", out)]
        .into_iter()
        .map(|(name, buffer)| Ok((name, arena.all_bytes(buffer)?)))
        .collect()
}

/// As many phases a launch as have room: where the splits leave a block fewer rows than it would have to take, a product is left to the launches by
/// themselves.
fn launch_chain<D: Driver>(
    arena: &mut Arena<'_, D>,
    (variant, chained): (&'static Variant, &'static KernelSpec),
    phases: &[GemmWhole],
) -> Result<(), Failure> {
    let blocks = |phase: &GemmWhole| gemm_whole::launch::blocks(phase.n, phase.row_groups);
    let (arrivals, mail) = (arena.alloc("arrivals", 4)?, arena.alloc("mail", MAIL_BYTES as usize)?);
    arena.write(arrivals, 0, &[0; 4])?;
    arena.write(mail, 0, &[0; MAIL_BYTES as usize])?;
    let mut rest = phases;
    while !rest.is_empty() {
        let fits = |taken: usize| {
            blocks(&rest[taken]) <= MOST_BLOCKS && gemm_whole::launch::follows(&rest[..taken], &rest[taken])
        };
        let taken = (0..rest.len()).take_while(|&taken| fits(taken)).count().max(1);
        let (phases, others) = rest.split_at(taken);
        rest = others;
        let most = phases.iter().map(blocks).max().unwrap_or(1);
        if most > MOST_BLOCKS {
            launch_one(arena, variant, &phases[0])?;
            continue;
        }
        let mut chain = abi::GemmChain {
            arrivals: arena.address(arrivals),
            mail: arena.address(mail),
            count: phases.len() as u32,
            ..abi::GemmChain::default()
        };
        chain.phases[..phases.len()].copy_from_slice(phases);
        // As if it came again.
        let next = Follower::from(&chain);
        chain.follow(&next, 16 << 20);
        arena.launch(chained, [most, 1, 1], &chain)?;
    }
    same_bits("the arrivals", &[0; 4], &arena.all_bytes(arrivals)?)?;
    same_bits("the mail", &[0; MAIL_BYTES as usize], &arena.all_bytes(mail)?)
}

/// A norm, if there is one, and a product by `gemm_few`.
fn launch_one<D: Driver>(
    arena: &mut Arena<'_, D>,
    variant: &'static Variant,
    phase: &GemmWhole,
) -> Result<(), Failure> {
    let GemmWhole { a, m, n, k, splits, .. } = *phase;
    if phase.norm_x != 0 {
        let norm = RmsNorm {
            x: phase.norm_x,
            residual: 0,
            weight: phase.norm_weight,
            out: a,
            rows: m,
            cols: k,
            eps: phase.norm_eps,
            reserved: 0,
        };
        arena.launch(&RMS_NORM, [m, 1, 1], &norm)?;
    }
    let few =
        launch::choose(variant.weights, m, splits).ok_or("no entry of gemm_few for the chain's products")?;
    let counters = arena.input_u32("counters", &vec![0; launch::tiles(few, m, n) as usize])?;
    let zeros = vec![0; launch::partial_bytes(few, m, n, splits)];
    let partials = arena.alloc("partials", zeros.len())?;
    arena.write(partials, 0, &zeros)?;
    let params = abi::GemmFew {
        a_map: arena.tensor_map(&MapShape::new(2, m, k, few.tile.tokens).at(a))?,
        packed: phase.packed,
        bias: phase.bias,
        residual: phase.residual,
        out: phase.out,
        partials: arena.address(partials),
        counters: arena.address(counters),
        m,
        n,
        steps: phase.steps,
        splits,
        piece_bytes: phase.piece_bytes,
        zeros: phase.zeros,
        scales_f16: phase.scales_f16,
        silu: phase.silu,
        out_stride: phase.out_stride,
        ..Default::default()
    };
    let grid = gemm_few::launch::grid(few, m, n, splits, MOST_BLOCKS);
    arena.launch(&few.spec, grid, &params)
}
