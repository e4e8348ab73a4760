//! `wgmma` against a naive product: operands in every layout, and what may not be done while it is on its way.

use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, Launch, Order, Report, Swizzle};

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
