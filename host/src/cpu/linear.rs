//! `x * w^T` for any number of rows, bit for bit the same whatever that number.
//!
//! Every output is `((0 + block_0) + block_1) + ...`, where a block sums [`K_BLOCK`] products in ascending order with fused
//! multiply-adds. Few rows stream the packed weights straight through registers; many rows widen a block of a panel once into a
//! buffer that stays in the first-level cache and take it through register tiles. Both spell out that same sum. The `gemm`
//! crate is not used because its order of summation follows from the shapes: a row would change with the rows beside it.
use std::cell::RefCell;

use super::isa::{Isa, Kernel, LANES, Level};
use super::matrix::{CpuMatrix, Panels};
use super::parallel::{self, Shared};
use super::quantized;
use super::tensor::{CpuTensor, CpuVector, round_to_bf16};
use crate::Tensor;

/// Products summed before they join the total: short enough for accuracy, and 256 * 16 floats are half a first-level cache.
const K_BLOCK: usize = 256;
/// Rows of a register tile: 6 * 2 accumulators and a panel's column fill AVX2's sixteen registers.
pub(super) const TILE_ROWS: usize = 6;
/// Rows that a task takes through its panels: a `K_BLOCK` of them stays in a 512 KiB second-level cache.
pub(super) const TASK_ROWS: usize = 32 * TILE_ROWS;
/// Panels a task.
pub(super) const TASK_PANELS: usize = 8;
/// Weights, in bytes, whose product with one row takes as long as waking a thread.
pub(super) const WORTH_A_TASK: usize = 64 * 1024;

/// An element that widens to f32 sixteen at a time.
pub(super) trait Element: Copy {
    /// # Safety
    /// Sixteen elements are readable at `at`.
    unsafe fn load<I: Isa>(isa: I, at: *const Self) -> I::V;
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Bf16(u16);
#[derive(Clone, Copy)]
#[repr(transparent)]
struct F16(u16);

impl Element for Bf16 {
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, at: *const Self) -> I::V {
        // SAFETY: the caller's.
        unsafe { isa.load_bf16(at.cast()) }
    }
}
impl Element for F16 {
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, at: *const Self) -> I::V {
        // SAFETY: the caller's.
        unsafe { isa.load_f16(at.cast()) }
    }
}
impl Element for f32 {
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, at: *const Self) -> I::V {
        // SAFETY: the caller's.
        unsafe { isa.load(at) }
    }
}

/// With more rows than this the optimiser would derive their addresses from the first's on every turn of the loop, which costs as
/// many instructions as the loads; it is kept from seeing how they hang together.
const OPAQUE_ROWS: usize = 3;

/// Adds `a[r][i] * b[p][i][0..16]` to `acc[r][p]` for `i` in `0..k`, in that order.
///
/// # Safety
/// `a` has `ROWS` rows of `k`, `a_stride` apart. `b` has `PANELS` panels, `b_panel` apart, of `k` vectors, `b_step` apart.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn accumulate<I: Isa, E: Element, const ROWS: usize, const PANELS: usize>(
    isa: I,
    mut acc: [[I::V; PANELS]; ROWS],
    a: *const f32,
    a_stride: usize,
    b: *const E,
    b_step: usize,
    b_panel: usize,
    k: usize,
) -> [[I::V; PANELS]; ROWS] {
    // SAFETY: the rows are there.
    let mut rows: [*const f32; ROWS] = std::array::from_fn(|r| unsafe { a.add(r * a_stride) });
    if ROWS > OPAQUE_ROWS {
        rows = std::hint::black_box(rows);
    }
    for i in 0..k {
        let mut columns = [isa.zero(); PANELS];
        for (p, column) in columns.iter_mut().enumerate() {
            // SAFETY: `p < PANELS`, `i < k`.
            *column = unsafe { E::load(isa, b.add(p * b_panel + i * b_step)) };
        }
        for (sums, row) in acc.iter_mut().zip(rows) {
            // SAFETY: `i < k`.
            let x = isa.splat(unsafe { *row.add(i) });
            for (sum, &column) in sums.iter_mut().zip(&columns) {
                *sum = isa.fma(x, column, *sum);
            }
        }
    }
    acc
}

/// What a product does with its sums.
#[derive(Clone, Copy)]
pub(super) struct Epilogue<'a> {
    pub(super) bias: Option<&'a CpuVector>,
    /// Adds to what the output holds.
    pub(super) residual: bool,
    pub(super) round: bool,
}

/// A product under way.
#[derive(Clone, Copy)]
struct Product<'a> {
    x: &'a CpuTensor,
    w: &'a CpuMatrix,
    out: Shared<f32>,
    out_stride: usize,
    epilogue: Epilogue<'a>,
}

/// `out = epilogue(x * w^T)`. Shapes were checked.
pub(super) fn linear(
    level: Level,
    x: &CpuTensor,
    w: &CpuMatrix,
    epilogue: Epilogue<'_>,
    out: &mut CpuTensor,
) {
    if let Panels::Quantized(parts) = &w.panels {
        return quantized::linear(level, x, parts, epilogue, out);
    }
    let (m, panels) = (x.rows(), w.rows.div_ceil(LANES));
    if m == 0 || panels == 0 {
        return;
    }
    let out_stride = out.stride();
    let product = Product { x, w, out: out.shared(), out_stride, epilogue };
    if m <= TILE_ROWS {
        let tasks = (w.bytes() / WORTH_A_TASK).clamp(1, parallel::threads()).min(panels);
        parallel::run(tasks, |task| {
            level.run(FewRows { product, first: panels * task / tasks, end: panels * (task + 1) / tasks });
        });
    } else {
        let groups = panels.div_ceil(TASK_PANELS);
        parallel::run(m.div_ceil(TASK_ROWS) * groups, |task| {
            let (row, panel) = (task / groups * TASK_ROWS, task % groups * TASK_PANELS);
            level.run(ManyRows {
                product,
                rows: row..(row + TASK_ROWS).min(m),
                panels: panel..(panel + TASK_PANELS).min(panels),
            });
        });
    }
}

impl Product<'_> {
    /// Writes the sums of one row and panel out.
    ///
    /// # Safety
    /// Row and panel are within the output, and no other thread has them.
    #[inline(always)]
    unsafe fn finish<I: Isa>(&self, isa: I, row: usize, panel: usize, mut sum: I::V) {
        let col = panel * LANES;
        if let Some(bias) = self.epilogue.bias {
            // SAFETY: a bias is padded to whole vectors and as long as the output's columns.
            sum = isa.add(sum, unsafe { isa.load(bias.padded().as_ptr().add(col)) });
        }
        // SAFETY: rows are padded to whole vectors.
        let out = unsafe { self.out.at(row * self.out_stride + col) };
        if self.epilogue.residual {
            // SAFETY: as above.
            sum = isa.add(unsafe { isa.load(out) }, sum);
        }
        if self.epilogue.round {
            sum = isa.vector(&isa.to_array(sum).map(round_to_bf16));
        }
        // SAFETY: as above.
        unsafe { isa.store(out, sum) };
    }
}

/// At most [`TILE_ROWS`] rows: bound by the reading of the weights.
struct FewRows<'a> {
    product: Product<'a>,
    first: usize,
    end: usize,
}

impl Kernel for FewRows<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match &self.product.w.panels {
            Panels::Bf16(bits) => self.typed(isa, bits.as_ptr().cast::<Bf16>()),
            Panels::F16(bits) => self.typed(isa, bits.as_ptr().cast::<F16>()),
            Panels::F32(values) => self.typed(isa, values.as_ptr()),
            Panels::Quantized(_) => {}
        }
    }
}

impl FewRows<'_> {
    #[inline(always)]
    fn typed<I: Isa, E: Element>(&self, isa: I, weights: *const E) {
        // Enough panels at once that the latency of the additions is hidden.
        match self.product.x.rows() {
            1 => self.panels::<I, E, 1, 4>(isa, weights),
            2 => self.panels::<I, E, 2, 2>(isa, weights),
            3 => self.panels::<I, E, 3, 2>(isa, weights),
            4 => self.panels::<I, E, 4, 1>(isa, weights),
            5 => self.panels::<I, E, 5, 1>(isa, weights),
            _ => self.panels::<I, E, 6, 1>(isa, weights),
        }
    }

    #[inline(always)]
    fn panels<I: Isa, E: Element, const ROWS: usize, const PANELS: usize>(&self, isa: I, weights: *const E) {
        let mut panel = self.first;
        while panel + PANELS <= self.end {
            self.sums::<I, E, ROWS, PANELS>(isa, weights, panel);
            panel += PANELS;
        }
        while panel < self.end {
            self.sums::<I, E, ROWS, 1>(isa, weights, panel);
            panel += 1;
        }
    }

    #[inline(always)]
    fn sums<I: Isa, E: Element, const ROWS: usize, const PANELS: usize>(
        &self,
        isa: I,
        weights: *const E,
        panel: usize,
    ) {
        let Product { x, w, .. } = self.product;
        let k = w.cols;
        let mut total = [[isa.zero(); PANELS]; ROWS];
        for from in (0..k).step_by(K_BLOCK) {
            // SAFETY: `x` has `ROWS` rows of `k` elements; `panel + PANELS` panels of `k` vectors exist.
            let block = unsafe {
                let (a, b) = (x.elems().as_ptr().add(from), weights.add((panel * k + from) * LANES));
                let zero = [[isa.zero(); PANELS]; ROWS];
                accumulate(isa, zero, a, x.stride(), b, LANES, k * LANES, K_BLOCK.min(k - from))
            };
            for (total, block) in total.as_flattened_mut().iter_mut().zip(block.as_flattened()) {
                *total = isa.add(*total, *block);
            }
        }
        for (r, sums) in total.into_iter().enumerate() {
            for (p, sum) in sums.into_iter().enumerate() {
                // SAFETY: this task alone has these panels.
                unsafe { self.product.finish(isa, r, panel + p, sum) };
            }
        }
    }
}

thread_local! {
    /// A widened block of a panel, then the totals of a task between its blocks.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A block of a panel's columns, as floats.
struct Block<'a> {
    panel: usize,
    widened: &'a [f32],
    /// The first of its columns.
    from: usize,
    /// It ends with the last column.
    last: bool,
}

/// A block of rows by a group of panels: bound by arithmetic.
struct ManyRows<'a> {
    product: Product<'a>,
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
}

impl Kernel for ManyRows<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        // Taken out rather than borrowed: a closure would not carry the target features.
        let mut scratch = SCRATCH.take();
        scratch.resize(K_BLOCK * LANES + TASK_PANELS * TASK_ROWS * LANES, 0.0);
        match &self.product.w.panels {
            Panels::Bf16(bits) => self.typed(isa, bits.as_ptr().cast::<Bf16>(), &mut scratch),
            Panels::F16(bits) => self.typed(isa, bits.as_ptr().cast::<F16>(), &mut scratch),
            Panels::F32(values) => self.typed(isa, values.as_ptr(), &mut scratch),
            Panels::Quantized(_) => {}
        }
        SCRATCH.set(scratch);
    }
}

impl ManyRows<'_> {
    #[inline(always)]
    fn typed<I: Isa, E: Element>(&self, isa: I, weights: *const E, scratch: &mut [f32]) {
        let k = self.product.w.cols;
        let (widened, totals) = scratch.split_at_mut(K_BLOCK * LANES);
        // Without columns there is one empty block: it still writes the outputs.
        for from in (0..k.max(1)).step_by(K_BLOCK) {
            let len = K_BLOCK.min(k - from);
            for panel in self.panels.clone() {
                for i in 0..len {
                    // SAFETY: the panel has `k` vectors and the buffer `K_BLOCK`.
                    unsafe {
                        let column = E::load(isa, weights.add((panel * k + from + i) * LANES));
                        isa.store(widened.as_mut_ptr().add(i * LANES), column);
                    }
                }
                let at = (panel - self.panels.start) * TASK_ROWS * LANES;
                let block = Block { panel, widened: &widened[..len * LANES], from, last: from + len == k };
                self.rows(isa, &block, &mut totals[at..][..TASK_ROWS * LANES]);
            }
        }
    }

    /// Adds one block's sums of all rows to `totals`; the last block's to the outputs.
    #[inline(always)]
    fn rows<I: Isa>(&self, isa: I, block: &Block<'_>, totals: &mut [f32]) {
        let mut row = 0;
        let rows = self.rows.len();
        while row + TILE_ROWS <= rows {
            self.tile::<I, TILE_ROWS>(isa, block, row, totals);
            row += TILE_ROWS;
        }
        match rows - row {
            0 => {}
            1 => self.tile::<I, 1>(isa, block, row, totals),
            2 => self.tile::<I, 2>(isa, block, row, totals),
            3 => self.tile::<I, 3>(isa, block, row, totals),
            4 => self.tile::<I, 4>(isa, block, row, totals),
            _ => self.tile::<I, 5>(isa, block, row, totals),
        }
    }

    #[inline(always)]
    fn tile<I: Isa, const ROWS: usize>(&self, isa: I, block: &Block<'_>, row: usize, totals: &mut [f32]) {
        let (x, &Block { panel, widened, from, last }) = (self.product.x, block);
        let first_row = self.rows.start + row;
        // SAFETY: `x` has `ROWS` rows from here, `widened` as many vectors as are asked for, `totals` a vector a row; this task
        // alone has these rows and panels.
        unsafe {
            let a = x.elems().as_ptr().add(first_row * x.stride() + from);
            let zero = [[isa.zero(); 1]; ROWS];
            let sums =
                accumulate(isa, zero, a, x.stride(), widened.as_ptr(), LANES, 0, widened.len() / LANES);
            for (r, [sum]) in sums.into_iter().enumerate() {
                let total = totals.as_mut_ptr().add((row + r) * LANES);
                let before = if from == 0 { isa.zero() } else { isa.load(total) };
                let sum = isa.add(before, sum);
                if last {
                    self.product.finish(isa, first_row + r, panel, sum);
                } else {
                    isa.store(total, sum);
                }
            }
        }
    }
}
