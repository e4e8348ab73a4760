//! Device code of [`super::SILU_MUL`].

use core::f32::consts::LOG2_E;

use super::THREADS;
use crate::{
    abi::SiluMul,
    entry::kernel,
    ptx,
    vector::{pack8, unpack8},
};

/// `x / (1 + exp(-x))`. For `x` far below 0 the exponential is infinite, its reciprocal 0.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x * ptx::rcp(1.0 + ptx::ex2(-x * LOG2_E))
}

kernel! {
    /// See [`SiluMul`].
    pub fn silu_mul(p: SiluMul) {
        ptx::start_after_previous();
        let row = u64::from(ptx::ctaid_x());
        let row_bytes = u64::from(p.inter) * 2;
        let g_row = p.gate_up + row * 2 * row_bytes;
        // From a gate to what it gates, and how far apart eights of gates are.
        let (up, stride) = if p.paired == 0 { (row_bytes, 1) } else { (16, 2) };
        let g_out = p.out + row * row_bytes;
        let mut col = (ptx::ctaid_y() * THREADS + ptx::tid_x()) * 8;
        while col < p.inter {
            let offset = u64::from(col) * 2;
            let g_gate = g_row + stride * offset;
            let mut gate = unpack8(ptx::ld_global_nc_v4_b32(g_gate));
            let gated = unpack8(ptx::ld_global_nc_v4_b32(g_gate + up));
            for i in 0..8 {
                gate[i] = silu(gate[i]) * gated[i];
            }
            ptx::st_global_v4_b32(g_out + offset, pack8(gate));
            col += ptx::nctaid_y() * THREADS * 8;
        }
    }
}
