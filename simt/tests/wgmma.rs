//! `wgmma` against a naive product: operands in every layout, and what may not be done while it is on its way.

use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, FaultKind, Launch, Order, Report, Swizzle};

const OPERAND_BYTES: u32 = 40 << 10;

/// A small integer in either type, exact in all sums.
fn value(seed: u32, row: u32, column: u32) -> i32 {
    ((row * 7 + column * 13 + seed * 5 + row * column) % 15) as i32 - 7
}

fn encode(ty: WgmmaType, value: i32) -> u16 {
    let bits = (value as f32).to_bits();
    match ty {
        WgmmaType::Bf16 => (bits >> 16) as u16,
        _ if value == 0 => 0,
        // Integers up to 7: normal in half precision.
        _ => {
            (bits >> 16 & 0x8000) as u16
                | (((bits >> 23 & 0xff) - 127 + 15) << 10) as u16
                | (bits >> 13 & 0x3ff) as u16
        }
    }
}

/// A layout of `rows` (of M or N) by 64 along k: written out here as pictures of memory, not as the formula of the crate.
#[derive(Debug, Clone, Copy)]
struct Layout {
    swizzle: Swizzle,
    /// Rows of memory run along k.
    k_major: bool,
    rows: u32,
}

const DEPTH: u32 = 64;

impl Layout {
    fn width(self) -> u32 {
        self.swizzle.span_bytes() / 2
    }

    /// Offset in bytes of an element, before the swizzle: tiles as wide as the swizzle, one after another, each with all rows
    /// along the other direction.
    fn offset(self, row: u32, k: u32) -> u32 {
        let (minor, major, majors) = if self.k_major { (k, row, self.rows) } else { (row, k, DEPTH) };
        let tile = minor / self.width();
        2 * (tile * majors * self.width() + major * self.width() + minor % self.width())
    }

    fn address(self, base: u32, row: u32, k: u32) -> u32 {
        self.swizzle.apply(base + self.offset(row, k))
    }

    /// The descriptor of rows from `row` on and 16 along k from `k` on.
    fn descriptor(self, base: u32, row: u32, k: u32) -> u64 {
        let start = base + self.offset(row, k);
        let eight_majors = 16 * self.width();
        let next_tile = 2 * self.width() * if self.k_major { self.rows } else { DEPTH };
        let (leading, stride) = match (self.k_major, self.swizzle) {
            (true, _) => (next_tile, eight_majors),
            // Without a swizzle the strides change places.
            (false, Swizzle::None) => (eight_majors, next_tile),
            (false, _) => (next_tile, eight_majors),
        };
        let mode = match self.swizzle {
            Swizzle::None => 0u64,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3,
        };
        u64::from(start >> 4) | u64::from(leading >> 4) << 16 | u64::from(stride >> 4) << 32 | mode << 62
    }

    /// Fills it, all threads together.
    fn fill(self, base: u32, ty: WgmmaType, seed: u32) {
        for i in (tid_x()..self.rows * DEPTH).step_by(ntid_x() as usize) {
            let (row, k) = (i / DEPTH, i % DEPTH);
            st_shared(self.address(base, row, k), encode(ty, value(seed, row, k)));
        }
    }
}

fn a_base() -> u32 {
    shared_base()
}
fn b_base() -> u32 {
    shared_base() + OPERAND_BYTES
}

fn run(
    out: u64,
    device: &mut Device,
    threads: u32,
    order: Order,
    kernel: &dyn Fn(),
) -> Result<Report, Fault> {
    let _ = out;
    let launch = Launch { name: "wgmma", grid: [1; 3], threads, shared_bytes: 2 * OPERAND_BYTES, order };
    device.launch(&launch, kernel)
}

/// Stores the accumulators of a warpgroup: rows of `n`.
fn store(out: u64, n: u32, d: &[f32]) {
    let (warp, lane) = (tid_x() / 32 % 4, tid_x() % 32);
    for (register, d) in d.iter().enumerate() {
        let (j, i) = (register as u32 / 4, register as u32 % 4);
        let (row, column) = (16 * warp + lane / 4 + 8 * (i / 2), 8 * j + 2 * (lane % 4) + i % 2);
        st_global(out + 4 * u64::from(row * n + column), d.to_bits());
    }
}

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
                        let report =
                            run(out, &mut device, 128, order, &|| multiply(ty, n, a, b, registers, out));
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

const A: Layout = Layout { swizzle: Swizzle::B128, k_major: true, rows: 64 };
/// 64 values deep, 64 columns, as V in P V: rows of memory run along the columns.
const B: Layout = Layout { swizzle: Swizzle::B128, k_major: false, rows: 64 };

fn orders(count: u64) -> impl Iterator<Item = Order> {
    std::iter::once(Order::Deterministic).chain((0..count).map(Order::Seeded))
}

/// The fault that every order finds on the line marked "caught".
fn caught(device: &mut Device, out: u64, kind: FaultKind, kernel: &dyn Fn()) -> Fault {
    let mut faults = orders(4).map(|order| run(out, device, 128, order, kernel).expect_err("a planted bug"));
    let first = faults.next().expect("one order at least");
    for fault in std::iter::once(first.clone()).chain(faults) {
        assert_eq!(fault.kind, kind, "{fault}");
        let location = fault.at.and_then(|at| at.location).unwrap_or_else(|| panic!("no line: {fault}"));
        let line =
            include_str!("wgmma.rs").lines().nth(location.line() as usize - 1).expect("a line of this file");
        assert!(line.ends_with("// caught"), "{fault}: {line}");
    }
    first
}

fn fill_both() {
    A.fill(a_base(), WgmmaType::Bf16, 1);
    B.fill(b_base(), WgmmaType::Bf16, 2);
    fence_proxy_async();
    bar_sync();
}

#[track_caller]
fn step(d: &mut [f32; 32], k: u32, accumulate: bool) {
    let (a, b) = (A.descriptor(a_base(), 0, k), B.descriptor(b_base(), 0, k));
    wgmma_ss(WgmmaType::Bf16, 64, d, a, b, accumulate, false, true);
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
        wgmma_wait(0, &mut []);
        wgmma_fence();
        step(&mut second, 48, true);
        wgmma_commit();
        wgmma_wait(0, &mut second);
        store(out + 64 * 64 * 4, 64, &second);
    };
    for order in orders(50) {
        device.poison(out, 2 * 64 * 64 * 4);
        run(out, &mut device, 128, order, &kernel).unwrap_or_else(|fault| panic!("{fault}"));
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
        let ran = run(out, &mut device, 128, Order::Deterministic, &|| {
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

#[test]
fn accumulators_in_flight() {
    let mut device = Device::new();
    let out = device.alloc(64 * 64 * 4, "out");
    // Stored before the wait: what comes out is no number.
    let early = || {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        store(out, 64, &d);
        wgmma_wait(0, &mut d);
    };
    run(out, &mut device, 128, Order::Deterministic, &early).unwrap_or_else(|fault| panic!("{fault}"));
    let mut got = vec![0; 64 * 64 * 4];
    device.read(out, &mut got).unwrap_or_else(|fault| panic!("{fault}"));
    assert!(got.chunks_exact(4).all(|d| f32::from_le_bytes([d[0], d[1], d[2], d[3]]).is_nan()));
    // Scaled before the wait.
    caught(&mut device, out, FaultKind::InFlight, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        d.iter_mut().for_each(|d| *d = std::hint::black_box(*d * 0.5));
        wgmma_wait(0, &mut d); // caught
    });
    caught(&mut device, out, FaultKind::InFlight, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        d[7] = 0.0;
        step(&mut d, 16, true); // caught
    });
    // Two accumulators that have changed places in part.
    caught(&mut device, out, FaultKind::InFlight, &|| {
        fill_both();
        let (mut d, mut e) = ([0f32; 32], [0f32; 32]);
        wgmma_fence();
        step(&mut d, 0, false);
        step(&mut e, 0, false);
        std::mem::swap(&mut d[3], &mut e[3]);
        wgmma_commit();
        wgmma_wait(0, &mut d); // caught
    });
    // A copy of accumulators that the wait has given back.
    caught(&mut device, out, FaultKind::InFlight, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        let mut stale = d;
        wgmma_wait(0, &mut d);
        wgmma_fence();
        step(&mut stale, 16, true); // caught
    });
    // Waited for one group too few, or not committed.
    let fault = caught(&mut device, out, FaultKind::InFlight, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        wgmma_wait(1, &mut d); // caught
    });
    assert!(fault.other.is_some(), "{fault}");
    caught(&mut device, out, FaultKind::InFlight, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_wait(0, &mut d); // caught
    });
    let fault = caught(&mut device, out, FaultKind::InFlight, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false); // caught
        wgmma_commit();
    });
    assert!(fault.to_string().contains("ended before it waited for its wgmma"), "{fault}");
}

#[test]
fn operands_in_flight_and_fences() {
    let mut device = Device::new();
    let out = device.alloc(64 * 64 * 4, "out");
    // Written before the wait, by the warps that multiply and by one that has met them.
    let fault = caught(&mut device, out, FaultKind::Race, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        bar_sync();
        st_shared(b_base() + 4 * tid_x(), 0u32); // caught
        wgmma_wait(0, &mut d);
    });
    assert!(fault.to_string().contains("unordered with a read"), "{fault}");
    // After the wait and a barrier it is free.
    let reused = run(out, &mut device, 128, Order::Seeded(1), &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        wgmma_wait(0, &mut d);
        bar_sync();
        st_shared(b_base() + 4 * tid_x(), 0u32);
    });
    reused.unwrap_or_else(|fault| panic!("{fault}"));
    let without = |proxy: bool, barrier: bool, fence: bool| {
        A.fill(a_base(), WgmmaType::Bf16, 1);
        B.fill(b_base(), WgmmaType::Bf16, 2);
        if proxy {
            fence_proxy_async();
        }
        if barrier {
            bar_sync();
        }
        let mut d = [0f32; 32];
        if fence {
            wgmma_fence();
        }
        step(&mut d, 0, false); // caught
        wgmma_commit();
        wgmma_wait(0, &mut d);
    };
    caught(&mut device, out, FaultKind::MissingFence, &|| without(false, true, true));
    caught(&mut device, out, FaultKind::Race, &|| without(true, false, true));
    caught(&mut device, out, FaultKind::MissingFence, &|| without(true, true, false));
    // Registers touched after a wait need another fence.
    caught(&mut device, out, FaultKind::MissingFence, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        wgmma_wait(0, &mut d);
        step(&mut d, 0, true); // caught
    });
    caught(&mut device, out, FaultKind::Uninitialised, &|| {
        A.fill(a_base(), WgmmaType::Bf16, 1);
        fence_proxy_async();
        bar_sync();
        wgmma_fence();
        step(&mut [0f32; 32], 0, false); // caught
    });
}

#[test]
fn operands_that_no_device_takes() {
    let mut device = Device::new();
    let out = device.alloc(64 * 64 * 4, "out");
    let issue = |n: u32, registers: usize, a: u64| {
        fill_both();
        let mut d = [0f32; 144];
        wgmma_fence();
        let b = B.descriptor(b_base(), 0, 0);
        wgmma_ss(WgmmaType::Bf16, n, &mut d[..registers], a, b, false, false, true); // caught
    };
    let a = || A.descriptor(a_base(), 0, 0);
    for (n, registers) in [(60, 30), (0, 0), (264, 132), (64, 33), (64, 31)] {
        caught(&mut device, out, FaultKind::InvalidOperand, &|| issue(n, registers, a()));
    }
    for bits in [1 << 14, 1 << 30, 1 << 46, 1 << 52, 1 << 49] {
        caught(&mut device, out, FaultKind::InvalidOperand, &|| issue(64, 32, a() | bits));
    }
    caught(&mut device, out, FaultKind::OutOfBounds, &|| issue(64, 32, a() | 0x3fff));
    caught(&mut device, out, FaultKind::WarpDivergence, &|| issue(64, 32, a() + u64::from(tid_x() / 96)));
    let launch =
        Launch { name: "wgmma", grid: [1; 3], threads: 96, shared_bytes: 1024, order: Order::Deterministic };
    let fault = device.launch(&launch, &|| {
        wgmma_rs(WgmmaType::F16, 8, &mut [0f32; 4], [0; 4], 0, false, false);
    });
    assert_eq!(fault.expect_err("three warps").kind, FaultKind::WarpDivergence);
    // One warp goes another way.
    let fault = caught(&mut device, out, FaultKind::Deadlock, &|| {
        fill_both();
        wgmma_fence();
        if tid_x() >= 32 {
            step(&mut [0f32; 32], 0, false); // caught
        }
    });
    assert!(fault.to_string().contains("for the rest of its warpgroup"), "{fault}");
}
