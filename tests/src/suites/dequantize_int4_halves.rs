use proptest::{prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi,
    dequantize_int4::DEQUANTIZE_HALVES,
    gemm_few::{
        halves::{Bytes, pack},
        layout,
        pack::{Packed, Rows},
    },
};
use tilewright_reference::{bf16_bits, round_bf16};

use super::eights;
use crate::{
    harness::{Failure, Harness, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct DequantizeHalves;

#[derive(Debug, Clone)]
pub struct Case {
    n: usize,
    k: usize,
    group_size: usize,
    scales_f16: bool,
    seed: u64,
}

impl Property for DequantizeHalves {
    const KERNEL: &'static str = "dequantize_int4_halves";
    const EMULATED_CASES: u32 = 60;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let group_sizes = select(vec![32usize, 64, 128, 256, 1024]);
        (eights(256, 540), eights(128, 520), group_sizes, any::<bool>(), any::<u64>())
            .prop_map(|(n, k, group_size, scales_f16, seed)| Case { n, k, group_size, scales_f16, seed })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let corner = |n, k, group_size, scales_f16| Case { n, k, group_size, scales_f16, seed: 1 };
        vec![
            corner(8, 64, 32, false),
            corner(256, 128, 128, true),
            corner(264, 192, 64, true),
            corner(248, 328, 256, false),
        ]
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let n = shape.size("n", 512, 8, "rows");
        let k = shape.size("k", 512, 8, "columns");
        let group_size = shape.one_of("group_size", 128, &[32, 64, 128], "columns of a group");
        shape.fits(&[("out", &[n, k])]);
        let scales_f16 = shape.flag("scales_f16", false, "whether scales are f16");
        Some(Case { n, k, group_size, scales_f16, seed: shape.inputs() })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let Case { n, k, group_size, scales_f16, .. } = *case;
        let mut random = Random::new(case.seed);
        let of_row = k.div_ceil(group_size);
        let mut codes = |count| -> Vec<u8> { (0..count).map(|_| random.below(256) as u8).collect() };
        let (values, zeros) = (codes(n * k), codes(n * of_row));
        // Of all bits that their type has, so that products have to be rounded.
        let scales: Vec<f32> = (0..n * of_row)
            .map(|_| 0.001 + random.uniform() * 0.1)
            .map(|scale| if scales_f16 { half::f16::from_f32(scale).to_f32() } else { round_bf16(scale) })
            .collect();
        let weight = |at: usize| {
            let group = at / k * of_row + at % k / group_size;
            // Of at most 20 bits: exact before it is rounded.
            (f32::from(values[at]) - f32::from(zeros[group])) * scales[group]
        };
        let expected: Vec<u8> = (0..n * k).flat_map(|at| bf16_bits(weight(at)).to_le_bytes()).collect();
        let packed = pack(
            &Bytes { n, k, group_size, values: &values, scales: &scales, scales_f16, zeros: &zeros },
            Rows::AsGiven,
        );
        let actual = run(harness, case, &packed)?;
        same_bits("the weights", &expected, &actual)?;
        same_bits("the second run", &actual, &run(harness, case, &packed)?)
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
        steps: packed.steps / 2,
        piece_bytes: packed.piece_bytes,
        groups: packed.groups,
        zeros: u32::from(packed.zeros),
        scales_f16: u32::from(case.scales_f16),
        reserved: 0,
    };
    let tiles = packed.bytes.len() as u32 / packed.piece_bytes / layout::PIECES / 2;
    arena.launch(&DEQUANTIZE_HALVES, [tiles, 1, 1], &params)?;
    arena.all_bytes(out)
}
