//! Device code of [`super::ROPE_APPEND`].

use super::{MAX_HEAD_DIM, THREADS};
use crate::{abi::RopeAppend, entry::kernel, ptx, reduce::warp_sum};

/// Steps of a lane over the pairs of words of a head: word `j` of the lower half goes with word `j` of the upper one.
const STEPS: usize = (MAX_HEAD_DIM / 4 / 32) as usize;

/// One head in a warp's registers. `lower[s]` holds elements `2j` and `2j + 1`, `upper[s]` those `head_dim / 2` further, for word
/// `j = lane + 32 * s`; zeros past the end.
struct Head {
    lower: [[f32; 2]; STEPS],
    upper: [[f32; 2]; STEPS],
}

#[inline(always)]
fn unpack(pair: u32) -> [f32; 2] {
    [ptx::bf16_lo(pair), ptx::bf16_hi(pair)]
}

/// # Safety
/// `g_head` must be a head of `4 * words` bf16.
#[inline(always)]
unsafe fn load(g_head: u64, words: u32) -> Head {
    let mut head = Head { lower: [[0.0; 2]; STEPS], upper: [[0.0; 2]; STEPS] };
    for s in 0..STEPS {
        let j = ptx::lane() + 32 * s as u32;
        if j < words {
            // SAFETY: word `j` and the one half a head further are within the head.
            unsafe {
                head.lower[s] = unpack(ptx::ld_global_nc_b32(g_head + u64::from(j) * 4));
                head.upper[s] = unpack(ptx::ld_global_nc_b32(g_head + u64::from(words + j) * 4));
            }
        }
    }
    head
}

/// # Safety
/// As [`load`].
#[inline(always)]
unsafe fn store(g_head: u64, words: u32, head: &Head) {
    for s in 0..STEPS {
        let j = ptx::lane() + 32 * s as u32;
        if j < words {
            let (lower, upper) = (head.lower[s], head.upper[s]);
            // SAFETY: as in `load`.
            unsafe {
                ptx::st_global_b32(g_head + u64::from(j) * 4, ptx::pack_bf16(lower[0], lower[1]));
                ptx::st_global_b32(g_head + u64::from(words + j) * 4, ptx::pack_bf16(upper[0], upper[1]));
            }
        }
    }
}

/// RMS norm over the head, with one weight an element.
///
/// # Safety
/// The whole warp calls it; `g_weight` must be f32 `[4 * words]`.
#[inline(always)]
unsafe fn normalise(head: &mut Head, g_weight: u64, words: u32, eps: f32) {
    let mut squares = 0.0;
    for s in 0..STEPS {
        for i in 0..2 {
            squares = ptx::fma(head.lower[s][i], head.lower[s][i], squares);
            squares = ptx::fma(head.upper[s][i], head.upper[s][i], squares);
        }
    }
    // SAFETY: the whole warp is here.
    let inverse = ptx::rsqrt(unsafe { warp_sum(squares) } / (4 * words) as f32 + eps);
    for s in 0..STEPS {
        let j = ptx::lane() + 32 * s as u32;
        if j < words {
            // SAFETY: elements `2j`, `2j + 1` and those half a head further are within the weights.
            let (lower, upper) = unsafe {
                (
                    ptx::ld_global_nc_v2_b32(g_weight + u64::from(j) * 8),
                    ptx::ld_global_nc_v2_b32(g_weight + u64::from(words + j) * 8),
                )
            };
            for i in 0..2 {
                head.lower[s][i] = head.lower[s][i] * inverse * f32::from_bits(lower[i]);
                head.upper[s][i] = head.upper[s][i] * inverse * f32::from_bits(upper[i]);
            }
        }
    }
}

/// # Safety
/// `g_cos_sin` must be f32 `[4 * words]`: cosines, then sines.
#[inline(always)]
unsafe fn rotate(head: &mut Head, g_cos_sin: u64, words: u32) {
    for s in 0..STEPS {
        let j = ptx::lane() + 32 * s as u32;
        if j < words {
            // SAFETY: angles `2j` and `2j + 1`, of the cosines and of the sines.
            let (cos, sin) = unsafe {
                (
                    ptx::ld_global_nc_v2_b32(g_cos_sin + u64::from(j) * 8),
                    ptx::ld_global_nc_v2_b32(g_cos_sin + u64::from(words + j) * 8),
                )
            };
            for i in 0..2 {
                let (cos, sin) = (f32::from_bits(cos[i]), f32::from_bits(sin[i]));
                let (lower, upper) = (head.lower[s][i], head.upper[s][i]);
                head.lower[s][i] = lower * cos - upper * sin;
                head.upper[s][i] = upper * cos + lower * sin;
            }
        }
    }
}

kernel! {
    /// See [`RopeAppend`].
    pub fn rope_append(p: RopeAppend) {
        let token = u64::from(ptx::ctaid_x());
        let head_bytes = u64::from(p.head_dim) * 2;
        let heads = p.q_heads + 2 * p.kv_heads;
        let words = p.head_dim / 4;
        let g_token = p.qkv + token * u64::from(heads) * head_bytes;
        let position = u64::from(ptx::ld_global_nc_b32(p.positions + token * 4));
        let slot = ptx::ld_global_nc_b32(p.slots + token * 4);
        let page_size = p.page_size.max(1);
        let (page, offset) = (u64::from(slot / page_size), u64::from(slot % page_size));
        let g_cos_sin = p.cos_sin + position * u64::from(p.head_dim) * 4;

        let mut h = ptx::warp();
        while h < heads {
            let mut head = load(g_token + u64::from(h) * head_bytes, words);
            let is_query = h < p.q_heads;
            let is_key = !is_query && h < p.q_heads + p.kv_heads;
            let g_norm = if is_query { p.q_norm } else { p.k_norm };
            if is_query || is_key {
                if g_norm != 0 {
                    normalise(&mut head, g_norm, words, p.eps);
                }
                rotate(&mut head, g_cos_sin, words);
            }
            let g_to = if is_query {
                p.q_out + (token * u64::from(p.q_heads) + u64::from(h)) * head_bytes
            } else {
                let (cache, kv_head) =
                    if is_key { (p.k_cache, h - p.q_heads) } else { (p.v_cache, h - p.q_heads - p.kv_heads) };
                let row = (page * u64::from(p.kv_heads) + u64::from(kv_head)) * u64::from(p.page_size) + offset;
                cache + row * head_bytes
            };
            store(g_to, words, &head);
            h += THREADS / 32;
        }
    }
}
