//! Kernels that are right run to the end and answer what a GPU would.

use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Launch, Order, Report};

fn launch(device: &mut Device, grid: [u32; 3], threads: u32, shared_bytes: u32, kernel: &dyn Fn()) -> Report {
    let mut report = None;
    for order in [Order::Deterministic, Order::Seeded(1), Order::Seeded(2)] {
        let launch = Launch { name: "kernel", grid, threads, shared_bytes, order };
        report = Some(device.launch(&launch, kernel).unwrap_or_else(|fault| panic!("{fault}")));
    }
    report.expect("launched")
}

fn u32s(device: &mut Device, address: u64, count: usize) -> Vec<u32> {
    let mut bytes = vec![0; 4 * count];
    device.read(address, &mut bytes).unwrap_or_else(|fault| panic!("{fault}"));
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn with_u32s(device: &mut Device, name: &str, values: &[u32]) -> u64 {
    let address = device.alloc(4 * values.len(), name);
    device.write(address, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
    address
}

#[test]
fn a_block_reduces_through_shuffles_and_shared_memory() {
    let mut device = Device::new();
    let values: Vec<u32> = (0..1000).map(|i| i * 7 + 3).collect();
    let (x, out) = (with_u32s(&mut device, "x", &values), device.alloc(12, "out"));
    let report = launch(&mut device, [3, 1, 1], 128, 16, &|| {
        let mut sum = 0u32;
        let mut i = tid_x();
        while i < 1000 {
            sum += ld_global::<u32>(x + 4 * u64::from(i));
            i += ntid_x();
        }
        for mask in [16, 8, 4, 2, 1] {
            sum += shfl_bfly(sum, mask);
        }
        let slot = |warp| shared_base() + 4 * warp;
        if tid_x().is_multiple_of(32) {
            st_shared(slot(tid_x() / 32), sum);
        }
        bar_sync();
        if tid_x() == 0 {
            let total: u32 = (0..4).map(|warp| ld_shared::<u32>(slot(warp))).sum();
            st_global(out + 4 * u64::from(ctaid_x()), total);
        }
    });
    let total: u32 = values.iter().sum();
    assert_eq!(u32s(&mut device, out, 3), [total; 3]);
    assert_eq!((report.barriers, report.blocks), (3, 3));
}

#[test]
fn shuffles_and_votes_follow_the_isa() {
    let mut device = Device::new();
    let out = device.alloc(4 * 32 * 5, "out");
    launch(&mut device, [1, 1, 1], 32, 0, &|| {
        let lane = tid_x();
        let answers = [
            shfl_bfly(lane * 10, 5),
            shfl_idx(lane * 10, lane / 2),
            shfl_down(lane * 10, 3),
            shfl_up(lane * 10, 3),
            ballot(lane.is_multiple_of(3)),
        ];
        for (i, answer) in answers.into_iter().enumerate() {
            st_global(out + 4 * (u64::from(lane) * 5 + i as u64), answer);
        }
    });
    let got = u32s(&mut device, out, 160);
    let votes = (0..32).filter(|lane| lane % 3 == 0).fold(0, |bits, lane| bits | 1 << lane);
    for lane in 0..32u32 {
        let down = if lane + 3 < 32 { lane + 3 } else { lane };
        let up = if lane >= 3 { lane - 3 } else { lane };
        let want = [(lane ^ 5) * 10, lane / 2 * 10, down * 10, up * 10, votes];
        assert_eq!(got[5 * lane as usize..][..5], want, "lane {lane}");
    }
}

type Mma = fn([u32; 4], [u32; 2], [f32; 4]) -> [f32; 4];

#[test]
fn mma_multiplies_what_ldmatrix_loads() {
    multiply(|x| (x.to_bits() >> 16) as u16, mma_m16n8k16_bf16);
    // Exact for small integers: the mantissa's upper ten bits, and the exponent less the difference of the biases, 112.
    let f16 = |x: f32| {
        let (sign, magnitude) = ((x.to_bits() >> 16 & 0x8000) as u16, x.abs().to_bits());
        sign | if magnitude == 0 { 0 } else { ((magnitude >> 13) - (112 << 10)) as u16 }
    };
    multiply(f16, mma_m16n8k16_f16);
}

fn multiply(encode: fn(f32) -> u16, mma: Mma) {
    // A is 16x16, B^T is 8x16, both row-major in shared memory; small integers, so that every sum is exact.
    let a = |row: u32, k: u32| ((row * 5 + k * 3) % 11) as f32 - 5.0;
    let b = |k: u32, col: u32| ((k * 7 + col * 2) % 13) as f32 - 6.0;
    let mut device = Device::new();
    let out = device.alloc(4 * 16 * 8, "out");
    let report = launch(&mut device, [1, 1, 1], 32, 1024, &|| {
        let (lane, base) = (tid_x(), shared_base());
        for i in (lane..16 * 16).step_by(32) {
            st_shared(base + 2 * i, encode(a(i / 16, i % 16)));
            // B as [k][n], to be transposed on the way; columns 8 to 15 are never used.
            st_shared(base + 512 + 2 * i, encode(if i % 16 < 8 { b(i / 16, i % 16) } else { 0.0 }));
        }
        bar_warp_sync();
        let (matrix, row) = (lane / 8, lane % 8);
        let address = |first: u32, row: u32, col: u32| base + first + 2 * (16 * row + col);
        let a = ldmatrix_x4(address(0, row + 8 * (matrix % 2), 8 * (matrix / 2)));
        let b = ldmatrix_x4_trans(address(512, row + 8 * (matrix % 2), 8 * (matrix / 2)));
        let d = mma(a, [b[0], b[1]], [1.0; 4]);
        for (i, d) in d.into_iter().enumerate() {
            let (row, col) = (lane / 4 + 8 * (i as u32 / 2), 2 * (lane % 4) + i as u32 % 2);
            st_global(out + 4 * u64::from(8 * row + col), d.to_bits());
        }
    });
    let got = u32s(&mut device, out, 128);
    for row in 0..16 {
        for col in 0..8 {
            let want = 1.0 + (0..16).map(|k| a(row, k) * b(k, col)).sum::<f32>();
            assert_eq!(f32::from_bits(got[(8 * row + col) as usize]), want, "({row}, {col})");
        }
    }
    assert_eq!((report.mma, report.ldmatrix), (1, 2));
}

#[test]
fn stmatrix_stores_matrices_transposed() {
    let mut device = Device::new();
    let out = device.alloc(4 * 8 * 8 * 2, "out");
    launch(&mut device, [1, 1, 1], 32, 512, &|| {
        let (lane, base) = (tid_x(), shared_base());
        // Element (row, col) of matrix i is 100 i + 10 row + col.
        let element = |i: u32, col: u32| 100 * i + 10 * (lane / 4) + col;
        let pair = |i: u32| element(i, 2 * (lane % 4)) | element(i, 2 * (lane % 4) + 1) << 16;
        stmatrix_x4_trans(base + 16 * lane, [pair(0), pair(1), pair(2), pair(3)]);
        bar_warp_sync();
        for i in (lane..256).step_by(32) {
            st_global(out + 2 * u64::from(i), ld_shared::<u16>(base + 2 * i));
        }
    });
    let got = u32s(&mut device, out, 128);
    for i in 0..256 {
        let (matrix, row, col) = (i / 64, i / 8 % 8, i % 8);
        let want = 100 * matrix + 10 * col + row;
        assert_eq!(got[i as usize / 2] >> (16 * (i % 2)) & 0xffff, want, "matrix {matrix}, ({row}, {col})");
    }
}

#[test]
fn copies_arrive_group_by_group_and_fill_with_zeros() {
    let mut device = Device::new();
    let x = with_u32s(&mut device, "x", &(0..64 * 4).collect::<Vec<_>>());
    let out = device.alloc(4 * 64 * 4, "out");
    let report = launch(&mut device, [1, 1, 1], 32, 1024, &|| {
        let at = |i: u32| (shared_base() + 16 * i, 16 * u64::from(i));
        for half in 0..2 {
            let (shared, offset) = at(32 * half + tid_x());
            cp_async_16(shared, x + offset, if half == 0 { 16 } else { 6 });
            cp_async_commit();
        }
        for half in 0..2 {
            if half == 0 {
                cp_async_wait(1);
            } else {
                cp_async_wait(0);
            }
            bar_sync();
            let (shared, offset) = at(32 * half + (tid_x() ^ 9));
            st_global(out + offset, ld_shared::<[u32; 4]>(shared));
        }
    });
    let got = u32s(&mut device, out, 256);
    for (i, &got) in got.iter().enumerate() {
        // The second half's copies take 6 of 16 bytes: a word and a half.
        let word = i as u32;
        let want = match (i < 128, i % 4) {
            (true, _) | (false, 0) => word,
            (false, 1) => word & 0xffff,
            _ => 0,
        };
        assert_eq!(got, want, "word {i}");
    }
    assert_eq!(report.async_copies, 64);
}

#[test]
fn named_barriers_order_the_warps_that_meet() {
    let mut device = Device::new();
    let out = device.alloc(4 * 64, "out");
    launch(&mut device, [1, 1, 1], 128, 4 * 64, &|| {
        let slot = shared_base() + 4 * (tid_x() % 64);
        match tid_x() / 64 {
            0 => {
                st_shared(slot, tid_x());
                bar_sync_named(1, 128);
            }
            _ => {
                bar_sync_named(1, 128);
                let neighbour = shared_base() + 4 * ((tid_x() + 40) % 64);
                st_global(out + 4 * u64::from(tid_x() % 64), ld_shared::<u32>(neighbour));
                bar_sync_named(2, 64);
                st_shared(slot, 0u32);
            }
        }
    });
    let want: Vec<u32> = (0..64).map(|i| (i + 40) % 64).collect();
    assert_eq!(u32s(&mut device, out, 64), want);
}

#[test]
fn atomics_add_up_across_blocks() {
    let mut device = Device::new();
    let out = with_u32s(&mut device, "out", &[5]);
    launch(&mut device, [10, 2, 3], 33, 8, &|| {
        let base = shared_base();
        if tid_x() == 0 {
            st_shared(base, 0u64);
        }
        bar_sync();
        atom_add_shared(base, 1u64);
        bar_sync();
        if tid_x() == 0 {
            assert_eq!(ld_shared::<u64>(base), 33);
        }
        atom_add_global(out, 1u32);
    });
    assert_eq!(u32s(&mut device, out, 1), [5 + 3 * 60 * 33]);
}

#[test]
fn offsets_past_two_to_the_31_are_cheap() {
    let mut device = Device::new();
    let x = device.alloc(6 << 30, "x");
    launch(&mut device, [2, 1, 1], 32, 0, &|| {
        let far = x + (5 << 30) + 128 * u64::from(ctaid_x()) + 4 * u64::from(tid_x());
        st_global(far, tid_x());
        assert_eq!(ld_global::<u32>(far), tid_x());
    });
    assert_eq!(u32s(&mut device, x + (5 << 30), 32), (0..32).collect::<Vec<_>>());
}
