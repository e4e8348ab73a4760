//! Device code of [`super::RMS_NORM`].

use super::{SharedPlan, THREADS};
use crate::{
    abi::RmsNorm,
    entry::kernel,
    ptx,
    reduce::block_sum,
    vector::{load_f32x8, load_sum8, pack8},
};

kernel! {
    /// See [`RmsNorm`].
    pub fn rms_norm(p: RmsNorm) {
        ptx::start_after_previous();
        let row = u64::from(ptx::ctaid_x()) * u64::from(p.cols) * 2;
        let mut squares = 0.0;
        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            let h = load_sum8(p.x, p.residual, row + u64::from(col) * 2);
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
            let mut h = load_sum8(p.x, p.residual, offset);
            if p.residual != 0 {
                ptx::st_global_v4_b32(p.residual + offset, pack8(h));
            }
            let weight = load_f32x8(p.weight + u64::from(col) * 4);
            for i in 0..8 {
                h[i] = h[i] * inverse * weight[i];
            }
            ptx::st_global_v4_b32(p.out + offset, pack8(h));
            col += THREADS * 8;
        }
    }
}
