//! Device code of [`super::EMBED_SUM`].

use super::THREADS;
use crate::{
    abi::EmbedSum,
    entry::kernel,
    ptx,
    vector::{pack8, unpack8},
};

kernel! {
    /// See [`EmbedSum`].
    pub fn embed_sum(p: EmbedSum) {
        let row = u64::from(ptx::ctaid_x());
        let row_bytes = u64::from(p.cols) * 2;
        let g_token = p.table + u64::from(ptx::ld_global_nc_b32(p.ids + row * 4)) * row_bytes;
        let g_place = p.places + u64::from(ptx::ld_global_nc_b32(p.positions + row * 4)) * row_bytes;
        let g_out = p.out + row * row_bytes;
        let mut col = ptx::tid_x() * 8;
        while col < p.cols {
            let offset = u64::from(col) * 2;
            let mut sum = unpack8(ptx::ld_global_nc_v4_b32(g_token + offset));
            let place = unpack8(ptx::ld_global_nc_v4_b32(g_place + offset));
            for i in 0..8 {
                sum[i] += place[i];
            }
            ptx::st_global_v4_b32(g_out + offset, pack8(sum));
            col += THREADS * 8;
        }
    }
}
