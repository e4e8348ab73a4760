//! Products of signed bytes against plain loops: `wgmma` in every layout and width, `mma`, and uses of integers in flight.

mod operands;
mod support;

use operands::{B, Layout, OPERAND_BYTES, a_base, b_base, run};
use support::orders;
use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, FaultKind, Order, Swizzle};

/// Bytes of a row: four steps.
const DEPTH_BYTES: u32 = 128;
const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

/// Any byte, the least and the greatest among them.
fn byte(seed: u32, row: u32, k: u32) -> i8 {
    let mixed = (row * 131 + k * 31 + seed * 17 + 3).wrapping_mul(0x9e37_79b1) >> 21;
    match mixed % 8 {
        0 => i8::MIN,
        1 => i8::MAX,
        _ => (mixed >> 3) as i8,
    }
}

/// What the accumulators hold before: near the ends of the range, so that sums wrap.
fn before(row: u32, column: u32) -> i32 {
    match (row + column) % 3 {
        0 => i32::MAX - 5,
        1 => i32::MIN + 5,
        _ => row as i32 - column as i32,
    }
}

fn plain_loop(start: i32, row: u32, column: u32, depth: std::ops::Range<u32>) -> i32 {
    let sum: i64 = depth.map(|k| i64::from(byte(1, row, k)) * i64::from(byte(2, column, k))).sum();
    (i64::from(start) + sum) as i32
}

/// Fills 16-bit cells with pairs of bytes.
fn fill(layout: Layout, base: u32, seed: u32) {
    for i in (tid_x()..layout.rows * DEPTH_BYTES / 2).step_by(ntid_x() as usize) {
        let (row, pair) = (i / (DEPTH_BYTES / 2), i % (DEPTH_BYTES / 2));
        let bytes = [byte(seed, row, 2 * pair), byte(seed, row, 2 * pair + 1)].map(|b| b as u8);
        st_shared(layout.address(base, row, pair), u16::from_le_bytes(bytes));
    }
}

/// Row and column of a lane's register in the product of its warpgroup.
fn place(register: u32) -> (u32, u32) {
    let (warp, lane, i) = (tid_x() / 32 % 4, tid_x() % 32, register % 4);
    (16 * warp + lane / 4 + 8 * (i / 2), 8 * (register / 4) + 2 * (lane % 4) + i % 2)
}

fn store(out: u64, n: u32, d: &[i32]) {
    for (register, &d) in d.iter().enumerate() {
        let (row, column) = place(register as u32);
        st_global(out + 4 * u64::from(row * n + column), d as u32);
    }
}

/// The lane's registers of A for the 32 bytes from `k` on.
fn a_registers(k: u32) -> [u32; 4] {
    let (warp, lane) = (tid_x() / 32, tid_x() % 32);
    std::array::from_fn(|i| {
        let (row, k) = (16 * warp + lane / 4 + 8 * (i as u32 % 2), k + 4 * (lane % 4) + 16 * (i as u32 / 2));
        u32::from_le_bytes(std::array::from_fn(|j| byte(1, row, k + j as u32) as u8))
    })
}

fn multiply(n: u32, a: Layout, b: Layout, registers: bool, accumulate: bool, out: u64) {
    fill(a, a_base(), 1);
    fill(b, b_base(), 2);
    fence_proxy_async();
    bar_sync();
    let mut d: [i32; 128] = std::array::from_fn(|register| {
        let (row, column) = place(register as u32);
        before(row, column)
    });
    let d = &mut d[..n as usize / 2];
    wgmma_fence();
    for k in (0..DEPTH_BYTES).step_by(32) {
        let (a_desc, b_desc) = (a.descriptor(a_base(), 0, k / 2), b.descriptor(b_base(), 0, k / 2));
        match registers {
            true => wgmma_s8_rs(n, d, a_registers(k), b_desc, accumulate || k > 0),
            false => wgmma_s8_ss(n, d, a_desc, b_desc, accumulate || k > 0),
        }
    }
    wgmma_commit();
    wgmma_wait(0, d);
    store(out, n, d);
}

fn check(device: &mut Device, out: u64, n: u32, want: impl Fn(u32, u32) -> i32, what: &str) {
    let mut got = vec![0; (64 * n * 4) as usize];
    device.read(out, &mut got).unwrap_or_else(|fault| panic!("{what}: {fault}"));
    for (i, got) in got.chunks_exact(4).enumerate() {
        let (row, column) = (i as u32 / n, i as u32 % n);
        let got = i32::from_le_bytes([got[0], got[1], got[2], got[3]]);
        assert_eq!(got, want(row, column), "{what}: ({row}, {column})");
    }
}

#[test]
fn every_layout_and_width_multiplies() {
    let mut device = Device::new();
    let out = device.alloc(64 * 256 * 4, "out");
    let widths = (8..=256).step_by(8).filter(|n| *n <= 32 || n % 16 == 0);
    for (i, n) in widths.enumerate() {
        for (j, swizzle) in SWIZZLES.into_iter().enumerate() {
            let a = Layout { swizzle: SWIZZLES[(i + j) % 4], k_major: true, rows: 64 };
            let b = Layout { swizzle, k_major: true, rows: n };
            for (registers, accumulate) in [(false, i % 2 == 0), (true, i % 2 == 1)] {
                device.poison(out, 64 * 256 * 4);
                let what = format!("n {n} {a:?} {b:?} registers {registers} accumulate {accumulate}");
                let kernel = || multiply(n, a, b, registers, accumulate, out);
                let report = run(&mut device, 128, Order::Deterministic, &kernel);
                assert_eq!(report.unwrap_or_else(|fault| panic!("{what}: {fault}")).wgmma, 4);
                let start = |row, column| if accumulate { before(row, column) } else { 0 };
                let want = |row, column| plain_loop(start(row, column), row, column, 0..DEPTH_BYTES);
                check(&mut device, out, n, want, &what);
            }
        }
    }
}

#[test]
fn a_warp_multiplies_bytes() {
    let mut device = Device::new();
    let out = device.alloc(16 * 8 * 4, "out");
    let kernel = || {
        let lane = tid_x();
        let (g, t) = (lane / 4, lane % 4);
        let b = std::array::from_fn(|i| {
            u32::from_le_bytes(std::array::from_fn(|j| byte(2, g, 4 * t + 16 * i as u32 + j as u32) as u8))
        });
        let mut d: [i32; 4] = std::array::from_fn(|i| before(place(i as u32).0, place(i as u32).1));
        d = mma_m16n8k32_s8(a_registers(0), b, d);
        store(out, 8, &d);
    };
    let report =
        run(&mut device, 32, Order::Deterministic, &kernel).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(report.mma, 1);
    let mut got = vec![0; 16 * 8 * 4];
    device.read(out, &mut got).unwrap_or_else(|fault| panic!("{fault}"));
    for (i, got) in got.chunks_exact(4).enumerate() {
        let (row, column) = (i as u32 / 8, i as u32 % 8);
        let want = plain_loop(before(row, column), row, column, 0..32);
        assert_eq!(i32::from_le_bytes([got[0], got[1], got[2], got[3]]), want, "({row}, {column})");
    }
}

const A: Layout = Layout { swizzle: Swizzle::B128, k_major: true, rows: 64 };

fn fill_both() {
    fill(A, a_base(), 1);
    fill(Layout { k_major: true, ..B }, b_base(), 2);
    fence_proxy_async();
    bar_sync();
}

#[track_caller]
fn step(d: &mut [i32; 32], k: u32, accumulate: bool) {
    let b = Layout { k_major: true, ..B };
    wgmma_s8_ss(64, d, A.descriptor(a_base(), 0, k / 2), b.descriptor(b_base(), 0, k / 2), accumulate);
}

#[test]
fn groups_of_integers_complete_in_order() {
    let mut device = Device::new();
    let out = device.alloc(2 * 64 * 64 * 4, "out");
    let kernel = || {
        fill_both();
        let (mut first, mut second) = ([-1i32; 32], [5i32; 32]);
        wgmma_fence();
        step(&mut first, 0, false);
        step(&mut first, 32, true);
        wgmma_commit();
        step(&mut second, 64, true);
        wgmma_commit();
        wgmma_wait(1, &mut first);
        store(out, 64, &first);
        wgmma_wait(0, &mut second);
        // Once more is allowed: they are values now.
        wgmma_wait(0, &mut second);
        wgmma_fence();
        step(&mut second, 96, true);
        wgmma_commit();
        wgmma_wait(0, &mut second);
        store(out + 64 * 64 * 4, 64, &second);
    };
    for order in orders(20) {
        device.poison(out, 2 * 64 * 64 * 4);
        run(&mut device, 128, order, &kernel).unwrap_or_else(|fault| panic!("{fault}"));
        check(&mut device, out, 64, |row, column| plain_loop(0, row, column, 0..64), "first");
        let second = |row, column| plain_loop(5, row, column, 64..128);
        check(&mut device, out + 64 * 64 * 4, 64, second, "second");
    }
}

fn caught(device: &mut Device, kind: FaultKind, kernel: &dyn Fn()) -> Fault {
    support::caught(include_str!("wgmma_s8.rs"), 4, kind, |order| run(device, 128, order, kernel))
}

#[test]
fn integers_in_flight() {
    let mut device = Device::new();
    let begun = |d: &mut [i32; 32]| {
        fill_both();
        wgmma_fence();
        step(d, 0, false); // caught
        wgmma_commit();
    };
    // Changed, all of them or one, before the wait.
    caught(&mut device, FaultKind::InFlight, &|| {
        let mut d = [0; 32];
        begun(&mut d);
        d.iter_mut().for_each(|d| *d = std::hint::black_box(*d / 2));
        wgmma_wait(0, &mut d); // caught
    });
    caught(&mut device, FaultKind::InFlight, &|| {
        let mut d = [0; 32];
        begun(&mut d);
        d[7] = 0;
        step(&mut d, 32, true); // caught
    });
    // Two that have changed places in part.
    caught(&mut device, FaultKind::InFlight, &|| {
        let (mut d, mut e) = ([0; 32], [0; 32]);
        fill_both();
        wgmma_fence();
        step(&mut d, 0, false);
        step(&mut e, 0, false);
        std::mem::swap(&mut d[3], &mut e[3]);
        wgmma_commit();
        wgmma_wait(0, &mut d); // caught
    });
    // A copy of what the wait has given back.
    caught(&mut device, FaultKind::InFlight, &|| {
        let mut d = [0; 32];
        begun(&mut d);
        let mut stale = d;
        wgmma_wait(0, &mut d);
        wgmma_fence();
        step(&mut stale, 32, true); // caught
    });
    // Taken as floats.
    caught(&mut device, FaultKind::InFlight, &|| {
        let mut d = [0; 32];
        begun(&mut d);
        wgmma_wait(0, &mut d.map(|d| f32::from_bits(d as u32))); // caught
    });
    // Changed, and then another product begun with them and waited for: the first is missed in the end.
    let fault = caught(&mut device, FaultKind::InFlight, &|| {
        let mut d = [0; 32];
        begun(&mut d);
        d.fill(1);
        step(&mut d, 32, true);
        wgmma_commit();
        wgmma_wait(0, &mut d);
    });
    assert!(fault.to_string().contains("integer accumulators"), "{fault}");
    // A group too few, or no wait at all.
    caught(&mut device, FaultKind::InFlight, &|| {
        let mut d = [0; 32];
        begun(&mut d);
        wgmma_wait(1, &mut d); // caught
    });
    caught(&mut device, FaultKind::InFlight, &|| begun(&mut [0; 32]));
}

#[test]
fn widths_that_no_device_takes() {
    let mut device = Device::new();
    for n in [0, 4, 40, 56, 72, 248, 264] {
        let fault = caught(&mut device, FaultKind::InvalidOperand, &|| {
            fill_both();
            let mut d = [0i32; 144];
            wgmma_fence();
            let b = Layout { k_major: true, ..B }.descriptor(b_base(), 0, 0);
            wgmma_s8_ss(n, &mut d[..n as usize / 2], A.descriptor(a_base(), 0, 0), b, false); // caught
        });
        assert!(fault.to_string().contains("expected"), "{fault}");
    }
    const { assert!(256 * DEPTH_BYTES <= OPERAND_BYTES) };
}
