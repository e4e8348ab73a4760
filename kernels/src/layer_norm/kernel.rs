//! Device code of [`super::LAYER_NORM`].

use super::{SharedPlan, THREADS};
use crate::{
    abi::LayerNorm,
    entry::kernel,
    ptx,
    reduce::block_sum,
    vector::{load_f32x8, load_sum8, pack8},
};

kernel! {
    /// See [`LayerNorm`].
    pub fn layer_norm(p: LayerNorm) {
        let row = u64::from(ptx::ctaid_x()) * u64::from(p.cols) * 2;
        let cols = p.cols as f32;
        let mut sum = 0.0;
        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            for value in load_sum8(p.x, p.residual, row + u64::from(col) * 2) {
                sum += value;
            }
            col += THREADS * 8;
        }
        let mean = block_sum::<{ THREADS / 32 }>(sum, ptx::shared_base() + SharedPlan::SUMS) / cols;

        let mut squares = 0.0;
        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            for value in load_sum8(p.x, p.residual, row + u64::from(col) * 2) {
                let centred = value - mean;
                squares = ptx::fma(centred, centred, squares);
            }
            col += THREADS * 8;
        }
        let total = block_sum::<{ THREADS / 32 }>(squares, ptx::shared_base() + SharedPlan::SQUARES);
        let inverse = ptx::rsqrt(total / cols + p.eps);

        // A thread writes what it alone has read, so that `out` may be `x`.
        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            let offset = row + u64::from(col) * 2;
            let mut h = load_sum8(p.x, p.residual, offset);
            if p.residual != 0 {
                ptx::st_global_v4_b32(p.residual + offset, pack8(h));
            }
            let weight = load_f32x8(p.weight + u64::from(col) * 4);
            let mut bias = [0.0; 8];
            if p.bias != 0 {
                bias = load_f32x8(p.bias + u64::from(col) * 4);
            }
            for i in 0..8 {
                h[i] = ptx::fma((h[i] - mean) * inverse, weight[i], bias[i]);
            }
            ptx::st_global_v4_b32(p.out + offset, pack8(h));
            col += THREADS * 8;
        }
    }
}
