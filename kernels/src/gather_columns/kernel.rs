//! Device code of [`super::GATHER_COLUMNS`].

use super::THREADS;
use crate::{abi::GatherColumns, entry::kernel, ptx};

/// The element at byte `offset` of the row in shared memory.
///
/// # Safety
/// It is in the row, which has landed.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn element(offset: u32) -> u32 {
    // SAFETY: the caller's promise.
    u32::from(unsafe { ptx::ld_shared_b16(ptx::shared_base() + offset) })
}

kernel! {
    /// See [`GatherColumns`].
    pub fn gather_columns(p: GatherColumns) {
        let order = u64::from(ptx::ctaid_y());
        let (row_bytes, out_bytes) = (u64::from(p.cols) * 2, u64::from(p.out_cols) * 2);
        let g_order = p.orders + order * out_bytes;
        let first = ptx::tid_x() * 8;
        // No launch writes an order: its first columns need not wait.
        let mut from = [0; 4];
        if first < p.out_cols {
            from = ptx::ld_global_nc_v4_b32(g_order + u64::from(first) * 2);
        }
        ptx::start_after_previous();
        let row = u64::from(ptx::ctaid_x());
        let mut col = first;
        while col < p.cols {
            let values = ptx::ld_global_nc_v4_b32(p.x + row * row_bytes + u64::from(col) * 2);
            ptx::st_shared_v4_b32(ptx::shared_base() + col * 2, values);
            col += THREADS * 8;
        }
        ptx::bar_sync();
        let g_out = p.out + (order * u64::from(p.rows) + row) * out_bytes;
        let mut col = first;
        while col < p.out_cols {
            let mut values = [0; 4];
            for i in 0..4 {
                values[i] = element((from[i] & 0xffff) * 2) | element((from[i] >> 16) * 2) << 16;
            }
            ptx::st_global_v4_b32(g_out + u64::from(col) * 2, values);
            col += THREADS * 8;
            if col < p.out_cols {
                from = ptx::ld_global_nc_v4_b32(g_order + u64::from(col) * 2);
            }
        }
    }
}
