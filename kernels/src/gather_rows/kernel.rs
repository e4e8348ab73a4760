//! Device code of [`super::GATHER_ROWS`].

use super::THREADS;
use crate::{abi::GatherRows, entry::kernel, ptx};

kernel! {
    /// See [`GatherRows`].
    pub fn gather_rows(p: GatherRows) {
        ptx::start_after_previous();
        let row = u64::from(ptx::ctaid_x());
        let row_bytes = u64::from(p.cols) * 2;
        let id = u64::from(ptx::ld_global_nc_b32(p.ids + row * 4));
        let g_from = p.table + id * row_bytes;
        let g_to = p.out + row * row_bytes;
        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            let offset = u64::from(col) * 2;
            ptx::st_global_v4_b32(g_to + offset, ptx::ld_global_nc_v4_b32(g_from + offset));
            col += THREADS * 8;
        }
    }
}
