//! Rows of `a` in shared memory, as they are or normalised.

use super::{Plan, WARPS};
use crate::{
    abi::GemmWhole,
    gemm_few::layout,
    ptx,
    reduce::warp_sum,
    rms_norm,
    vector::{load_f32x8, pack8, unpack8},
};

/// Bytes of a piece's columns.
const PIECE_COLUMNS: u32 = layout::TILE_K * 2;
/// Threads of a block.
const THREADS: u32 = WARPS * 32;
/// Threads that normalise a row: as many as `rms_norm` has, for the same sum of squares.
const OF_ROW: u32 = rms_norm::THREADS;
/// Loads of a thread that are on their way at once.
const AHEAD: u32 = 4;

/// Of a norm's row and weights, eights that a thread asks for at once.
const HELD: u32 = 2;

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

/// Sixteen bytes of a row.
#[derive(Clone, Copy)]
struct Chunk {
    token: u32,
    at: u32,
}

impl Chunk {
    /// Where it is if `at` is past the end of the row. Mostly a step or none: rows are about as wide as a block has threads.
    #[inline(always)]
    fn in_row(mut self, rows: Rows) -> Chunk {
        let of_row = rows.pitch - 16;
        while self.token < rows.m && self.at >= of_row {
            self = Chunk { token: self.token + 1, at: self.at - of_row };
        }
        self
    }
}

/// Their address and bytes from one to the next. And where zeros are, as many as a piece has columns, for rows that aren't there.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    plan: Plan,
    pitch: u32,
    m: u32,
}

impl Rows {
    #[inline(always)]
    pub(super) fn new(p: &GemmWhole, plan: Plan) -> Rows {
        Rows { plan, pitch: Plan::a_pitch(p.steps), m: p.m }
    }

    #[inline(always)]
    fn place(self, token: u32, byte: u32) -> u32 {
        ptx::shared_base() + self.plan.a() + token * self.pitch + byte
    }

    /// Brings the rows; `weights` are [`norm_weights`].
    ///
    /// # Safety
    /// All threads call it, with a barrier since the rows were last read and before they are read again.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) unsafe fn bring(self, p: &GemmWhole, weights: &[[f32; 8]; HELD as usize]) {
        let thread = ptx::tid_x();
        // SAFETY: the caller's promise.
        unsafe {
            if thread < PIECE_COLUMNS / 16 {
                ptx::st_shared_v4_b32(ptx::shared_base() + self.plan.zeros() + thread * 16, [0; 4]);
            }
            if p.norm_x == 0 {
                self.copy(p);
            } else {
                self.normalise(p, weights);
            }
        }
    }

    /// # Safety
    /// As [`Rows::bring`].
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn copy(self, p: &GemmWhole) {
        // Chunks of 16 bytes of all rows, of whole pieces: the thread's next one.
        let mut next = Chunk { token: 0, at: ptx::tid_x() * 16 }.in_row(self);
        while next.token < self.m {
            let mut places = [next; AHEAD as usize];
            let mut chunks = [[0; 4]; AHEAD as usize];
            for i in 0..AHEAD as usize {
                places[i] = next;
                if next.token < self.m && next.at < p.k * 2 {
                    let g_row = p.a + u64::from(next.token) * u64::from(p.k) * 2;
                    // SAFETY: inside of the row. Not by way of the read-only cache: in a chain this launch wrote it.
                    chunks[i] = unsafe { ptx::ld_global_v4_b32(g_row + u64::from(next.at)) };
                }
                next = Chunk { at: next.at + THREADS * 16, ..next }.in_row(self);
            }
            for i in 0..AHEAD as usize {
                let Chunk { token, at } = places[i];
                if token < self.m {
                    // SAFETY: the thread's own place; of columns past the end, zeros.
                    unsafe { ptx::st_shared_v4_b32(self.place(token, at), chunks[i]) };
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
    unsafe fn normalise(self, p: &GemmWhole, weights: &[[f32; 8]; HELD as usize]) {
        let (half, thread) = (ptx::tid_x() / OF_ROW, ptx::tid_x() % OF_ROW);
        let warps = OF_ROW / 32;
        let s_squares = ptx::shared_base() + self.plan.squares() + half * warps * 4;
        let mut first = 0;
        while first < self.m {
            let token = first + half;
            let g_row = u64::from(token) * u64::from(p.k) * 2;
            let mut squares = 0.0;
            let mut col = thread * 8;
            // SAFETY: a row that isn't there is neither read nor written. A thread reads again what it wrote itself.
            unsafe {
                while token < self.m && col * 2 < self.pitch - 16 {
                    let mut chunks = [[0; 4]; HELD as usize];
                    for i in 0..HELD {
                        let col = col + i * OF_ROW * 8;
                        if col < p.k {
                            // Not by way of the read-only cache: in a chain this launch wrote it.
                            chunks[i as usize] = ptx::ld_global_v4_b32(p.norm_x + g_row + u64::from(col) * 2);
                        }
                    }
                    for i in 0..HELD {
                        // Of columns past the end, zeros.
                        let chunk = chunks[i as usize];
                        for value in unpack8(chunk) {
                            squares = ptx::fma(value, value, squares);
                        }
                        let at = (col + i * OF_ROW * 8) * 2;
                        if at < self.pitch - 16 {
                            ptx::st_shared_v4_b32(self.place(token, at), chunk);
                        }
                    }
                    col += HELD * OF_ROW * 8;
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
                let (mut col, mut index) = (thread * 8, 0);
                while token < self.m && col < p.k {
                    let mut h = unpack8(ptx::ld_shared_v4_b32(self.place(token, col * 2)));
                    let weight = match index {
                        0 => weights[0],
                        1 => weights[1],
                        _ => load_f32x8(p.norm_weight + u64::from(col) * 4),
                    };
                    index += 1;
                    for i in 0..8 {
                        h[i] = h[i] * inverse * weight[i];
                    }
                    let chunk = pack8(h);
                    ptx::st_shared_v4_b32(self.place(token, col * 2), chunk);
                    if ptx::ctaid_x() == 0 {
                        ptx::st_global_v4_b32(p.a + g_row + u64::from(col) * 2, chunk);
                    }
                    col += OF_ROW * 8;
                }
                // The next rows' sums take the place of these.
                ptx::bar_sync();
            }
            first += THREADS / OF_ROW;
        }
    }

    /// Where the lane's row of the matrices of piece `step` is, and how far it is to the next piece's: nowhere, if it isn't there.
    #[inline(always)]
    pub(super) fn columns(self, step: u32) -> (u32, u32) {
        let lane = ptx::here(ptx::tid_x()) % 32;
        let (token, chunk) = (lane % 8, lane / 8 * 16);
        if token < self.m {
            (self.place(token, step * PIECE_COLUMNS + chunk), PIECE_COLUMNS)
        } else {
            (ptx::shared_base() + self.plan.zeros() + chunk, 0)
        }
    }
}
