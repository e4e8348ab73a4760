//! Device code of [`super::SAMPLE`].

use core::f32::consts::LOG2_E;

use super::{INDEX_BITS, MAX_COLS, SharedPlan, THREADS, select::select};
use crate::{
    abi::{INVALID_TOKEN, Sample, SampleRow},
    entry::kernel,
    logit::{HAS_FINITE, HAS_NAN, flags, key, row_flags, value_of_key},
    ptx,
    reduce::{warp_max_u64, warp_scan_u64, warp_sum_u64},
};

const WARPS: u32 = THREADS / 32;
/// A probability of the largest token's size.
const ONE: f32 = (1u64 << 40) as f32;

/// One row of logits, its largest known.
pub(super) struct Row {
    g_logits: u64,
    pub cols: u32,
    max: f32,
    /// Brings differences of logits to base-2 exponents.
    factor: f32,
}

/// A token as selection sees it.
pub(super) struct Token {
    /// Larger for the token that ranks first.
    pub rank: u64,
    /// Its probability over the largest.
    pub share: f32,
}

impl Token {
    /// [`Self::share`] in multiples of 2^-40: integers, whose sum doesn't depend on the order.
    #[inline(always)]
    pub(super) fn mass(&self) -> u64 {
        (self.share * ONE) as u64
    }
}

impl Row {
    /// # Safety
    /// `col` must be below `cols`.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) unsafe fn token(&self, col: u32) -> Token {
        // SAFETY: the caller's promise.
        let bits = unsafe { ptx::ld_global_nc_b32(self.g_logits + u64::from(col) * 4) };
        let logit = f32::from_bits(bits);
        // The largest is 1 whatever the temperature: inf - inf and 0 * inf would be NaN.
        // The bound keeps sums within 64 bits even under a temperature that nobody should ask for.
        let share = if logit == self.max { 1.0 } else { ptx::ex2((logit - self.max) * self.factor).min(1.0) };
        Token { rank: u64::from(key(bits)) << INDEX_BITS | u64::from(MAX_COLS - 1 - col), share }
    }
}

/// `x` in [0, 1] as a multiple of 2^-32.
#[inline(always)]
fn fixed(x: f32) -> u64 {
    (x * 4_294_967_296.0) as u64
}

/// The floor of `mass * fraction / 2^32`, without a wider integer.
#[inline(always)]
fn portion(mass: u64, fraction: u64) -> u64 {
    (mass >> 32) * fraction + (((mass & 0xffff_ffff) * fraction) >> 32)
}

/// The largest logit's key and the flags of the row, in every thread.
///
/// # Safety
/// The whole block calls it; nobody uses the warps' scratch.
#[inline(always)]
unsafe fn survey(g_logits: u64, cols: u32) -> (u32, u32) {
    // SAFETY: columns are bounded; each warp writes its own word, read after the barrier.
    unsafe {
        let (mut best, mut seen) = (0u32, 0u32);
        let mut col = ptx::tid_x();
        while col < cols {
            let bits = ptx::ld_global_nc_b32(g_logits + u64::from(col) * 4);
            seen |= flags(bits);
            best = best.max(key(bits));
            col += THREADS;
        }
        let best = warp_max_u64(u64::from(best));
        let any_nan = ptx::ballot(seen & HAS_NAN != 0) != 0;
        let any_finite = ptx::ballot(seen & HAS_FINITE != 0) != 0;
        let s_warps = ptx::shared_base() + SharedPlan::WARPS;
        if ptx::lane() == 0 {
            ptx::st_shared_b64(
                s_warps + 8 * ptx::warp(),
                best << 32 | u64::from(row_flags(any_nan, any_finite)),
            );
        }
        ptx::bar_sync();
        let (mut best, mut seen) = (0u32, 0u32);
        for warp in 0..WARPS {
            let word = ptx::ld_shared_b64(s_warps + 8 * warp);
            best = best.max((word >> 32) as u32);
            seen |= word as u32;
        }
        ptx::bar_sync();
        (best, seen)
    }
}

/// The parameters of row `row`.
///
/// # Safety
/// `row` must be one of the launch.
#[inline(always)]
unsafe fn row_params(p: &Sample, row: u64) -> SampleRow {
    let g_params = p.row_params + row * size_of::<SampleRow>() as u64;
    // SAFETY: a `SampleRow` is six words, aligned to 8 bytes in the packed array.
    let (a, b, c) = unsafe {
        (
            ptx::ld_global_nc_v2_b32(g_params),
            ptx::ld_global_nc_v2_b32(g_params + 8),
            ptx::ld_global_nc_v2_b32(g_params + 16),
        )
    };
    SampleRow {
        temperature: f32::from_bits(a[0]),
        top_p: f32::from_bits(a[1]),
        min_p: f32::from_bits(b[0]),
        uniform: f32::from_bits(b[1]),
        top_k: c[0],
        reserved: c[1],
    }
}

/// The sum of `value` over the block, and the sum over the warps before this one.
///
/// # Safety
/// The whole block calls it; nobody uses the warps' scratch.
#[inline(always)]
unsafe fn warp_offsets(value: u64) -> (u64, u64) {
    let s_warps = ptx::shared_base() + SharedPlan::WARPS;
    // SAFETY: each warp writes its own word, read after the barrier; the second barrier frees the scratch.
    unsafe {
        let sum = warp_sum_u64(value);
        if ptx::lane() == 0 {
            ptx::st_shared_b64(s_warps + 8 * ptx::warp(), sum);
        }
        ptx::bar_sync();
        let (mut total, mut before) = (0, 0);
        for warp in 0..WARPS {
            if warp == ptx::warp() {
                before = total;
            }
            total += ptx::ld_shared_b64(s_warps + 8 * warp);
        }
        ptx::bar_sync();
        (total, before)
    }
}

/// The lowest rank that top-k and top-p keep.
///
/// # Safety
/// The whole block calls it.
#[inline(always)]
unsafe fn lowest_kept(row: &Row, params: &SampleRow) -> u64 {
    let mut lowest = 0;
    // SAFETY: the whole block takes the same branches; columns are bounded.
    unsafe {
        if params.top_k > 0 && params.top_k < row.cols {
            lowest = select::<false>(row, lowest, u64::from(params.top_k));
        }
        if params.top_p < 1.0 {
            let mut mass = 0;
            let mut col = ptx::tid_x();
            while col < row.cols {
                let token = row.token(col);
                mass += if token.rank >= lowest { token.mass() } else { 0 };
                col += THREADS;
            }
            let (total, _) = warp_offsets(mass);
            lowest = select::<true>(row, lowest, portion(total, fixed(params.top_p)).max(1));
        }
    }
    lowest
}

/// The mass of the token in column `col` if it is kept and exists, else 0.
///
/// # Safety
/// None beyond [`Row::token`]'s, whose condition it checks.
#[inline(always)]
unsafe fn kept_mass(row: &Row, lowest: u64, min_p: f32, col: u32) -> u64 {
    if col >= row.cols {
        return 0;
    }
    // SAFETY: just checked.
    let token = unsafe { row.token(col) };
    if token.rank >= lowest && token.share >= min_p { token.mass() } else { 0 }
}

/// Draws among the kept tokens and stores the choice at `g_out`. Each warp sums a contiguous stretch of columns; the one in
/// whose stretch the target falls walks it.
///
/// # Safety
/// The whole block calls it.
#[inline(always)]
unsafe fn draw(row: &Row, lowest: u64, params: &SampleRow, g_out: u64) {
    let stretch = row.cols.div_ceil(THREADS) * 32;
    let first = ptx::warp() * stretch;
    // SAFETY: the whole block, then one whole warp, takes the same branches.
    unsafe {
        let mut mass = 0;
        let mut step = 0;
        while step < stretch {
            mass += kept_mass(row, lowest, params.min_p, first + step + ptx::lane());
            step += 32;
        }
        let (total, mut before) = warp_offsets(mass);
        let target = portion(total, fixed(params.uniform).min(0xffff_ffff));
        if target < before || target >= before + warp_sum_u64(mass) {
            return;
        }
        let mut step = 0;
        while step < stretch {
            let mass = kept_mass(row, lowest, params.min_p, first + step + ptx::lane());
            let running = before + warp_scan_u64(mass);
            let past = ptx::ballot(running > target);
            if past != 0 {
                if ptx::lane() == 0 {
                    ptx::st_global_b32(g_out, first + step + past.trailing_zeros());
                }
                return;
            }
            before += warp_sum_u64(mass);
            step += 32;
        }
    }
}

kernel! {
    /// See [`Sample`].
    pub fn sample(p: Sample) {
        let index = u64::from(ptx::ctaid_x());
        let g_logits = p.logits + index * u64::from(p.cols) * 4;
        let g_out = p.out + index * 4;
        let (best, seen) = survey(g_logits, p.cols);
        if seen != HAS_FINITE {
            if ptx::tid_x() == 0 {
                ptx::st_global_b32(g_out, INVALID_TOKEN);
            }
            return;
        }
        let mut params = row_params(&p, index);
        // Whatever is asked, the largest is kept.
        params.min_p = params.min_p.min(1.0);
        let factor = LOG2_E / params.temperature;
        let row = Row { g_logits, cols: p.cols, max: value_of_key(best), factor };
        let lowest = lowest_kept(&row, &params);
        draw(&row, lowest, &params, g_out);
    }
}
