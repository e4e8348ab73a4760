//! Rows of `a` in shared memory, as they are or normalised.

use super::{PAD, Plan};
use crate::{
    abi::GemmWhole,
    gemm_few::exchange::has_hole,
    ptx,
    reduce::warp_sum,
    rms_norm,
    vector::{load_f32x8, pack8, unpack8},
};

/// Threads that normalise a row: as many as `rms_norm` has, for the same sum of squares.
const OF_ROW: u32 = rms_norm::THREADS;
/// Loads of a thread that are on their way at once.
const LOADS: usize = 4;
/// Of a norm's row and weights, eights that a thread asks for at once.
pub(super) const HELD: u32 = 2;

/// The first of the thread's weights of a norm, if there is one: read while other blocks are still at work. After all that a launch reads of weights
/// they come from memory.
///
/// # Safety
/// The parameters are those of a product.
#[inline(always)]
pub(super) unsafe fn norm_weights(p: &GemmWhole) -> [[f32; 8]; HELD as usize] {
    let mut weights = [[0.0; 8]; HELD as usize];
    for i in 0..HELD {
        let col = (ptx::tid_x() % OF_ROW + i * OF_ROW) * 8;
        if p.norm_x != 0 && col < p.k {
            // SAFETY: the caller's promise; the column is one of the norm's.
            weights[i as usize] = unsafe { load_f32x8(p.norm_weight + u64::from(col) * 4) };
        }
    }
    weights
}

/// Eight columns of a row.
#[derive(Clone, Copy)]
struct Eight {
    token: u32,
    /// The first of them.
    col: u32,
}

impl Eight {
    /// Where it is if `col` is past the end of the row. Mostly a step or none: rows are about as wide as a block has threads.
    #[inline(always)]
    fn in_row(mut self, rows: Rows) -> Eight {
        while self.token < rows.m && self.col >= rows.cols() {
            self = Eight { token: self.token + 1, col: self.col - rows.cols() };
        }
        self
    }
}

/// The rows in shared memory, each as the products' operands: of 32 columns the lane that multiplies the pairs `q` of all eights finds them behind each other.
///
/// ```text
/// columns    0 1 | 8 9 | 16 17 | 24 25     2 3 | 10 11 | 18 19 | 26 27     4 5 | ...     6 7 | ...     32 33 | ...
///            q = 0                         q = 1                           q = 2         q = 3         q = 0
/// ```
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub plan: Plan,
    pitch: u32,
    m: u32,
}

impl Rows {
    #[inline(always)]
    pub(super) fn new(p: &GemmWhole, plan: Plan) -> Rows {
        Rows { plan, pitch: plan.a_pitch(p.steps), m: p.m }
    }

    /// Threads of the block.
    #[inline(always)]
    fn threads(self) -> u32 {
        self.plan.warps * 32
    }

    /// Columns of whole steps.
    #[inline(always)]
    fn cols(self) -> u32 {
        (self.pitch - PAD) / 2
    }

    #[inline(always)]
    fn place(self, token: u32, byte: u32) -> u32 {
        ptx::shared_base() + self.plan.a() + token * self.pitch + byte
    }

    /// # Safety
    /// Inside of the rows; nobody else's place.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn store(self, to: Eight, mut pairs: [u32; 4]) {
        let (line, eight) = (to.col / 32, to.col / 8 % 4);
        let s_first = self.place(to.token, line * 64 + eight * 4);
        // Lanes of other lines begin with another pair, so that those that are stored together fall on different banks.
        let turn = line / 2 % 4;
        if turn % 2 != 0 {
            pairs = [pairs[1], pairs[2], pairs[3], pairs[0]];
        }
        if turn / 2 != 0 {
            pairs = [pairs[2], pairs[3], pairs[0], pairs[1]];
        }
        for i in 0..4 {
            // SAFETY: the caller's promise.
            unsafe { ptx::st_shared_b32(s_first + (i + turn) % 4 * 16, pairs[i as usize]) };
        }
    }

    /// Brings the rows, which come as `mail` or were there when the launch began, and zeros up to the end of their steps; `weights` are [`norm_weights`].
    ///
    /// # Safety
    /// All threads call it, with a barrier since the rows were last read and before they are read again.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) unsafe fn bring(self, p: &GemmWhole, mail: Option<u64>, weights: &[[f32; 8]; HELD as usize]) {
        let g_rows = if p.norm_x == 0 { p.a } else { p.norm_x };
        let source = match mail {
            None => Source { g_rows, k: p.k, is_mail: false },
            Some(g_rows) => Source { g_rows, k: p.k, is_mail: true },
        };
        // SAFETY: the caller's promise.
        unsafe {
            if p.norm_x == 0 {
                self.copy(source);
            } else {
                self.normalise(p, source, weights);
            }
        }
    }

    /// # Safety
    /// As [`Rows::bring`].
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn copy(self, source: Source) {
        let mut next = Eight { token: 0, col: ptx::tid_x() * 8 }.in_row(self);
        while next.token < self.m {
            let mut places = [next; LOADS];
            let mut is_there = [false; LOADS];
            for i in 0..LOADS {
                places[i] = next;
                is_there[i] = next.token < self.m && next.col < source.k;
                next = Eight { col: next.col + self.threads() * 8, ..next }.in_row(self);
            }
            // SAFETY: inside of the rows.
            let chunks = unsafe { source.load(places, is_there) };
            for i in 0..LOADS {
                if places[i].token < self.m {
                    // SAFETY: the thread's own place.
                    unsafe { self.store(places[i], chunks[i]) };
                }
            }
        }
    }

    /// As [`crate::rms_norm`] without a residual, two rows at a time.
    ///
    /// # Safety
    /// As [`Rows::bring`].
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn normalise(self, p: &GemmWhole, source: Source, weights: &[[f32; 8]; HELD as usize]) {
        let (half, thread) = (ptx::tid_x() / OF_ROW, ptx::tid_x() % OF_ROW);
        let warps = OF_ROW / 32;
        let s_squares = ptx::shared_base() + self.plan.squares() + half * warps * 4;
        let mut first = 0;
        while first < self.m {
            let token = first + half;
            // The thread's `index`th eight; past the first ones it comes once for the squares and once more to be scaled.
            let eight = |index: u32| Eight { token, col: (thread + index * OF_ROW) * 8 };
            let is_there = |index: u32| token < self.m && eight(index).col < p.k;
            let mut squares = 0.0;
            // SAFETY: a row that isn't there is neither read nor written, and a place by one thread.
            unsafe {
                let held = source.load([eight(0), eight(1)], [is_there(0), is_there(1)]);
                let mut add = |chunk| {
                    for value in unpack8(chunk) {
                        squares = ptx::fma(value, value, squares);
                    }
                };
                for chunk in held {
                    add(chunk);
                }
                let mut index = HELD;
                while is_there(index) {
                    let [chunk] = source.load([eight(index)], [true]);
                    add(chunk);
                    index += 1;
                }
                let sum = warp_sum(squares);
                if ptx::lane() == 0 {
                    ptx::st_shared_b32(s_squares + thread / 32 * 4, sum.to_bits());
                }
                ptx::bar_sync();
                let mut total = 0.0;
                for warp in 0..warps {
                    total += f32::from_bits(ptx::ld_shared_b32(s_squares + warp * 4));
                }
                let inverse = ptx::rsqrt(total / p.k as f32 + p.norm_eps);
                let scale = |index: u32, chunk, weight: [f32; 8]| {
                    let mut h = unpack8(chunk);
                    for i in 0..8 {
                        h[i] = h[i] * inverse * weight[i];
                    }
                    let chunk = pack8(h);
                    self.store(eight(index), chunk);
                    if ptx::ctaid_x() == 0 {
                        ptx::st_global_v4_b32(address(p.a, p.k, eight(index)), chunk);
                    }
                };
                for index in 0..HELD {
                    if is_there(index) {
                        scale(index, held[index as usize], weights[index as usize]);
                    }
                }
                let mut index = HELD;
                while is_there(index) {
                    let weight = load_f32x8(p.norm_weight + u64::from(eight(index).col) * 4);
                    let [chunk] = source.load([eight(index)], [true]);
                    scale(index, chunk, weight);
                    index += 1;
                }
                // Behind the last column, of less than a step.
                let rest = Eight { token, col: p.k + thread * 8 };
                if token < self.m && rest.col < self.cols() {
                    self.store(rest, [0; 4]);
                }
                // The next rows' sums take the place of these.
                ptx::bar_sync();
            }
            first += self.threads() / OF_ROW;
        }
    }

    /// Where the lane's operands of `step` are, those of the next one [`Plan::step_bytes`] behind them, and whether they are: the token of other lanes isn't there.
    #[inline(always)]
    pub(super) fn operands(self, step: u32) -> (u32, bool) {
        let lane = ptx::here(ptx::tid_x()) % 32;
        let (token, q) = (lane / 4, lane % 4);
        (self.place(token, step * self.plan.step_bytes() + q * 16), token < self.m)
    }
}

/// Where eight columns of a row of `[m, k]` are.
#[inline(always)]
fn address(g_rows: u64, k: u32, at: Eight) -> u64 {
    g_rows + (u64::from(at.token) * u64::from(k) + u64::from(at.col)) * 2
}

/// Rows `[m, k]` in global memory, there or to come.
#[derive(Clone, Copy)]
struct Source {
    g_rows: u64,
    k: u32,
    is_mail: bool,
}

impl Source {
    /// Those of the eights that are there, of the others zeros. Mail is waited for.
    ///
    /// # Safety
    /// They are inside of the rows.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn load<const N: usize>(self, at: [Eight; N], is_there: [bool; N]) -> [[u32; 4]; N] {
        let mut chunks = [[0; 4]; N];
        let address = |i: usize| address(self.g_rows, self.k, at[i]);
        // SAFETY: the caller's promise.
        unsafe {
            if !self.is_mail {
                for i in 0..N {
                    if is_there[i] {
                        chunks[i] = ptx::ld_global_v4_b32(address(i));
                    }
                }
                return chunks;
            }
            // All that hasn't come is asked for together: each time is a trip to the L2.
            let mut is_missing = true;
            while is_missing {
                for i in 0..N {
                    if is_there[i] && has_hole(chunks[i]) {
                        chunks[i] = ptx::poll_relaxed_gpu_v4_u32(address(i));
                    }
                }
                is_missing = false;
                for i in 0..N {
                    is_missing |= is_there[i] && has_hole(chunks[i]);
                }
            }
            for i in 0..N {
                if is_there[i] {
                    chunks[i] = chunks[i].map(|word| !word);
                }
            }
        }
        chunks
    }
}
