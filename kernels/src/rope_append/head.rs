//! A lane's part of a head: eight elements of the lower half, and the eight of the upper half that rotation pairs with them.

use core::hint::select_unpredictable;

use crate::{
    ptx,
    vector::{load_f32x8, unpack8},
};

/// A lane's angles.
#[derive(Clone, Copy)]
pub(crate) struct Angles {
    cos: [f32; 8],
    sin: [f32; 8],
}

impl Angles {
    pub const NONE: Angles = Angles { cos: [1.0; 8], sin: [0.0; 8] };

    /// Of a lane that has elements `8 * chunk..` of either half.
    ///
    /// # Safety
    /// `cos_sin` is a table of heads of `head_dim` with a row for the position; the half has the chunk.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub unsafe fn load(cos_sin: u64, position: u32, head_dim: u32, chunk: u32) -> Angles {
        let row_bytes = u64::from(head_dim) * 4;
        let g_cos = cos_sin + u64::from(position) * row_bytes + u64::from(chunk) * 32;
        // SAFETY: the caller's promise.
        unsafe { Angles { cos: load_f32x8(g_cos), sin: load_f32x8(g_cos + row_bytes / 2) } }
    }
}

/// A lane's part of a head in bf16: eight elements of the lower half and their partners of the upper one.
pub(crate) type Raw = [[u32; 4]; 2];

/// The sum of squares of the lane's elements.
#[inline(always)]
pub(crate) fn squares(raw: &Raw) -> f32 {
    let (lower, upper, mut sum) = (unpack8(raw[0]), unpack8(raw[1]), 0.0);
    for i in 0..8 {
        sum = ptx::fma(lower[i], lower[i], sum);
        sum = ptx::fma(upper[i], upper[i], sum);
    }
    sum
}

/// The norm of a head's lane: its weights in the lower half (those of the upper one are half a head further), 0 for none, and
/// what the elements are multiplied by.
#[derive(Clone, Copy)]
pub(crate) struct Norm {
    pub g_weights: u64,
    pub inverse: f32,
}

impl Norm {
    pub const NONE: Norm = Norm { g_weights: 0, inverse: 1.0 };
}

/// The lane's elements of either half, normed and, unless they are of a value, rotated.
///
/// # Safety
/// The norm's weights, if any, must be those of a head of `head_dim`.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn turn(
    raw: &Raw,
    norm: Norm,
    head_dim: u32,
    angles: &Angles,
    is_value: bool,
) -> [[f32; 8]; 2] {
    let join = |a: [f32; 4], b: [f32; 4]| [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]];
    // SAFETY: the caller's promise.
    let (first, second) = unsafe {
        let first = turn_quarter::<0>(raw, norm, head_dim, angles, is_value);
        (first, turn_quarter::<1>(raw, norm, head_dim, angles, is_value))
    };
    [join(first[0], second[0]), join(first[1], second[1])]
}

/// Elements `4 * QUARTER..` of the lane's lower half and their partners.
///
/// # Safety
/// As [`turn`].
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn turn_quarter<const QUARTER: usize>(
    raw: &Raw,
    norm: Norm,
    head_dim: u32,
    angles: &Angles,
    is_value: bool,
) -> [[f32; 4]; 2] {
    let half = |words: &[u32; 4]| {
        let (a, b) = (words[2 * QUARTER], words[2 * QUARTER + 1]);
        [ptx::bf16_lo(a), ptx::bf16_hi(a), ptx::bf16_lo(b), ptx::bf16_hi(b)]
    };
    let (mut lower, mut upper) = (half(&raw[0]), half(&raw[1]));
    if norm.g_weights != 0 {
        let g_weights = norm.g_weights + QUARTER as u64 * 16;
        // SAFETY: the caller's promise.
        let (lower_weights, upper_weights) = unsafe {
            (
                ptx::ld_global_nc_v4_b32(g_weights),
                ptx::ld_global_nc_v4_b32(g_weights + u64::from(head_dim) * 2),
            )
        };
        for i in 0..4 {
            lower[i] = lower[i] * norm.inverse * f32::from_bits(lower_weights[i]);
            upper[i] = upper[i] * norm.inverse * f32::from_bits(upper_weights[i]);
        }
    }
    let mut turned = [[0.0; 4]; 2];
    for i in 0..4 {
        let (cos, sin) = (angles.cos[4 * QUARTER + i], angles.sin[4 * QUARTER + i]);
        // Chosen element by element, so that what was loaded needn't be kept.
        let rotated = [ptx::fma(-upper[i], sin, lower[i] * cos), ptx::fma(lower[i], sin, upper[i] * cos)];
        turned[0][i] = select_unpredictable(is_value, lower[i], rotated[0]);
        turned[1][i] = select_unpredictable(is_value, upper[i], rotated[1]);
    }
    turned
}

/// The cache row of a key head's token: of `slot`, which is `page * page_size + offset`, in `[pages, kv_heads, page_size]`.
#[inline(always)]
pub(crate) fn cache_row(slot: u32, page_size: u32, kv_heads: u32, kv_head: u32) -> u64 {
    let page_size = page_size.max(1);
    let head = u64::from(slot / page_size) * u64::from(kv_heads) + u64::from(kv_head);
    head * u64::from(page_size) + u64::from(slot % page_size)
}
