//! Device code of [`super::RMS_NORM`] and [`super::RMS_NORM_INT8`].

use super::{SharedPlan, THREADS};
use crate::{
    abi::{RmsNorm, RmsNormInt8},
    entry::kernel,
    ptx,
    quant::{INT8_LIMIT, Quantiser, int8x8, largest_bits},
    quantize_rows::kernel::times_factors,
    reduce::{block_max, block_sum},
    vector::{load_f32x8, load_sum8, pack8, unpack8},
};

/// What the row of `x + residual` at byte `row` is multiplied by: the inverse of the root of its mean square and `eps`.
///
/// # Safety
/// The whole block calls it; the row has `cols` elements.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn inverse_rms(x: u64, residual: u64, row: u64, cols: u32, eps: f32) -> f32 {
    let mut squares = 0.0;
    let mut col = ptx::tid_x() * 8;
    // SAFETY: the caller's promise.
    unsafe {
        while col < cols {
            let h = load_sum8(x, residual, row + u64::from(col) * 2);
            for value in h {
                squares = ptx::fma(value, value, squares);
            }
            col += THREADS * 8;
        }
        let total = block_sum::<{ THREADS / 32 }>(squares, ptx::shared_base() + SharedPlan::WARP_SUMS);
        ptx::rsqrt(total / cols as f32 + eps)
    }
}

/// Eight elements of the norm's output.
///
/// # Safety
/// `weight` is f32 of more than `col + 7` columns, which no launch writes.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn normed(mut h: [f32; 8], inverse: f32, weight: u64, col: u32) -> [f32; 8] {
    // SAFETY: the caller's promise.
    let weight = unsafe { load_f32x8(weight + u64::from(col) * 4) };
    for i in 0..8 {
        h[i] = h[i] * inverse * weight[i];
    }
    h
}

kernel! {
    /// See [`RmsNorm`].
    pub fn rms_norm(p: RmsNorm) {
        ptx::start_after_previous();
        let row = u64::from(ptx::ctaid_x()) * u64::from(p.cols) * 2;
        let inverse = inverse_rms(p.x, p.residual, row, p.cols, p.eps);
        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            let offset = row + u64::from(col) * 2;
            let h = load_sum8(p.x, p.residual, offset);
            if p.residual != 0 {
                ptx::st_global_v4_b32(p.residual + offset, pack8(h));
            }
            ptx::st_global_v4_b32(p.out + offset, pack8(normed(h, inverse, p.weight, col)));
            col += THREADS * 8;
        }
    }
}

/// Eight elements of the norm's output as the bf16 that they would be stored as, times their factors.
///
/// # Safety
/// `col` is a column of the row at byte `row`; the parameters are those of the launch.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn rounded(p: &RmsNormInt8, row: u64, col: u32, inverse: f32) -> [f32; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let x = load_sum8(p.x, 0, row + u64::from(col) * 2);
        times_factors(unpack8(pack8(normed(x, inverse, p.weight, col))), p.factors, col)
    }
}

kernel! {
    /// See [`RmsNormInt8`].
    pub fn rms_norm_int8(p: RmsNormInt8) {
        ptx::start_after_previous();
        let index = u64::from(ptx::ctaid_x());
        let row = index * u64::from(p.cols) * 2;
        let inverse = inverse_rms(p.x, 0, row, p.cols, p.eps);
        let mut largest = 0;
        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            largest = largest_bits(largest, &rounded(&p, row, col, inverse));
            col += THREADS * 8;
        }
        let largest = block_max::<{ THREADS / 32 }>(largest, ptx::shared_base() + SharedPlan::WARP_LARGEST);
        let Quantiser { inverse: to_codes, scale } = Quantiser::of(largest, INT8_LIMIT);
        if ptx::tid_x() == 0 {
            ptx::st_global_b32(p.scales + index * 4, scale.to_bits());
        }
        let g_codes = p.codes + index * u64::from(p.cols);
        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            let codes = int8x8(&rounded(&p, row, col, inverse), to_codes);
            ptx::st_global_v2_b32(g_codes + u64::from(col), codes);
            col += THREADS * 8;
        }
    }
}
