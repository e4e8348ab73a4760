//! What `mma` and `wgmma` compute and how fragments lie over the lanes of a warp.

use crate::wgmma::WgmmaType;

/// The pair of elements in a register, exact.
#[inline(always)]
fn pair(ty: WgmmaType, register: u32) -> [f64; 2] {
    [decode(ty, register as u16), decode(ty, (register >> 16) as u16)]
}

/// One lane's operands of an `mma`: `a`, `b`, `c` as registers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MmaOperands {
    pub a: [u32; 4],
    pub b: [u32; 2],
    pub c: [f32; 4],
}

/// `m16n8k16`, f32 += bf16 * bf16 or f16 * f16, of a warp.
///
/// Products are exact and summed in f64 in ascending order of k; `c` is added to that sum and the result rounded once to f32.
/// Hardware aligns the products of a step to the largest and truncates, so its last bits differ; no kernel may count on them.
pub(crate) fn mma_m16n8k16(ty: WgmmaType, lanes: &[MmaOperands; 32]) -> [[f32; 4]; 32] {
    let mut a = [[0f64; 16]; 16];
    let mut b = [[0f64; 8]; 16];
    for (lane, operands) in lanes.iter().enumerate() {
        let (g, t) = (lane / 4, lane % 4);
        for (register, &bits) in operands.a.iter().enumerate() {
            let (row, k) = (g + 8 * (register % 2), 2 * t + 8 * (register / 2));
            [a[row][k], a[row][k + 1]] = pair(ty, bits);
        }
        for (register, &bits) in operands.b.iter().enumerate() {
            let k = 2 * t + 8 * register;
            [b[k][g], b[k + 1][g]] = pair(ty, bits);
        }
    }
    let mut sums = [[0f64; 8]; 16];
    for (sums, a) in sums.iter_mut().zip(&a) {
        for (a, b) in a.iter().zip(&b) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
    }
    let mut d = [[0f32; 4]; 32];
    for (lane, operands) in lanes.iter().enumerate() {
        let (g, t) = (lane / 4, lane % 4);
        for (register, &c) in operands.c.iter().enumerate() {
            let sum = sums[g + 8 * (register / 2)][2 * t + register % 2];
            d[lane][register] = (sum + f64::from(c)) as f32;
        }
    }
    d
}

/// What each lane gets of one 8x8 matrix of 16-bit elements, `rows` as loaded.
pub(crate) fn ldmatrix(rows: &[[u32; 4]; 8], trans: bool) -> [u32; 32] {
    let element = |row: usize, col: usize| rows[row][col / 2] >> (16 * (col % 2)) & 0xffff;
    std::array::from_fn(|lane| {
        let (major, minor) = (lane / 4, 2 * (lane % 4));
        match trans {
            false => rows[major][minor / 2],
            true => element(minor, major) | element(minor + 1, major) << 16,
        }
    })
}

/// Depth of a `wgmma` of 16-bit elements.
pub(crate) const K: usize = 16;

/// The operands of a `wgmma`, decoded: 64 x 16 and 16 x `n`.
pub(crate) struct Products {
    pub n: usize,
    pub a: [[f64; K]; 64],
    pub b: [[f64; 256]; K],
}

impl Products {
    pub fn new(n: usize) -> Self {
        Self { n, a: [[0.0; K]; 64], b: [[0.0; 256]; K] }
    }
}

/// The value of a 16-bit element, exact.
#[inline(always)]
pub(crate) fn decode(ty: WgmmaType, bits: u16) -> f64 {
    match ty {
        WgmmaType::Bf16 => f64::from(f32::from_bits(u32::from(bits) << 16)),
        WgmmaType::F16 => half(bits),
    }
}

fn half(bits: u16) -> f64 {
    let (exponent, mantissa) = (bits >> 10 & 31, f64::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => mantissa / f64::from(1 << 24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        // The biases of the exponents differ by 112.
        _ => f64::from(f32::from_bits((u32::from(bits & 0x7fff) << 13) + (112 << 23))),
    };
    if bits >> 15 == 0 { magnitude } else { -magnitude }
}

/// Adds a warp's 16 rows of a product, from `first_row` on, to its accumulators: registers lane by lane.
///
/// Rounds as [`mma_m16n8k16`] does. Register `4 j + i` of a lane is row `lane / 4 + 8 (i / 2)`, column
/// `8 j + 2 (lane % 4) + i % 2`.
pub(crate) fn multiply(products: &Products, first_row: usize, accumulators: &mut [f32]) {
    let (n, registers) = (products.n, products.n / 2);
    let mut sums = [0f64; 256];
    for row in 0..16 {
        let sums = &mut sums[..n];
        sums.fill(0.0);
        for (a, b) in products.a[first_row + row].iter().zip(&products.b) {
            for (sum, b) in sums.iter_mut().zip(&b[..n]) {
                *sum += a * b;
            }
        }
        for (column, sum) in sums.iter().enumerate() {
            let lane = row % 8 * 4 + column % 8 / 2;
            let register = column / 8 * 4 + row / 8 * 2 + column % 2;
            let d = &mut accumulators[lane * registers + register];
            *d = (sum + f64::from(*d)) as f32;
        }
    }
}
