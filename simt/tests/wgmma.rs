//! `wgmma` against a naive product: operands in every layout, groups, rounding.

mod operands;
mod support;

use operands::*;
use support::orders;
use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Order, Swizzle};

fn check(device: &mut Device, out: u64, n: u32, want: impl Fn(u32, u32) -> f32, what: &str) {
    let mut got = vec![0; (64 * n * 4) as usize];
    device.read(out, &mut got).unwrap_or_else(|fault| panic!("{what}: {fault}"));
    for (i, got) in got.chunks_exact(4).enumerate() {
        let (row, column) = (i as u32 / n, i as u32 % n);
        let got = f32::from_le_bytes([got[0], got[1], got[2], got[3]]);
        assert_eq!(got, want(row, column), "{what}: ({row}, {column})");
    }
}

fn product(row: u32, column: u32, depth: u32) -> i32 {
    (0..depth).map(|k| value(1, row, k) * value(2, column, k)).sum()
}

/// A from shared memory or registers times B, all 64 deep in four steps, added to 3.
fn multiply(ty: WgmmaType, n: u32, a: Layout, b: Layout, registers: bool, out: u64) {
    a.fill(a_base(), ty, 1);
    b.fill(b_base(), ty, 2);
    fence_proxy_async();
    bar_sync();
    let mut d = [3f32; 128];
    let d = &mut d[..n as usize / 2];
    wgmma_fence();
    for k in (0..DEPTH).step_by(16) {
        let b_desc = b.descriptor(b_base(), 0, k);
        if registers {
            let (warp, lane) = (tid_x() / 32, tid_x() % 32);
            let pair = |register: u32| {
                let (row, k) =
                    (16 * warp + lane / 4 + 8 * (register % 2), k + 2 * (lane % 4) + 8 * (register / 2));
                let element = |k| u32::from(encode(ty, value(1, row, k)));
                element(k) | element(k + 1) << 16
            };
            wgmma_rs(ty, n, d, [pair(0), pair(1), pair(2), pair(3)], b_desc, true, !b.k_major);
        } else {
            let a_desc = a.descriptor(a_base(), 0, k);
            wgmma_ss(ty, n, d, a_desc, b_desc, true, !a.k_major, !b.k_major);
        }
    }
    wgmma_commit();
    wgmma_wait(0, d);
    store(out, n, d);
}

const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

#[test]
fn every_layout_multiplies() {
    let mut device = Device::new();
    let out = device.alloc(64 * 256 * 4, "out");
    for (i, swizzle) in SWIZZLES.into_iter().enumerate() {
        for (k_major_a, k_major_b) in [(true, true), (true, false), (false, true), (false, false)] {
            for n in [8u32, 64, 136, 256] {
                let width = swizzle.span_bytes() / 2;
                let a = Layout { swizzle: SWIZZLES[(i + 1) % 4], k_major: k_major_a, rows: 64 };
                let b = Layout { swizzle, k_major: k_major_b, rows: n.next_multiple_of(width.max(8)) };
                for ty in [WgmmaType::Bf16, WgmmaType::F16] {
                    for registers in [false, true] {
                        device.poison(out, 64 * 256 * 4);
                        let what = format!("{ty:?} n {n} {a:?} {b:?} registers {registers}");
                        let order = Order::Deterministic;
                        let report = run(&mut device, 128, order, &|| multiply(ty, n, a, b, registers, out));
                        let report = report.unwrap_or_else(|fault| panic!("{what}: {fault}"));
                        assert_eq!(report.wgmma, 4);
                        check(
                            &mut device,
                            out,
                            n,
                            |row, column| (3 + product(row, column, DEPTH)) as f32,
                            &what,
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn every_width_multiplies() {
    let mut device = Device::new();
    let out = device.alloc(64 * 256 * 4, "out");
    for n in (8..=256).step_by(8) {
        let b = Layout { swizzle: Swizzle::B128, k_major: true, rows: n };
        for (ty, registers) in [(WgmmaType::Bf16, false), (WgmmaType::F16, true)] {
            device.poison(out, 64 * 256 * 4);
            let ran = run(&mut device, 128, Order::Deterministic, &|| multiply(ty, n, A, b, registers, out));
            ran.unwrap_or_else(|fault| panic!("{ty:?} n {n}: {fault}"));
            let want = |row, column| (3 + product(row, column, DEPTH)) as f32;
            check(&mut device, out, n, want, &format!("{ty:?} n {n}"));
        }
    }
}

#[test]
fn groups_complete_in_order() {
    let mut device = Device::new();
    let out = device.alloc(2 * 64 * 64 * 4, "out");
    let kernel = || {
        fill_both();
        let (mut first, mut second) = ([f32::NAN; 32], [5f32; 32]);
        wgmma_fence();
        step(&mut first, 0, false);
        step(&mut first, 16, true);
        wgmma_commit();
        step(&mut second, 32, true);
        wgmma_commit();
        assert!(first.iter().chain(&second).all(|d| d.is_nan()), "nothing to be seen before the wait");
        wgmma_wait(1, &mut first);
        store(out, 64, &first);
        // Nobody asks for the second, which yet goes on: its next product adds to what it holds.
        wgmma_wait(0, &mut [] as &mut [f32]);
        wgmma_fence();
        step(&mut second, 48, true);
        wgmma_commit();
        wgmma_wait(0, &mut second);
        store(out + 64 * 64 * 4, 64, &second);
    };
    for order in orders(50) {
        device.poison(out, 2 * 64 * 64 * 4);
        run(&mut device, 128, order, &kernel).unwrap_or_else(|fault| panic!("{fault}"));
        let part = |row, column, range: std::ops::Range<u32>| {
            range.map(|k| value(1, row, k) * value(2, column, k)).sum::<i32>() as f32
        };
        check(&mut device, out, 64, |row, column| part(row, column, 0..32), "first");
        check(&mut device, out + 64 * 64 * 4, 64, |row, column| 5.0 + part(row, column, 32..64), "second");
    }
}

#[test]
fn special_values_and_rounding() {
    // Subnormal halves count, and the one rounding is to f32.
    let mut device = Device::new();
    let out = device.alloc(64 * 64 * 4, "out");
    for (ty, tiny, want) in
        [(WgmmaType::Bf16, 0x3880u16, 2f32.powi(-14)), (WgmmaType::F16, 0x0001, 2f32.powi(-24))]
    {
        let one = if ty == WgmmaType::Bf16 { 0x3f80u16 } else { 0x3c00 };
        let ran = run(&mut device, 128, Order::Deterministic, &|| {
            for i in (tid_x()..64 * DEPTH).step_by(128) {
                let (row, k) = (i / DEPTH, i % DEPTH);
                st_shared(A.address(a_base(), row, k), if k == 0 { tiny } else { 0 });
                st_shared(B.address(b_base(), row, k), if row == 3 { one | 0x8000 } else { one });
            }
            fence_proxy_async();
            bar_sync();
            let mut d = [1f32; 32];
            wgmma_fence();
            let (a, b) = (A.descriptor(a_base(), 0, 0), B.descriptor(b_base(), 0, 0));
            wgmma_ss(ty, 64, &mut d, a, b, true, false, true);
            wgmma_commit();
            wgmma_wait(0, &mut d);
            store(out, 64, &d);
        });
        ran.unwrap_or_else(|fault| panic!("{fault}"));
        check(&mut device, out, 64, |_, column| if column == 3 { 1.0 - want } else { 1.0 + want }, "tiny");
    }
}
