//! The two products of a tile, transposed so that keys and dims are the rows of `mma` and query rows its columns.
//!
//! In a fragment of scores (16 keys x 8 query rows), with `g = lane / 4` and `t = lane % 4`, registers 0 and 1 are rows `2t` and
//! `2t + 1` of key `g`, registers 2 and 3 those of key `g + 8`.

use super::{
    convert::{even, odd, split_query},
    ring::swizzle_keys,
};
use crate::{
    abi::{AttentionDecode, KV_BF16},
    ptx,
    tile::swizzle,
};

/// A tile's scores or exponentials: by 16 keys, by 8 query rows.
pub(super) type Scores<const KEYS16: usize, const ROWS8: usize> = [[[f32; 4]; ROWS8]; KEYS16];

/// Query rows as operands of the first product: by 8 rows, by 16 dims.
///
/// Lane `(g, t)` has of row `g` the 16-byte pieces (32-byte ones for 8-bit keys) that meet what it reads of a key: chunk `4j + t`.
/// Dims are summed in that order rather than in their own, which is all the same to a sum.
pub(super) type Queries<const STEPS: usize, const ROWS8: usize> = [[[u32; 2]; STEPS]; ROWS8];

/// Loads the queries of `g_rows`, the bf16 addresses of rows `g` of each 8 (0 for zeros).
///
/// # Safety
/// The addresses are those of heads.
#[inline(always)]
pub(super) unsafe fn load_queries<const FORMAT: u32, const STEPS: usize, const ROWS8: usize>(
    g_rows: [u64; ROWS8],
) -> Queries<STEPS, ROWS8> {
    let mut q = [[[0u32; 2]; STEPS]; ROWS8];
    let t = u64::from(ptx::lane() % 4);
    for n in 0..ROWS8 {
        if g_rows[n] != 0 {
            // SAFETY: the caller's promise.
            unsafe {
                if FORMAT == KV_BF16 {
                    for j in 0..STEPS / 2 {
                        let piece = ptx::ld_global_nc_v4_b32(g_rows[n] + j as u64 * 64 + t * 16);
                        q[n][2 * j] = [piece[0], piece[1]];
                        q[n][2 * j + 1] = [piece[2], piece[3]];
                    }
                } else {
                    for j in 0..STEPS / 4 {
                        for half in 0..2 {
                            let at = j as u64 * 128 + t * 32 + half as u64 * 16;
                            let piece = ptx::ld_global_nc_v4_b32(g_rows[n] + at);
                            q[n][4 * j + 2 * half] = split_query([piece[0], piece[1]]);
                            q[n][4 * j + 2 * half + 1] = split_query([piece[2], piece[3]]);
                        }
                    }
                }
            }
        }
    }
    q
}

/// Where a lane reads in a stage. Columns are reached by XOR, which their bits allow: rows are aligned to their length.
#[derive(Clone, Copy)]
pub(super) struct ReadPlan {
    /// Its first chunk of key `g`.
    keys: u32,
    /// Its row of the first `ldmatrix` of values.
    values: u32,
}

impl ReadPlan {
    #[inline(always)]
    pub fn new<const FORMAT: u32, const CHUNKS: u32>() -> ReadPlan {
        let lane = ptx::lane();
        // Four matrices of 8 keys: for bf16 two chunks of the first 8 keys, then of the next 8; for 8-bit values, whose chunk is
        // 16 dims, two 8 keys of the first chunk, then of the next.
        let (key8, chunk) =
            if FORMAT == KV_BF16 { (lane >> 4, lane >> 3 & 1) } else { (lane >> 3 & 1, lane >> 4) };
        ReadPlan {
            keys: swizzle_keys::<CHUNKS>(lane / 4, lane % 4),
            values: swizzle::<CHUNKS>((lane & 7) + key8 * 8, chunk),
        }
    }
}

/// Scores of the tile of keys at `s_keys`, unscaled.
///
/// # Safety
/// The whole warp calls it; the tile has landed.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) unsafe fn scores<
    const FORMAT: u32,
    const CHUNKS: u32,
    const STEPS: usize,
    const KEYS16: usize,
    const ROWS8: usize,
>(
    q: &Queries<STEPS, ROWS8>,
    s_keys: u32,
    plan: &ReadPlan,
) -> Scores<KEYS16, ROWS8> {
    // Of a bf16 tile even and odd steps add up apart: half as long a chain of products that wait for each other. Blocks of 8-bit
    // tiles are more to a multiprocessor and have no registers for that.
    let chains = if FORMAT == KV_BF16 { 2 } else { 1 };
    let mut s = [[[[0.0f32; 4]; ROWS8]; KEYS16]; 2];
    for m in 0..KEYS16 {
        for j in 0..CHUNKS / 4 {
            let at = s_keys + (plan.keys ^ (j * 64)) + m as u32 * 16 * CHUNKS * 16;
            // SAFETY: the caller's promise.
            let (lower, upper) =
                unsafe { (ptx::ld_shared_v4_b32(at), ptx::ld_shared_v4_b32(at + 8 * CHUNKS * 16)) };
            let steps = if FORMAT == KV_BF16 { 2 } else { 4 };
            for i in 0..steps {
                let a = if FORMAT == KV_BF16 {
                    [lower[2 * i], upper[2 * i], lower[2 * i + 1], upper[2 * i + 1]]
                } else {
                    let (lower, upper) = (lower[i], upper[i]);
                    [even::<FORMAT>(lower), even::<FORMAT>(upper), odd::<FORMAT>(lower), odd::<FORMAT>(upper)]
                };
                for n in 0..ROWS8 {
                    let sum = &mut s[i % chains][m][n];
                    // SAFETY: the caller's promise.
                    *sum = unsafe { ptx::mma_m16n8k16_bf16(a, q[n][j as usize * steps + i], *sum) };
                }
            }
        }
    }
    let [mut sums, others] = s;
    if chains == 1 {
        return sums;
    }
    for m in 0..KEYS16 {
        for n in 0..ROWS8 {
            for i in 0..4 {
                sums[m][n][i] += others[m][n][i];
            }
        }
    }
    sums
}

/// Adds the product of the values at `s_values` and the exponentials `p` to `out`: by 16 dims, by 8 rows.
///
/// Of an output fragment registers 0 and 1 are rows `2t` and `2t + 1` of dim `g` of its 16 for bf16, `2g` for 8-bit values;
/// registers 2 and 3 those of dim `g + 8`, or `2g + 1`.
///
/// # Safety
/// The whole warp calls it; the tile has landed.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) unsafe fn add_values<
    const FORMAT: u32,
    const CHUNKS: u32,
    const STEPS: usize,
    const KEYS16: usize,
    const ROWS8: usize,
>(
    out: &mut [[[f32; 4]; ROWS8]; STEPS],
    p: &Scores<KEYS16, ROWS8>,
    s_values: u32,
    plan: &ReadPlan,
) {
    for m in 0..KEYS16 {
        let mut b = [[0u32; 2]; ROWS8];
        for n in 0..ROWS8 {
            let p = &p[m][n];
            // SAFETY: the warp is whole. Fragments have keys by quad; as an operand they must have them within the quad.
            b[n] = unsafe {
                [
                    ptx::movmatrix_trans(ptx::pack_bf16(p[0], p[1])),
                    ptx::movmatrix_trans(ptx::pack_bf16(p[2], p[3])),
                ]
            };
        }
        for pair in 0..CHUNKS / 2 {
            let at = s_values + (plan.values ^ (pair * 32)) + m as u32 * 16 * CHUNKS * 16;
            // SAFETY: the caller's promise.
            let v = unsafe { ptx::ldmatrix_x4_trans(at) };
            if FORMAT == KV_BF16 {
                accumulate(&mut out[pair as usize], v, &b);
            } else {
                for half in 0..2 {
                    let (first, next) = (v[2 * half], v[2 * half + 1]);
                    let a = [
                        even::<FORMAT>(first),
                        odd::<FORMAT>(first),
                        even::<FORMAT>(next),
                        odd::<FORMAT>(next),
                    ];
                    accumulate(&mut out[2 * pair as usize + half], a, &b);
                }
            }
        }
    }
}

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn accumulate<const ROWS8: usize>(out: &mut [[f32; 4]; ROWS8], a: [u32; 4], b: &[[u32; 2]; ROWS8]) {
    for n in 0..ROWS8 {
        // SAFETY: `add_values` has the whole warp here.
        out[n] = unsafe { ptx::mma_m16n8k16_bf16(a, b[n], out[n]) };
    }
}

/// The bf16 address of a query row of the item, for [`load_queries`].
#[inline(always)]
pub(super) fn query_address(p: &AttentionDecode, query: u32, head: u32, head_dim: u32) -> u64 {
    p.q + (u64::from(query) * u64::from(p.q_heads) + u64::from(head)) * u64::from(head_dim) * 2
}
