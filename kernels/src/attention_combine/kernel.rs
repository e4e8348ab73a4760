//! Device code of [`super::ATTENTION_COMBINE`].

use super::THREADS;
use crate::{abi::AttentionCombine, entry::kernel, ptx};

kernel! {
    /// See [`AttentionCombine`].
    pub fn attention_combine(p: AttentionCombine) {
        let (head, launch_seq) = (ptx::ctaid_x(), ptx::ctaid_y());
        let seq = u64::from(ptx::ld_global_nc_b32(p.seq_ids + u64::from(launch_seq) * 4));
        let kv_len = ptx::ld_global_nc_b32(p.kv_lens + seq * 4);
        let chunks = kv_len.div_ceil(p.split_tokens.max(1));
        if chunks <= 1 {
            return;
        }
        let token = u64::from(ptx::ld_global_nc_b32(p.q_starts + seq * 4));
        let first = (u64::from(launch_seq) * u64::from(p.q_heads) + u64::from(head)) * u64::from(p.max_splits);
        let g_lse = p.partial_lse + first * 4;
        let g_partial = p.partial_out + first * u64::from(p.head_dim) * 4;
        let g_out = p.out + (token * u64::from(p.q_heads) + u64::from(head)) * u64::from(p.head_dim) * 2;

        let mut max = f32::NEG_INFINITY;
        for chunk in 0..chunks {
            max = ptx::max(max, f32::from_bits(ptx::ld_global_nc_b32(g_lse + u64::from(chunk) * 4)));
        }
        let mut element = ptx::tid_x() * 2;
        while element < p.head_dim {
            let (mut sum, mut out) = (0.0, [0.0; 2]);
            for chunk in 0..chunks {
                let lse = f32::from_bits(ptx::ld_global_nc_b32(g_lse + u64::from(chunk) * 4));
                if lse != f32::NEG_INFINITY {
                    let weight = ptx::ex2(lse - max);
                    let offset = u64::from(chunk) * u64::from(p.head_dim) + u64::from(element);
                    let part = ptx::ld_global_nc_v2_b32(g_partial + offset * 4);
                    sum += weight;
                    out[0] = ptx::fma(weight, f32::from_bits(part[0]), out[0]);
                    out[1] = ptx::fma(weight, f32::from_bits(part[1]), out[1]);
                }
            }
            let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            ptx::st_global_b32(g_out + u64::from(element) * 2, ptx::pack_bf16(out[0] * inverse, out[1] * inverse));
            element += THREADS * 2;
        }
    }
}
