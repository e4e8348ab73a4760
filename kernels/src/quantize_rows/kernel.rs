//! Device code of [`super::QUANTIZE_ROWS`].

use super::{SharedPlan, THREADS};
use crate::{
    abi::QuantizeRows,
    entry::kernel,
    ptx,
    quant::{INT8_LIMIT, Quantiser, int8x8, largest_bits},
    reduce::block_max,
    vector::{load_f32x8, unpack8},
};

/// Eight activations times their factors, where there are any.
///
/// # Safety
/// `factors` is 0 or f32 of more than `col + 7` columns, which no launch writes.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn times_factors(mut values: [f32; 8], factors: u64, col: u32) -> [f32; 8] {
    if factors != 0 {
        // SAFETY: the caller's promise.
        let factors = unsafe { load_f32x8(factors + u64::from(col) * 4) };
        for i in 0..8 {
            values[i] *= factors[i];
        }
    }
    values
}

kernel! {
    /// See [`QuantizeRows`].
    pub fn quantize_rows(p: QuantizeRows) {
        ptx::start_after_previous();
        let row = u64::from(ptx::ctaid_x());
        let g_x = p.x + row * u64::from(p.cols) * 2;
        let g_codes = p.codes + row * u64::from(p.cols);
        let mut largest = 0;
        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            let x = unpack8(ptx::ld_global_nc_v4_b32(g_x + u64::from(col) * 2));
            largest = largest_bits(largest, &times_factors(x, p.factors, col));
            col += THREADS * 8;
        }
        let largest = block_max::<{ THREADS / 32 }>(largest, ptx::shared_base() + SharedPlan::WARP_LARGEST);
        let Quantiser { inverse, scale } = Quantiser::of(largest, INT8_LIMIT);
        if ptx::tid_x() == 0 {
            ptx::st_global_b32(p.scales + row * 4, scale.to_bits());
        }
        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            let x = unpack8(ptx::ld_global_nc_v4_b32(g_x + u64::from(col) * 2));
            let codes = int8x8(&times_factors(x, p.factors, col), inverse);
            ptx::st_global_v2_b32(g_codes + u64::from(col), codes);
            col += THREADS * 8;
        }
    }
}
