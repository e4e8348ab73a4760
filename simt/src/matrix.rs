//! What `mma` and `wgmma` compute and how fragments lie over the lanes of a warp.

use crate::wgmma::WgmmaType;

/// What is multiplied: how an element is decoded, and what it is summed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Factors {
    /// 16-bit floats, summed in f32.
    Float(WgmmaType),
    /// Signed bytes, summed in i32.
    S8,
}

/// A decoded element of a product, and the arithmetic on it.
pub(crate) trait Number: Copy + Default {
    type Sum: Copy + Default;
    fn multiply_add(self, other: Self, sum: Self::Sum) -> Self::Sum;
    /// An accumulator, as the bits of its register, and a sum added to it.
    fn accumulate(accumulator: u32, sum: Self::Sum) -> u32;
}

/// Products are exact and summed in f64 in ascending order of k; the accumulator is added to that sum and the result rounded
/// once to f32. Hardware aligns the products of a step to the largest and truncates, so its last bits differ; no kernel may
/// count on them.
impl Number for f64 {
    type Sum = f64;

    #[inline(always)]
    fn multiply_add(self, other: Self, sum: f64) -> f64 {
        sum + self * other
    }

    #[inline(always)]
    fn accumulate(accumulator: u32, sum: f64) -> u32 {
        ((sum + f64::from(f32::from_bits(accumulator))) as f32).to_bits()
    }
}

/// Exact, modulo 2^32.
impl Number for i8 {
    type Sum = i32;

    #[inline(always)]
    fn multiply_add(self, other: Self, sum: i32) -> i32 {
        // At most 32 products of a byte each: no overflow within a step.
        sum + i32::from(self) * i32::from(other)
    }

    #[inline(always)]
    fn accumulate(accumulator: u32, sum: i32) -> u32 {
        accumulator.wrapping_add(sum as u32)
    }
}

/// Element `i` of packed 16-bit floats, exact.
#[inline(always)]
pub(crate) fn float_element(ty: WgmmaType) -> impl Fn(&[u32], usize) -> f64 + Copy {
    move |words, i| decode(ty, (words[i / 2] >> (16 * (i % 2))) as u16)
}

/// Element `i` of packed signed bytes.
#[inline(always)]
pub(crate) fn byte_element(words: &[u32], i: usize) -> i8 {
    (words[i / 4] >> (8 * (i % 4))) as i8
}

/// The value of a 16-bit element, exact.
#[inline(always)]
fn decode(ty: WgmmaType, bits: u16) -> f64 {
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

/// One lane's operands of an `mma`, as registers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MmaOperands {
    pub a: [u32; 4],
    pub b: [u32; 2],
    pub c: [u32; 4],
}

/// Row (below 16) and first k of what a register of A holds, `K / 8` elements along k.
#[inline(always)]
pub(crate) fn place_in_a<const K: usize>(lane: usize, register: usize) -> (usize, usize) {
    (lane / 4 + 8 * (register % 2), K / 8 * (lane % 4) + K / 2 * (register / 2))
}

/// `m16n8k{K}` of a warp: each lane's part of `a * b + c`.
///
/// With `e = K / 8` elements a register: A as [`place_in_a`] says; register `i` of B holds rows `e (lane % 4) + i K / 2` on of
/// column `lane / 4`; register `i` of C is row `lane / 4 + 8 (i / 2)`, column `2 (lane % 4) + i % 2`.
pub(crate) fn mma_m16n8<T: Number, const K: usize>(
    lanes: &[MmaOperands; 32],
    element: impl Fn(&[u32], usize) -> T + Copy,
) -> [[u32; 4]; 32] {
    let mut a = [[T::default(); K]; 16];
    let mut b = [[T::default(); 8]; K];
    for (lane, operands) in lanes.iter().enumerate() {
        for register in 0..4 {
            let (row, k) = place_in_a::<K>(lane, register);
            for i in 0..K / 8 {
                a[row][k + i] = element(&operands.a[register..=register], i);
            }
        }
        for register in 0..2 {
            let k = K / 8 * (lane % 4) + K / 2 * register;
            for i in 0..K / 8 {
                b[k + i][lane / 4] = element(&operands.b[register..=register], i);
            }
        }
    }
    let mut sums = [[T::Sum::default(); 8]; 16];
    each_sum(&a, &b, 8, |row, column, sum| sums[row][column] = sum);
    let mut d = [[0; 4]; 32];
    for (lane, operands) in lanes.iter().enumerate() {
        let (g, t) = (lane / 4, lane % 4);
        for (register, &c) in operands.c.iter().enumerate() {
            d[lane][register] = T::accumulate(c, sums[g + 8 * (register / 2)][2 * t + register % 2]);
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

/// The rows of one 8x8 matrix of 16-bit elements as stored transposed: lane `l` brings row `l / 4`, columns `2 * (l % 4)` and the next.
pub(crate) fn stmatrix_trans(values: &[u32; 32]) -> [[u32; 4]; 8] {
    let element = |row: usize, col: usize| values[row * 4 + col / 2] >> (16 * (col % 2)) & 0xffff;
    std::array::from_fn(|row| {
        std::array::from_fn(|word| element(2 * word, row) | element(2 * word + 1, row) << 16)
    })
}

/// The operands of a `wgmma`, decoded: 64 x `K` and `K` x `n`. `K` is 32 bytes of elements.
pub(crate) struct Products<T, const K: usize> {
    pub n: usize,
    pub a: [[T; K]; 64],
    pub b: [[T; 256]; K],
}

impl<T: Number, const K: usize> Products<T, K> {
    pub fn new(n: usize) -> Self {
        Self { n, a: [[T::default(); K]; 64], b: [[T::default(); 256]; K] }
    }

    /// Adds a warp's 16 rows of the product, from `first_row` on, to its accumulators: registers lane by lane.
    ///
    /// Register `4 j + i` of a lane is row `lane / 4 + 8 (i / 2)`, column `8 j + 2 (lane % 4) + i % 2`.
    pub fn multiply(&self, first_row: usize, accumulators: &mut [u32]) {
        let registers = self.n / 2;
        each_sum(&self.a[first_row..first_row + 16], &self.b, self.n, |row, column, sum| {
            let lane = row % 8 * 4 + column % 8 / 2;
            let register = column / 8 * 4 + row / 8 * 2 + column % 2;
            let d = &mut accumulators[lane * registers + register];
            *d = T::accumulate(*d, sum);
        });
    }
}

/// Tells `add` row, column and sum of each element of the first `n` columns, a multiple of eight, of `a * b`; `a` has a multiple of
/// four rows. Each sum is in ascending order of k.
fn each_sum<T: Number, const K: usize, const N: usize>(
    a: &[[T; K]],
    b: &[[T; N]; K],
    n: usize,
    add: impl FnMut(usize, usize, T::Sum),
) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has been asked.
        return unsafe { each_sum_avx2(a, b, n, add) };
    }
    each_sum_blocked(a, b, n, add);
}

/// [`each_sum_blocked`], four sums an instruction. The bits are the same: nothing is fused.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn each_sum_avx2<T: Number, const K: usize, const N: usize>(
    a: &[[T; K]],
    b: &[[T; N]; K],
    n: usize,
    add: impl FnMut(usize, usize, T::Sum),
) {
    each_sum_blocked(a, b, n, add);
}

/// Blocks of 4 rows by 8 columns stay in registers along k.
#[inline(always)]
fn each_sum_blocked<T: Number, const K: usize, const N: usize>(
    a: &[[T; K]],
    b: &[[T; N]; K],
    n: usize,
    mut add: impl FnMut(usize, usize, T::Sum),
) {
    for (group, rows) in a.as_chunks::<4>().0.iter().enumerate() {
        for block in 0..n / 8 {
            let mut sums = [[T::Sum::default(); 8]; 4];
            for (k, b) in b.iter().enumerate() {
                let b = &b.as_chunks::<8>().0[block];
                for r in 0..4 {
                    for i in 0..8 {
                        sums[r][i] = rows[r][k].multiply_add(b[i], sums[r][i]);
                    }
                }
            }
            for (r, sums) in sums.into_iter().enumerate() {
                for (i, sum) in sums.into_iter().enumerate() {
                    add(4 * group + r, 8 * block + i, sum);
                }
            }
        }
    }
}
