//! Device code of [`super::BF16`], [`super::INT8`] and [`super::FP8`].

use super::{
    HELD_HEADS, THREADS,
    head::{Angles, Norm, Raw, cache_row, squares, turn},
    log_lanes_per_head, warps_per_token,
};
use crate::{
    abi::{KV_BF16, KV_FP8, KV_INT8, RopeAppend},
    entry::kernel,
    ptx,
    quant::{E4M3_LIMIT, INT8_LIMIT, Quantiser, e4m3x8, int8x8},
    vector::pack8,
};

const HELD: usize = HELD_HEADS as usize;

/// Where a lane stands.
struct Place {
    token: u32,
    /// Lanes of a head.
    lanes: u32,
    /// Heads of a warp at a time.
    stride: u32,
    /// Which eight elements of either half of a head are the lane's.
    chunk: u32,
    /// Whether the head has such elements; lanes are a power of two, chunks needn't be.
    has_chunk: bool,
    /// The lane's first head, and the warp's.
    first_head: u32,
    warp_first_head: u32,
}

/// The bits of the largest magnitude, or of a NaN.
#[inline(always)]
fn max_bits(part: &[[f32; 8]; 2]) -> u32 {
    // Two chains.
    let mut max = [part[0][0].abs(), part[1][0].abs()];
    for i in 1..8 {
        max = [ptx::max_nan(max[0], part[0][i].abs()), ptx::max_nan(max[1], part[1][i].abs())];
    }
    ptx::max_nan(max[0], max[1]).to_bits()
}

/// The sum over a head's lanes, in each of them.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn head_sum(value: f32, lanes: u32) -> f32 {
    let (mut sum, mut mask) = (value, lanes / 2);
    while mask > 0 {
        // SAFETY: the whole warp is here; lanes are the same in all of it.
        sum += unsafe { ptx::shfl_bfly_f32(sum, mask) };
        mask /= 2;
    }
    sum
}

/// The largest over a head's lanes, in each of them.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn head_max(value: u32, lanes: u32) -> u32 {
    let (mut max, mut mask) = (value, lanes / 2);
    while mask > 0 {
        // SAFETY: the whole warp is here; lanes are the same in all of it.
        max = max.max(unsafe { ptx::shfl_bfly(max, mask) });
        mask /= 2;
    }
    max
}

/// Stores a lane's bf16: eight of the lower half, eight of the upper.
///
/// # Safety
/// `g_head` must be a head of `head_bytes`, and the lane must have a chunk of it.
#[inline(always)]
unsafe fn store_bf16(g_head: u64, place: &Place, head_bytes: u64, part: &[[f32; 8]; 2]) {
    let g_lower = g_head + u64::from(place.chunk) * 16;
    // SAFETY: the caller's promise.
    unsafe {
        ptx::st_global_v4_b32(g_lower, pack8(part[0]));
        ptx::st_global_v4_b32(g_lower + head_bytes / 2, pack8(part[1]));
    }
}

/// Where the token's key and value go.
struct Slot(u32);

impl Slot {
    /// The row of `kv_head` in a cache.
    #[inline(always)]
    fn row(&self, p: &RopeAppend, kv_head: u32) -> u64 {
        // Divided anew for each head: the quotient and the rest would be one register more.
        cache_row(self.0, ptx::here(p.page_size), p.kv_heads, kv_head)
    }
}

/// The norm of the lane's head, none for a value.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
unsafe fn norm_of<const NORM: bool>(p: &RopeAppend, place: &Place, head: u32, raw: &Raw) -> Norm {
    if !NORM {
        return Norm::NONE;
    }
    // Lanes past the end of a head hold a copy of its last elements, which must not count.
    let squares = if place.has_chunk { squares(raw) } else { 0.0 };
    // SAFETY: the whole warp is here.
    let mean = unsafe { head_sum(squares, place.lanes) } / p.head_dim as f32;
    let g_norm = if head < p.q_heads { p.q_norm } else { p.k_norm };
    let normed = g_norm != 0 && head < p.q_heads + p.kv_heads && place.has_chunk;
    let g_weights = if normed { g_norm + u64::from(place.chunk) * 32 } else { 0 };
    Norm { g_weights, inverse: ptx::rsqrt(mean + p.eps) }
}

/// Where a key or a value goes: the cache, the scales, and the row of both.
#[inline(always)]
fn cache_of(p: &RopeAppend, slot: &Slot, head: u32, is_value: bool) -> (u64, u64, u64) {
    let (cache, scales, first) = if is_value {
        (p.v_cache, p.v_scales, p.q_heads + p.kv_heads)
    } else {
        (p.k_cache, p.k_scales, p.q_heads)
    };
    (cache, scales, slot.row(p, head - first))
}

/// Quantises a lane's part of a key or value, and stores it if `stored`.
///
/// # Safety
/// As the entries; the whole warp calls it.
#[inline(always)]
unsafe fn store_quantised<const FORMAT: u32>(
    p: &RopeAppend,
    place: &Place,
    slot: &Slot,
    (head, is_value, stored): (u32, bool, bool),
    part: &[[f32; 8]; 2],
) {
    // Lanes past the end of a head hold a copy of its last elements, turned by other angles.
    let max = if place.has_chunk { max_bits(part) } else { 0 };
    // SAFETY: the whole warp is here.
    let max = unsafe { head_max(max, place.lanes) };
    let limit = if FORMAT == KV_INT8 { INT8_LIMIT } else { E4M3_LIMIT };
    let Quantiser { inverse, scale } = Quantiser::of(max, limit);
    let bytes = |half| if FORMAT == KV_INT8 { int8x8(half, inverse) } else { e4m3x8(half, inverse) };
    let (lower, upper) = (bytes(&part[0]), bytes(&part[1]));
    if !stored {
        return;
    }
    let (cache, scales, row) = cache_of(p, slot, head, is_value);
    let g_lower = cache + row * u64::from(p.head_dim) + u64::from(place.chunk) * 8;
    // SAFETY: the slot is in the cache, whose rows are heads of a byte an element, and its row in the scales.
    unsafe {
        ptx::st_global_v2_b32(g_lower, lower);
        ptx::st_global_v2_b32(g_lower + u64::from(p.head_dim / 2), upper);
        if place.chunk == 0 {
            ptx::st_global_b32(scales + row * 4, scale.to_bits());
        }
    }
}

/// Finishes one head and puts it where it belongs.
///
/// # Safety
/// As the entries; the whole warp calls it, the heads of its lanes beginning at `warp_head`.
#[inline(always)]
unsafe fn finish<const FORMAT: u32, const NORM: bool>(
    p: &RopeAppend,
    place: &Place,
    slot: &Slot,
    angles: &Angles,
    (head, warp_head): (u32, u32),
    raw: &Raw,
) {
    let head_bytes = u64::from(p.head_dim) * 2;
    let stored = head < p.q_heads + 2 * p.kv_heads && place.has_chunk;
    let is_query = head < p.q_heads;
    let is_value = head >= p.q_heads + p.kv_heads;
    // SAFETY: the whole warp is here; `norm_of` answers weights of the head.
    let part = unsafe { turn(raw, norm_of::<NORM>(p, place, head, raw), p.head_dim, angles, is_value) };
    if stored && (is_query || FORMAT == KV_BF16) {
        let g_head = if is_query {
            p.q_out + (u64::from(place.token) * u64::from(p.q_heads) + u64::from(head)) * head_bytes
        } else {
            let (cache, _, row) = cache_of(p, slot, head, is_value);
            cache + row * head_bytes
        };
        // SAFETY: one of the token's queries; or the slot is in the cache, whose rows are heads.
        unsafe { store_bf16(g_head, place, head_bytes, &part) };
    }
    // A warp of queries alone has nothing to quantise.
    if FORMAT != KV_BF16 && warp_head + place.stride > p.q_heads {
        // SAFETY: the whole warp is here.
        unsafe { store_quantised::<FORMAT>(p, place, slot, (head, is_value, stored && !is_query), &part) };
    }
}

/// # Safety
/// As the entries.
#[inline(always)]
unsafe fn append<const FORMAT: u32>(p: &RopeAppend) {
    let (heads, chunks) = (p.q_heads + 2 * p.kv_heads, p.head_dim / 16);
    let log_lanes = log_lanes_per_head(p.head_dim) & 31;
    let (lanes, stride) = (1 << log_lanes, 32 >> log_lanes);
    let warps = warps_per_token(heads, p.head_dim).max(1);
    let task = ptx::ctaid_x() * (THREADS / 32) + ptx::warp();
    if task / warps >= p.tokens {
        return;
    }
    let (lane, warp_first_head) = (ptx::lane(), task % warps * HELD_HEADS * stride);
    let place = Place {
        token: task / warps,
        lanes,
        stride,
        chunk: lane & (lanes - 1),
        has_chunk: lane & (lanes - 1) < chunks,
        first_head: warp_first_head + (lane >> log_lanes),
        warp_first_head,
    };
    let head_bytes = u64::from(p.head_dim) * 2;
    // A lane with nothing to do loads what another one does: no load waits for a branch.
    let chunk = place.chunk.min(chunks - 1);
    let g_chunk = p.qkv + u64::from(place.token) * u64::from(heads) * head_bytes + u64::from(chunk) * 16;
    let mut raw: [Raw; HELD] = [[[0; 4]; 2]; HELD];
    // SAFETY: the token's own words, its heads, and the row of angles of its position.
    let (slot, angles) = unsafe {
        let position = ptx::ld_global_nc_b32(p.positions + u64::from(place.token) * 4);
        let slot = ptx::ld_global_nc_b32(p.slots + u64::from(place.token) * 4);
        let angles = Angles::load(p.cos_sin, position, p.head_dim, chunk);
        // A step's metadata and the table are no launch's work; the projection is.
        ptx::start_after_previous();
        for s in 0..HELD {
            let head = (place.first_head + s as u32 * place.stride).min(heads - 1);
            let g_lower = g_chunk + u64::from(head) * head_bytes;
            raw[s][0] = ptx::ld_global_nc_v4_b32(g_lower);
            raw[s][1] = ptx::ld_global_nc_v4_b32(g_lower + head_bytes / 2);
        }
        (Slot(slot), angles)
    };
    let step = |s: usize| {
        let first = s as u32 * place.stride;
        (place.first_head + first, place.warp_first_head + first)
    };
    // Two loops, so that heads without norms are not held up by branches.
    if p.q_norm == 0 && p.k_norm == 0 {
        for s in 0..HELD {
            // SAFETY: the whole warp is here.
            unsafe { finish::<FORMAT, false>(p, &place, &slot, &angles, step(s), &raw[s]) };
        }
        return;
    }
    for s in 0..HELD {
        // SAFETY: the whole warp is here.
        unsafe { finish::<FORMAT, true>(p, &place, &slot, &angles, step(s), &raw[s]) };
    }
}

kernel! {
    /// See [`RopeAppend`].
    pub fn rope_append(p: RopeAppend) {
        append::<KV_BF16>(&p);
    }
}

kernel! {
    /// See [`RopeAppend`].
    pub fn rope_append_int8(p: RopeAppend) {
        append::<KV_INT8>(&p);
    }
}

kernel! {
    /// See [`RopeAppend`].
    pub fn rope_append_fp8(p: RopeAppend) {
        append::<KV_FP8>(&p);
    }
}
