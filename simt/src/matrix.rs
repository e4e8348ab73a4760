//! What `mma` computes and how fragments lie over the lanes of a warp.

/// The bf16 pair in a register, exact.
#[inline(always)]
fn pair(register: u32) -> [f64; 2] {
    [f64::from(f32::from_bits(register << 16)), f64::from(f32::from_bits(register & 0xffff_0000))]
}

/// One lane's operands of an `mma`: `a`, `b`, `c` as registers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MmaOperands {
    pub a: [u32; 4],
    pub b: [u32; 2],
    pub c: [f32; 4],
}

/// `m16n8k16`, f32 += bf16 * bf16, of a warp.
///
/// Products are exact and summed in f64 in ascending order of k; `c` is added to that sum and the result rounded once to f32.
/// Hardware aligns the products of a step to the largest and truncates, so its last bits differ; no kernel may count on them.
pub(crate) fn mma_m16n8k16(lanes: &[MmaOperands; 32]) -> [[f32; 4]; 32] {
    let mut a = [[0f64; 16]; 16];
    let mut b = [[0f64; 8]; 16];
    for (lane, operands) in lanes.iter().enumerate() {
        let (g, t) = (lane / 4, lane % 4);
        for (register, &bits) in operands.a.iter().enumerate() {
            let (row, k) = (g + 8 * (register % 2), 2 * t + 8 * (register / 2));
            [a[row][k], a[row][k + 1]] = pair(bits);
        }
        for (register, &bits) in operands.b.iter().enumerate() {
            let k = 2 * t + 8 * register;
            [b[k][g], b[k + 1][g]] = pair(bits);
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
