//! What prefill and decode attention share: copies of paged keys and values, masks, online softmax, and the two products.
//!
//! In a fragment of scores (16 queries x 8 keys), with `g = lane / 4` and `t = lane % 4`, registers 0 and 1 are keys `2t` and
//! `2t + 1` of query `g`, registers 2 and 3 those of query `g + 8`. So a lane holds parts of two rows, and the four lanes of
//! a quad share them.

use core::f32::consts::LOG2_E;

use crate::{
    element::Element,
    ptx,
    tile::{
        fragment::{load_b_pair, load_b_pair_trans},
        swizzle,
    },
};

/// The keys a query sees: `start..end`, empty if `end <= start`.
#[derive(Clone, Copy)]
pub(crate) struct KeyRange {
    pub start: i32,
    pub end: i32,
}

/// The mask of a sequence.
#[derive(Clone, Copy)]
pub(crate) struct Mask {
    pub kv_len: i32,
    /// 0 for none.
    pub window: i32,
    pub causal: bool,
}

impl Mask {
    /// `window` past 2^30 is as good as 2^30, and keeps the sums below within an `i32`.
    #[inline(always)]
    pub(crate) fn new(kv_len: u32, window: u32, causal: bool) -> Self {
        Self { kv_len: kv_len as i32, window: window.min(1 << 30) as i32, causal }
    }

    /// What the query at `position` sees.
    #[inline(always)]
    pub(crate) fn range(&self, position: i32) -> KeyRange {
        let start = if self.window > 0 { (position - self.window + 1).max(0) } else { 0 };
        let end = if self.causal {
            position + 1
        } else if self.window > 0 {
            position + self.window
        } else {
            self.kv_len
        };
        KeyRange { start, end: end.min(self.kv_len) }
    }
}

/// A sequence's keys and values of one head.
#[derive(Clone, Copy)]
pub(crate) struct PagedKv {
    pub k_cache: u64,
    pub v_cache: u64,
    /// The sequence's row of the block table.
    pub g_pages: u64,
    pub page_size: u32,
    pub kv_heads: u32,
    pub kv_head: u32,
    /// The row of its pages that the first key stands in.
    pub first_row: u32,
}

impl PagedKv {
    /// Starts the copy of keys and values `first..first + ROWS` into the tiles `s_k` and `s_v`. Those outside `range` become
    /// zeros, and neither their pages nor the table's entries are read: a page that no query sees may be dead.
    ///
    /// # Safety
    /// The tiles must be free; the table must cover `range`.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(crate) unsafe fn copy<const ROWS: u32, const CHUNKS: u32, const THREADS: u32>(
        &self,
        s_k: u32,
        s_v: u32,
        first: u32,
        range: KeyRange,
    ) {
        let page_size = self.page_size.max(1);
        // Offsets kept over the tiles would take registers that the largest heads don't have.
        let tid = ptx::here(ptx::tid_x());
        for step in 0..ROWS * CHUNKS / THREADS {
            let index = step * THREADS + tid;
            let (row, chunk) = (index / CHUNKS, index % CHUNKS);
            let key = first + row;
            let seen = key as i32 >= range.start && (key as i32) < range.end;
            let mut offset = 0;
            if seen {
                let place = self.first_row + key;
                // SAFETY: the table covers the range.
                let page = unsafe { ptx::ld_global_nc_b32(self.g_pages + u64::from(place / page_size) * 4) };
                let head = u64::from(page) * u64::from(self.kv_heads) + u64::from(self.kv_head);
                let token = head * u64::from(page_size) + u64::from(place % page_size);
                offset = (token * u64::from(CHUNKS) + u64::from(chunk)) * 16;
            }
            let (to, bytes) = (swizzle::<CHUNKS>(row, chunk), 16 * seen as u32);
            // SAFETY: a page's tokens are in the cache; without bytes only the caches' addresses must be valid.
            unsafe {
                ptx::cp_async_16(s_k + to, self.k_cache + offset, bytes);
                ptx::cp_async_16(s_v + to, self.v_cache + offset, bytes);
            }
        }
    }
}

/// How products become base-2 exponents.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    pub scale: f32,
    pub softcap: f32,
}

impl Scale {
    #[inline(always)]
    pub(crate) fn apply<const N_TILES: usize>(&self, s: &mut [[f32; 4]; N_TILES]) {
        if self.softcap == 0.0 {
            let factor = self.scale * LOG2_E;
            for tile in s.iter_mut() {
                for value in tile.iter_mut() {
                    *value *= factor;
                }
            }
        } else {
            // tanh(x) = 1 - 2 / (1 + e^2x), whose error is that of f32 where `tanh.approx` has 2^-11.
            let (inner, outer) = (self.scale / self.softcap * (2.0 * LOG2_E), self.softcap * LOG2_E);
            for tile in s.iter_mut() {
                for value in tile.iter_mut() {
                    *value = outer * (1.0 - 2.0 * ptx::rcp(1.0 + ptx::ex2(*value * inner)));
                }
            }
        }
    }
}

/// Sets the scores of keys outside each row's range to -inf. `first_key` is the fragment's first key.
#[inline(always)]
pub(crate) fn mask<const N_TILES: usize>(s: &mut [[f32; 4]; N_TILES], first_key: u32, rows: [KeyRange; 2]) {
    for n in 0..N_TILES {
        for i in 0..4 {
            let key = (first_key + n as u32 * 8 + ptx::lane() % 4 * 2 + (i as u32 & 1)) as i32;
            let range = rows[i / 2];
            if key < range.start || key >= range.end {
                s[n][i] = f32::NEG_INFINITY;
            }
        }
    }
}

/// The largest of a quad's values, in each of its lanes.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn quad_max(value: f32) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let value = ptx::max(value, ptx::shfl_bfly_f32(value, 1));
        ptx::max(value, ptx::shfl_bfly_f32(value, 2))
    }
}

/// The sum of a quad's values, in each of its lanes.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn quad_sum(value: f32) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let value = value + ptx::shfl_bfly_f32(value, 1);
        value + ptx::shfl_bfly_f32(value, 2)
    }
}

/// The state of the online softmax and its output, of a lane's two rows.
pub(crate) struct Softmax<const D_TILES: usize> {
    /// Largest score so far, of the row; -inf before any.
    pub max: [f32; 2],
    /// Sum of the exponentials of this lane's keys.
    pub sum: [f32; 2],
    /// Unnormalised output, `D_TILES` fragments of 16 x 8.
    pub out: [[f32; 4]; D_TILES],
}

impl<const D_TILES: usize> Softmax<D_TILES> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self { max: [f32::NEG_INFINITY; 2], sum: [0.0; 2], out: [[0.0; 4]; D_TILES] }
    }

    /// Turns scores into exponentials under the new maximum, and brings sum and output under it.
    ///
    /// # Safety
    /// The whole warp calls it.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(crate) unsafe fn update<const N_TILES: usize>(&mut self, s: &mut [[f32; 4]; N_TILES]) {
        for r in 0..2 {
            let mut max = self.max[r];
            for n in 0..N_TILES {
                max = ptx::max(max, ptx::max(s[n][2 * r], s[n][2 * r + 1]));
            }
            // SAFETY: the whole warp is here.
            let max = unsafe { quad_max(max) };
            // A row that has seen nothing stays at -inf; -inf less -inf would be NaN.
            let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
            let rescale = ptx::ex2(self.max[r] - base);
            self.max[r] = max;
            let mut sum = 0.0;
            for n in 0..N_TILES {
                for i in 2 * r..2 * r + 2 {
                    s[n][i] = ptx::ex2(s[n][i] - base);
                    sum += s[n][i];
                }
            }
            self.sum[r] = ptx::fma(self.sum[r], rescale, sum);
            for d in 0..D_TILES {
                self.out[d][2 * r] *= rescale;
                self.out[d][2 * r + 1] *= rescale;
            }
        }
    }

    /// Adds the product of exponentials and values; the values are rows `first_row..` of the tile `s_v`.
    ///
    /// # Safety
    /// The whole warp calls it; the tile has landed.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(crate) unsafe fn add_values<E: Element, const CHUNKS: u32, const N_TILES: usize>(
        &mut self,
        s: &[[f32; 4]; N_TILES],
        s_v: u32,
        first_row: u32,
    ) {
        for k in 0..N_TILES / 2 {
            // Two fragments of scores are, element for element, one operand of 16 x 16.
            let (lo, hi) = (s[2 * k], s[2 * k + 1]);
            let a =
                [E::pack(lo[0], lo[1]), E::pack(lo[2], lo[3]), E::pack(hi[0], hi[1]), E::pack(hi[2], hi[3])];
            for d in 0..D_TILES / 2 {
                // SAFETY: the caller's promise.
                unsafe {
                    let b = load_b_pair_trans::<CHUNKS>(s_v, first_row + k as u32 * 16, d as u32 * 2);
                    self.out[2 * d] = E::mma(a, b[0], self.out[2 * d]);
                    self.out[2 * d + 1] = E::mma(a, b[1], self.out[2 * d + 1]);
                }
            }
        }
    }
}

/// Products of 16 queries with the keys in rows `first_row..first_row + 8 * N_TILES` of the tile `s_k`. `q` answers the queries'
/// operand of each step of 16 elements.
///
/// # Safety
/// The whole warp calls it; the tile has landed.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn scores<E: Element, const CHUNKS: u32, const K_STEPS: usize, const N_TILES: usize>(
    q: impl Fn(usize) -> [u32; 4],
    s_k: u32,
    first_row: u32,
) -> [[f32; 4]; N_TILES] {
    let mut s = [[0.0f32; 4]; N_TILES];
    for k in 0..K_STEPS {
        let a = q(k);
        for n in 0..N_TILES / 2 {
            // SAFETY: the caller's promise.
            unsafe {
                let b = load_b_pair::<CHUNKS>(s_k, first_row + n as u32 * 16, k as u32 * 2);
                s[2 * n] = E::mma(a, b[0], s[2 * n]);
                s[2 * n + 1] = E::mma(a, b[1], s[2 * n + 1]);
            }
        }
    }
    s
}
