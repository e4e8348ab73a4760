//! Device code of [`super::RMS_NORM`].

use super::{SharedPlan, THREADS};
use crate::{
    abi::RmsNorm,
    entry::kernel,
    ptx,
    reduce::block_sum,
    vector::{pack8, unpack8},
};

/// Eight elements of `h = x + residual` at byte offset `offset`.
///
/// # Safety
/// `offset` must lie in both matrices.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn load_sum(p: &RmsNorm, offset: u64) -> [f32; 8] {
    // SAFETY: the caller's promise.
    let mut h = unpack8(unsafe { ptx::ld_global_v4_b32(p.x + offset) });
    if p.residual != 0 {
        // SAFETY: the caller's promise.
        let residual = unpack8(unsafe { ptx::ld_global_v4_b32(p.residual + offset) });
        for i in 0..8 {
            h[i] += residual[i];
        }
    }
    h
}

kernel! {
    /// See [`RmsNorm`].
    pub fn rms_norm(p: RmsNorm) {
        let row = u64::from(ptx::ctaid_x()) * u64::from(p.cols) * 2;
        let mut squares = 0.0;
        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            let h = load_sum(&p, row + u64::from(col) * 2);
            for value in h {
                squares = ptx::fma(value, value, squares);
            }
            col += THREADS * 8;
        }
        let total = block_sum::<{ THREADS / 32 }>(squares, ptx::shared_base() + SharedPlan::WARP_SUMS);
        let inverse = ptx::rsqrt(total / p.cols as f32 + p.eps);

        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            let offset = row + u64::from(col) * 2;
            let mut h = load_sum(&p, offset);
            if p.residual != 0 {
                ptx::st_global_v4_b32(p.residual + offset, pack8(h));
            }
            let w0 = ptx::ld_global_nc_v4_b32(p.weight + u64::from(col) * 4);
            let w1 = ptx::ld_global_nc_v4_b32(p.weight + u64::from(col) * 4 + 16);
            for i in 0..4 {
                h[i] = h[i] * inverse * f32::from_bits(w0[i]);
                h[i + 4] = h[i + 4] * inverse * f32::from_bits(w1[i]);
            }
            ptx::st_global_v4_b32(p.out + offset, pack8(h));
            col += THREADS * 8;
        }
    }
}
