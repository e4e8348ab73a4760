//! Device code of [`super::GELU`].

use core::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

use super::THREADS;
use crate::{
    abi::{GELU_TANH, Gelu},
    entry::kernel,
    ptx,
    vector::{pack8, unpack8},
};

/// `ln(erfc(z) * exp(z^2) / t)` as a polynomial of `t = 1 / (1 + z / 2)`, the highest power first: interpolated at 200 Chebyshev nodes
/// over all `z >= 0`, nowhere more than 2.9e-6 off. An error of the logarithm is a relative error of the result, in the far tail too,
/// and a bf16 is rounded by 2e-3.
const LOG_ERFC: [f32; 8] = [
    -0.166_122_11,
    0.668_515_15,
    -0.872_904_1,
    0.248_290_64,
    0.004_035_713_6,
    0.384_089_86,
    0.999_604_6,
    -1.265_509_2,
];

/// `x` times the probability that a normal number is below `x`.
#[inline(always)]
fn gelu_erf(x: f32) -> f32 {
    let z = x.abs() * FRAC_1_SQRT_2;
    let t = ptx::rcp(ptx::fma(0.5, z, 1.0));
    let mut log = LOG_ERFC[0];
    for i in 1..LOG_ERFC.len() {
        log = ptx::fma(log, t, LOG_ERFC[i]);
    }
    let upper_tail = 0.5 * t * ptx::ex2(ptx::fma(-z, z, log) * LOG2_E);
    // The tail itself where x is below 0: 1 less something near 1 would leave no digits.
    x * if x < 0.0 { upper_tail } else { 1.0 - upper_tail }
}

/// `x / 2 * (1 + tanh(u))` with `u = sqrt(2 / pi) * (x + 0.044715 * x^3)`, as `x / (1 + exp(-2 * u))`, which cancels nowhere.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const TWO_SQRT_2_OVER_PI: f32 = 1.595_769;
    let twice_u = TWO_SQRT_2_OVER_PI * ptx::fma(0.044_715 * x * x, x, x);
    x * ptx::rcp(1.0 + ptx::ex2(-twice_u * LOG2_E))
}

kernel! {
    /// See [`Gelu`].
    pub fn gelu(p: Gelu) {
        let row = u64::from(ptx::ctaid_x()) * u64::from(p.cols) * 2;
        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            let offset = row + u64::from(col) * 2;
            let mut x = unpack8(ptx::ld_global_nc_v4_b32(p.x + offset));
            for i in 0..8 {
                x[i] = if p.kind == GELU_TANH { gelu_tanh(x[i]) } else { gelu_erf(x[i]) };
            }
            ptx::st_global_v4_b32(p.out + offset, pack8(x));
            col += THREADS * 8;
        }
    }
}
