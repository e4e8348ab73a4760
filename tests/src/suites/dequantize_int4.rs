use proptest::{prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi,
    dequantize_int4::{DEQUANTIZE_F16, DEQUANTIZE_INT4},
    gemm_few::{
        layout,
        pack::{Packed, Plain, Rows},
    },
};
use tilewright_reference::bf16_bits;

use super::{eights, half::Half};
use crate::{
    harness::{Failure, Harness, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct DequantizeInt4;

#[derive(Debug, Clone)]
pub struct Case {
    n: usize,
    k: usize,
    group_size: usize,
    zeros: bool,
    scales_f16: bool,
    half: Half,
    seed: u64,
}

impl Property for DequantizeInt4 {
    const KERNEL: &'static str = "dequantize_int4";
    const EMULATED_CASES: u32 = 60;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let group_sizes = select(vec![32usize, 64, 128, 256]);
        (eights(256, 540), eights(128, 520), group_sizes, any::<[bool; 3]>(), any::<u64>())
            .prop_map(|(n, k, group_size, [zeros, scales_f16, f16], seed)| Case {
                n,
                k: k.next_multiple_of(64),
                group_size,
                zeros,
                scales_f16,
                half: if f16 { Half::F16 } else { Half::Bf16 },
                seed,
            })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let corners = |half| {
            let corner =
                |n, k, group_size, on| Case { n, k, group_size, zeros: on, scales_f16: on, half, seed: 1 };
            [
                corner(8, 64, 32, false),
                corner(256, 128, 128, true),
                corner(264, 192, 64, true),
                corner(248, 320, 256, false),
            ]
        };
        [Half::Bf16, Half::F16].into_iter().flat_map(corners).collect()
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let n = shape.size("n", 512, 8, "rows");
        let k = shape.size("k", 512, 64, "columns");
        let group_size = shape.one_of("group_size", 128, &[32, 64, 128], "columns of a group");
        shape.fits(&[("out", &[n, k])]);
        Some(Case {
            n,
            k,
            group_size,
            zeros: shape.flag("zeros", false, "whether there are zero points"),
            scales_f16: shape.flag("scales_f16", false, "whether scales are f16"),
            half: if shape.flag("f16", false, "half precision rather than bf16") {
                Half::F16
            } else {
                Half::Bf16
            },
            seed: shape.inputs(),
        })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let Case { n, k, group_size, .. } = *case;
        let mut random = Random::new(case.seed);
        let of_row = k.div_ceil(group_size);
        let values: Vec<u8> = (0..n * k).map(|_| random.below(16) as u8).collect();
        let zeros: Option<Vec<u8>> =
            case.zeros.then(|| (0..n * of_row).map(|_| random.below(17) as u8).collect());
        // Scales of all bits that their type has, so that products have to be rounded.
        let scales: Vec<f32> = (0..n * of_row).map(|_| 0.001 + random.uniform() * 0.1).collect();
        let bits: Vec<u16> = match case.scales_f16 {
            true => scales.iter().map(|&scale| half::f16::from_f32(scale).to_bits()).collect(),
            false => scales.iter().map(|&scale| bf16_bits(scale)).collect(),
        };
        let of_bits = |bits: u16| match case.scales_f16 {
            true => half::f16::from_bits(bits).to_f32(),
            false => half::bf16::from_bits(bits).to_f32(),
        };
        let expected: Vec<f32> = (0..n * k)
            .map(|at| {
                let group = at / k * of_row + at % k / group_size;
                let zero = zeros.as_ref().map_or(8, |zeros| zeros[group]);
                // Of at most 16 bits: exact before it is rounded.
                (f32::from(values[at]) - f32::from(zero)) * of_bits(bits[group])
            })
            .collect();
        let plain = Plain { n, k, group_size, values: &values, scales: &bits, zeros: zeros.as_deref() };
        let actual = run(harness, case, &Packed::new(&plain, Rows::AsGiven))?;
        same_bits("the weights", &case.half.encode(&expected), &actual)?;
        same_bits("the second run", &actual, &run(harness, case, &Packed::new(&plain, Rows::AsGiven))?)
    }
}

fn run<D: Driver>(harness: &Harness<D>, case: &Case, packed: &Packed) -> Result<Vec<u8>, Failure> {
    let mut arena = harness.arena();
    let g_packed = arena.input_bytes("packed", &packed.bytes)?;
    let out = arena.alloc("out", case.n * case.k * 2)?;
    let params = abi::DequantizeInt4 {
        packed: arena.address(g_packed),
        out: arena.address(out),
        n: case.n as u32,
        k: case.k as u32,
        steps: packed.steps,
        piece_bytes: packed.piece_bytes,
        groups: packed.groups,
        zeros: u32::from(packed.zeros),
        scales_f16: u32::from(case.scales_f16),
        reserved: 0,
    };
    let tiles = packed.bytes.len() as u32 / packed.piece_bytes / layout::PIECES;
    let spec = if case.half == Half::F16 { &DEQUANTIZE_F16 } else { &DEQUANTIZE_INT4 };
    arena.launch(spec, [tiles, 1, 1], &params)?;
    arena.all_bytes(out)
}
