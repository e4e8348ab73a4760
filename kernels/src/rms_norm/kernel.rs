//! Device code of [`super::RMS_NORM`].

use super::{SharedPlan, THREADS, row};
use crate::{
    abi::RmsNorm,
    entry::kernel,
    ptx,
    vector::{load_f32x8, load_sum8, pack8},
};

kernel! {
    /// See [`RmsNorm`].
    pub fn rms_norm(p: RmsNorm) {
        ptx::start_after_previous();
        let g_row = u64::from(ptx::ctaid_x()) * u64::from(p.cols) * 2;
        let mut squares = 0.0;
        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            let h = load_sum8(p.x, p.residual, g_row + u64::from(col) * 2);
            squares = row::add_squares(squares, h);
            col += THREADS * 8;
        }
        let s_sums = ptx::shared_base() + SharedPlan::WARP_SUMS;
        row::leave_squares(squares, s_sums);
        ptx::bar_sync();
        let inverse = row::inverse(s_sums, p.cols, p.eps);

        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            let offset = g_row + u64::from(col) * 2;
            let h = load_sum8(p.x, p.residual, offset);
            if p.residual != 0 {
                ptx::st_global_v4_b32(p.residual + offset, pack8(h));
            }
            let weight = load_f32x8(p.weight + u64::from(col) * 4);
            ptx::st_global_v4_b32(p.out + offset, pack8(row::normed(h, inverse, weight)));
            col += THREADS * 8;
        }
    }
}
