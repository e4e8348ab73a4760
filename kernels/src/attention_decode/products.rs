//! The two products of a tile, transposed so that keys and dims are the rows of `mma` and query rows its columns.
//!
//! In a fragment of scores (16 keys x 8 query rows), with `g = lane / 4` and `t = lane % 4`, registers 0 and 1 are rows `2t` and
//! `2t + 1` of key `g`, registers 2 and 3 those of key `g + 8`.

use super::{
    convert::{INT8_BIAS, keys, power, split_query, unit, values},
    ring::swizzle_keys,
};
use crate::{
    abi::{AttentionDecode, KV_BF16, KV_INT8},
    ptx,
    tile::swizzle,
};

/// A tile's scores or exponentials: by 16 keys, by 8 query rows.
pub(super) type Scores<const KEYS16: usize, const ROWS8: usize> = [[[f32; 4]; ROWS8]; KEYS16];

/// Query rows as operands of the first product.
#[derive(Clone, Copy)]
pub(super) struct Queries<const STEPS: usize, const ROWS8: usize> {
    /// By 8 rows, by 16 dims. Of bf16 keys bf16, else f16, for which [`Bound`] has brought a row within reach.
    pub pairs: Pairs<STEPS, ROWS8>,
    /// Of a lane's two rows of each 8: what its scores have to be multiplied by, beside their keys' scales and units.
    pub units: [[f32; 2]; ROWS8],
    /// What its products start at: they are to be without the bias of int8 keys.
    pub starts: [[f32; 2]; ROWS8],
}

/// By 8 rows, by 16 dims.
///
/// Lane `(g, t)` has of row `g` the 16-byte pieces (32-byte ones for 8-bit keys) that meet what it reads of a key: chunk `4j + t`.
/// Dims are summed in that order rather than in their own, which is all the same to a sum.
type Pairs<const STEPS: usize, const ROWS8: usize> = [[[u32; 2]; STEPS]; ROWS8];

/// Loads the queries of `g_rows`, the bf16 addresses of rows `g` of each 8 (0 for zeros).
///
/// # Safety
/// Every lane of the warp calls it; the addresses are those of heads.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) unsafe fn load_queries<const FORMAT: u32, const STEPS: usize, const ROWS8: usize>(
    g_rows: [u64; ROWS8],
) -> Queries<STEPS, ROWS8> {
    let mut pairs = [[[0u32; 2]; STEPS]; ROWS8];
    let (mut units, mut starts) = ([[1.0; 2]; ROWS8], [[0.0; 2]; ROWS8]);
    let t = u64::from(ptx::lane() % 4);
    // A key's chunk is 8 dims of bf16, 16 of 8 bits.
    let pieces = if FORMAT == KV_BF16 { 1 } else { 2 };
    for n in 0..ROWS8 {
        if g_rows[n] != 0 {
            for i in 0..STEPS / 2 {
                let (j, piece) = (i as u64 / pieces, i as u64 % pieces);
                let at = g_rows[n] + (j * 4 + t) * pieces * 16 + piece * 16;
                // SAFETY: the caller's promise.
                let piece = unsafe { ptx::ld_global_nc_v4_b32(at) };
                pairs[n][2 * i] = [piece[0], piece[1]];
                pairs[n][2 * i + 1] = [piece[2], piece[3]];
            }
        }
        if FORMAT != KV_BF16 {
            // SAFETY: the warp is whole.
            unsafe {
                let bound = Bound::of_row(&pairs[n]);
                let sum = bound.convert(&mut pairs[n]);
                for e in 0..2 {
                    let lane = (ptx::lane() % 4 * 2 + e as u32) * 4;
                    units[n][e] = bound.from(lane).unit();
                    if FORMAT == KV_INT8 {
                        let sum = f32::from_bits(ptx::shfl_idx(sum.to_bits(), lane));
                        starts[n][e] = -(INT8_BIAS / unit::<FORMAT>()) * sum;
                    }
                }
            }
        }
    }
    Queries { pairs, units, starts }
}

/// The exponent field of a row's largest element, which becomes an f16's largest power of two: elements down to 2^-29 of the largest
/// keep all their bits, and those below 2^-39 of it are lost, as they are to an f32 sum.
#[derive(Clone, Copy)]
struct Bound(u32);

impl Bound {
    /// The field that becomes 2^15.
    const TOP: u32 = 15 + 127;

    /// Of the row of which a quad has `pairs` of bf16.
    ///
    /// # Safety
    /// Every lane of the warp calls it.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn of_row<const STEPS: usize>(pairs: &[[u32; 2]; STEPS]) -> Bound {
        let mut max = 0;
        for step in 0..STEPS {
            for pair in pairs[step] {
                max = max.max(pair & 0x7fff).max(pair >> 16 & 0x7fff);
            }
        }
        // SAFETY: the warp is whole.
        unsafe {
            max = max.max(ptx::shfl_bfly(max, 1));
            max = max.max(ptx::shfl_bfly(max, 2));
        }
        // Within what keeps both powers of two finite and normal.
        Bound((max >> 7).clamp(Self::TOP - 126, 254))
    }

    /// That of the row that `lane` has a part of.
    ///
    /// # Safety
    /// Every lane of the warp calls it.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn from(self, lane: u32) -> Bound {
        // SAFETY: the warp is whole.
        Bound(unsafe { ptx::shfl_idx(self.0, lane) })
    }

    /// What the row's f16 have to be multiplied by.
    #[inline(always)]
    fn unit(self) -> f32 {
        power(self.0 + 127 - Self::TOP)
    }

    /// Makes pairs of f16 of a row's pairs of bf16, in the order of [`keys`]. The sum of the row's elements.
    ///
    /// # Safety
    /// Every lane of the warp calls it.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn convert<const STEPS: usize>(self, pairs: &mut [[u32; 2]; STEPS]) -> f32 {
        let factor = power(127 + Self::TOP - self.0);
        let mut sum = 0.0;
        for step in 0..STEPS {
            let [a, b] = pairs[step];
            let four =
                [ptx::bf16_lo(a), ptx::bf16_hi(a), ptx::bf16_lo(b), ptx::bf16_hi(b)].map(|q| q * factor);
            sum += (four[0] + four[1]) + (four[2] + four[3]);
            pairs[step] = split_query(four);
        }
        // SAFETY: the warp is whole.
        unsafe {
            sum += ptx::shfl_bfly_f32(sum, 1);
            sum + ptx::shfl_bfly_f32(sum, 2)
        }
    }
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
    // Of a bf16 tile even and odd steps add up apart: half as long a chain of products that wait for each other. Of an 8-bit tile two
    // times 16 keys do already.
    let chains = if FORMAT == KV_BF16 { 2 } else { 1 };
    let mut s = [[[[0.0f32; 4]; ROWS8]; KEYS16]; 2];
    for m in 0..KEYS16 {
        for n in 0..ROWS8 {
            for i in 0..4 {
                s[0][m][n][i] = q.starts[n][i & 1];
            }
        }
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
                    let (lower, upper) = (keys::<FORMAT>(lower[i]), keys::<FORMAT>(upper[i]));
                    [lower[0], upper[0], lower[1], upper[1]]
                };
                for n in 0..ROWS8 {
                    let sum = &mut s[i % chains][m][n];
                    // SAFETY: the caller's promise.
                    *sum = unsafe { mma::<FORMAT>(a, q.pairs[n][j as usize * steps + i], *sum) };
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
                let pack = if FORMAT == KV_BF16 { ptx::pack_bf16 } else { ptx::pack_f16 };
                [ptx::movmatrix_trans(pack(p[0], p[1])), ptx::movmatrix_trans(pack(p[2], p[3]))]
            };
        }
        for pair in 0..CHUNKS / 2 {
            let at = s_values + (plan.values ^ (pair * 32)) + m as u32 * 16 * CHUNKS * 16;
            // SAFETY: the caller's promise.
            let v = unsafe { ptx::ldmatrix_x4_trans(at) };
            if FORMAT == KV_BF16 {
                accumulate::<FORMAT, ROWS8>(&mut out[pair as usize], v, &b);
            } else {
                for half in 0..2 {
                    let (first, next) = (values::<FORMAT>(v[2 * half]), values::<FORMAT>(v[2 * half + 1]));
                    let a = [first[0], first[1], next[0], next[1]];
                    accumulate::<FORMAT, ROWS8>(&mut out[2 * pair as usize + half], a, &b);
                }
            }
        }
    }
}

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn accumulate<const FORMAT: u32, const ROWS8: usize>(
    out: &mut [[f32; 4]; ROWS8],
    a: [u32; 4],
    b: &[[u32; 2]; ROWS8],
) {
    for n in 0..ROWS8 {
        // SAFETY: `add_values` has the whole warp here.
        out[n] = unsafe { mma::<FORMAT>(a, b[n], out[n]) };
    }
}

/// The product for a format: of bf16, or of f16 where 8-bit elements are widened.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn mma<const FORMAT: u32>(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        if FORMAT == KV_BF16 { ptx::mma_m16n8k16_bf16(a, b, c) } else { ptx::mma_m16n8k16_f16(a, b, c) }
    }
}

/// The bf16 address of a query row of the item, for [`load_queries`].
#[inline(always)]
pub(super) fn query_address(p: &AttentionDecode, query: u32, head: u32, head_dim: u32) -> u64 {
    p.q + (u64::from(query) * u64::from(p.q_heads) + u64::from(head)) * u64::from(head_dim) * 2
}
