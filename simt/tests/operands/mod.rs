//! Operands of `wgmma` in shared memory, and what comes of them.

// Each test takes what it needs.
#![allow(dead_code)]

use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, Launch, Order, Report, Swizzle};

pub const OPERAND_BYTES: u32 = 40 << 10;

/// A small integer in either type, exact in all sums.
pub fn value(seed: u32, row: u32, column: u32) -> i32 {
    ((row * 7 + column * 13 + seed * 5 + row * column) % 15) as i32 - 7
}

pub fn encode(ty: WgmmaType, value: i32) -> u16 {
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
pub struct Layout {
    pub swizzle: Swizzle,
    /// Rows of memory run along k.
    pub k_major: bool,
    pub rows: u32,
}

pub const DEPTH: u32 = 64;

impl Layout {
    pub fn width(self) -> u32 {
        self.swizzle.span_bytes() / 2
    }

    /// Offset in bytes of an element, before the swizzle: tiles as wide as the swizzle, one after another, each with all rows
    /// along the other direction.
    pub fn offset(self, row: u32, k: u32) -> u32 {
        let (minor, major, majors) = if self.k_major { (k, row, self.rows) } else { (row, k, DEPTH) };
        let tile = minor / self.width();
        2 * (tile * majors * self.width() + major * self.width() + minor % self.width())
    }

    pub fn address(self, base: u32, row: u32, k: u32) -> u32 {
        self.swizzle.apply(base + self.offset(row, k))
    }

    /// The descriptor of rows from `row` on and 16 along k from `k` on.
    pub fn descriptor(self, base: u32, row: u32, k: u32) -> u64 {
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
    pub fn fill(self, base: u32, ty: WgmmaType, seed: u32) {
        for i in (tid_x()..self.rows * DEPTH).step_by(ntid_x() as usize) {
            let (row, k) = (i / DEPTH, i % DEPTH);
            st_shared(self.address(base, row, k), encode(ty, value(seed, row, k)));
        }
    }
}

pub fn a_base() -> u32 {
    shared_base()
}
pub fn b_base() -> u32 {
    shared_base() + OPERAND_BYTES
}

pub fn run(device: &mut Device, threads: u32, order: Order, kernel: &dyn Fn()) -> Result<Report, Fault> {
    let launch = Launch { name: "wgmma", grid: [1; 3], threads, shared_bytes: 2 * OPERAND_BYTES, order };
    device.launch(&launch, kernel)
}

/// Stores the accumulators of a warpgroup: rows of `n`.
pub fn store(out: u64, n: u32, d: &[f32]) {
    let (warp, lane) = (tid_x() / 32 % 4, tid_x() % 32);
    for (register, d) in d.iter().enumerate() {
        let (j, i) = (register as u32 / 4, register as u32 % 4);
        let (row, column) = (16 * warp + lane / 4 + 8 * (i / 2), 8 * j + 2 * (lane % 4) + i % 2);
        st_global(out + 4 * u64::from(row * n + column), d.to_bits());
    }
}

pub const A: Layout = Layout { swizzle: Swizzle::B128, k_major: true, rows: 64 };
/// 64 values deep, 64 columns, as V in P V: rows of memory run along the columns.
pub const B: Layout = Layout { swizzle: Swizzle::B128, k_major: false, rows: 64 };

pub fn fill_both() {
    A.fill(a_base(), WgmmaType::Bf16, 1);
    B.fill(b_base(), WgmmaType::Bf16, 2);
    fence_proxy_async();
    bar_sync();
}

#[track_caller]
pub fn step(d: &mut [f32; 32], k: u32, accumulate: bool) {
    let (a, b) = (A.descriptor(a_base(), 0, k), B.descriptor(b_base(), 0, k));
    wgmma_ss(WgmmaType::Bf16, 64, d, a, b, accumulate, false, true);
}
