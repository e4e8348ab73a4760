//! Device code of [`super::ADJUST_LOGITS`].

use super::THREADS;
use crate::{
    abi::{AdjustLogits, LogitChange},
    entry::kernel,
    ptx,
};

kernel! {
    /// See [`AdjustLogits`].
    pub fn adjust_logits(p: AdjustLogits) {
        let [row, first, count, _] = ptx::ld_global_nc_v4_b32(p.rows + u64::from(ptx::ctaid_x()) * 16);
        let g_row = p.logits + u64::from(row) * u64::from(p.cols) * 4;
        let g_changes = p.changes + u64::from(first) * 16;
        let mut i = ptx::tid_x();
        while i < count {
            let [token, repetition, less, bias] = ptx::ld_global_nc_v4_b32(g_changes + u64::from(i) * 16);
            let change = LogitChange {
                token,
                repetition: f32::from_bits(repetition),
                less: f32::from_bits(less),
                bias: f32::from_bits(bias),
            };
            let g_logit = g_row + u64::from(token) * 4;
            let logit = f32::from_bits(ptx::ld_global_b32(g_logit));
            ptx::st_global_b32(g_logit, change.of(logit).to_bits());
            i += THREADS;
        }
    }
}
