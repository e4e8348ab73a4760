//! Products of many rows: bound by arithmetic.
//!
//! A task takes some rows through a group of panels, a register tile of rows after the other. The tile's rows stay in the first-level
//! cache while the group's weights stream past them out of the second-level one, panel after panel in the order of memory, as the
//! machine's prefetcher likes it. bf16 weights are widened on their way: that is two instructions of twenty, on units that
//! multiply nothing, and half the bytes of a panel widened beforehand.
use std::cell::RefCell;

use super::accumulate::{Bf16, Element, F16, accumulate, strided};
use super::isa::{Isa, Kernel, LANES};
use super::linear::{K_BLOCK, Product, TILE_ROWS};
use super::matrix::Panels;
use super::parallel;

/// Register tiles a task, at most: enough for the group's weights to be fetched once for many.
const TASK_TILES: usize = 16;
/// Panels a task, at most: a `K_BLOCK` of eight of bf16 is half a second-level cache of 512 KiB.
const TASK_PANELS: usize = 8;
/// Tasks a thread that are wanted: at the end, threads wait for less than one of them.
const TASKS_A_THREAD: usize = 16;

/// Calls `task` with the rows and panels of each task of a product of `m` rows and `panels` panels.
pub(super) fn run(
    m: usize,
    panels: usize,
    task: impl Fn(std::ops::Range<usize>, std::ops::Range<usize>) + Sync,
) {
    spread(m, panels, TASK_PANELS, task);
}

/// As [`run`], with `pairs` of a gate's panel and an up's for panels.
pub(super) fn run_gated(
    m: usize,
    pairs: usize,
    task: impl Fn(std::ops::Range<usize>, std::ops::Range<usize>) + Sync,
) {
    spread(m, pairs, TASK_PANELS / 2, task);
}

fn spread(
    m: usize,
    panels: usize,
    mut task_panels: usize,
    task: impl Fn(std::ops::Range<usize>, std::ops::Range<usize>) + Sync,
) {
    let tiles = m.div_ceil(TILE_ROWS);
    let blocks = tiles.div_ceil(TASK_TILES);
    while task_panels > 1 && blocks * panels.div_ceil(task_panels) < TASKS_A_THREAD * parallel::threads() {
        task_panels /= 2;
    }
    let groups = panels.div_ceil(task_panels);
    parallel::run(blocks * groups, |index| {
        let (block, panel) = (index / groups, index % groups * task_panels);
        let row = |block: usize| (tiles * block / blocks * TILE_ROWS).min(m);
        task(row(block)..row(block + 1), panel..(panel + task_panels).min(panels));
    });
}

thread_local! {
    /// A task's totals between blocks of columns, and a gate's until its up is there.
    static TOTALS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Rows by a group of panels.
pub(super) struct ManyRows<'a> {
    pub(super) product: Product<'a>,
    /// At most `TASK_TILES` tiles.
    pub(super) rows: std::ops::Range<usize>,
    /// At most [`TASK_PANELS`], or half as many of a gate.
    pub(super) panels: std::ops::Range<usize>,
    /// The matrix's panels are a gate's and then as many of what it gates: those of `panels` are taken together.
    pub(super) gated: bool,
}

/// Columns `from..from + len` of the weights.
#[derive(Clone, Copy)]
struct Block<E> {
    weights: *const E,
    from: usize,
    len: usize,
    /// They end with the last column.
    last: bool,
    /// Totals of later rows have a place of their own: there is more than one block.
    apart: bool,
}

impl Kernel for ManyRows<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        // Taken out rather than borrowed: a closure would not carry the target features.
        let mut totals = TOTALS.take();
        totals.resize(TASK_TILES * TILE_ROWS * TASK_PANELS * LANES, 0.0);
        match &self.product.w.panels {
            Panels::Bf16(bits) => self.typed(isa, bits.as_ptr().cast::<Bf16>(), &mut totals),
            Panels::F16(bits) => self.typed(isa, bits.as_ptr().cast::<F16>(), &mut totals),
            Panels::F32(values) => self.typed(isa, values.as_ptr(), &mut totals),
            Panels::Quantized(_) => {}
        }
        TOTALS.set(totals);
    }
}

impl ManyRows<'_> {
    #[inline(always)]
    fn typed<I: Isa, E: Element>(&self, isa: I, weights: *const E, totals: &mut [f32]) {
        let k = self.product.w.cols;
        // Without columns there is one empty block: it still writes the outputs.
        for from in (0..k.max(1)).step_by(K_BLOCK) {
            let len = K_BLOCK.min(k - from);
            let block = Block { weights, from, len, last: from + len == k, apart: k > K_BLOCK };
            let mut row = 0;
            while row < self.rows.len() {
                let at = if block.apart { row * TASK_PANELS * LANES } else { 0 };
                let totals = &mut totals[at..][..TILE_ROWS * TASK_PANELS * LANES];
                match self.rows.len() - row {
                    1 => self.tile::<I, E, 1>(isa, block, row, totals),
                    2 => self.tile::<I, E, 2>(isa, block, row, totals),
                    3 => self.tile::<I, E, 3>(isa, block, row, totals),
                    4 => self.tile::<I, E, 4>(isa, block, row, totals),
                    5 => self.tile::<I, E, 5>(isa, block, row, totals),
                    _ => self.tile::<I, E, TILE_ROWS>(isa, block, row, totals),
                }
                row += TILE_ROWS;
            }
        }
    }

    /// Takes a tile of rows through a block of all panels. `totals` is `[TILE_ROWS, TASK_PANELS, 16]`.
    #[inline(always)]
    fn tile<I: Isa, E: Element, const ROWS: usize>(
        &self,
        isa: I,
        block: Block<E>,
        row: usize,
        totals: &mut [f32],
    ) {
        let first_row = self.rows.start + row;
        let (x, k) = (self.product.x, self.product.w.cols);
        let (count, half) = (self.panels.len(), self.product.w.rows / LANES / 2);
        let taken = if self.gated { 2 * count } else { count };
        // SAFETY: `x` has `ROWS` rows from here.
        let rows = unsafe {
            strided::<ROWS>(x.elems().as_ptr().add(first_row * x.stride() + block.from), x.stride())
        };
        for index in 0..taken {
            let up = index >= count;
            let panel = self.panels.start + if up { half + index - count } else { index };
            // SAFETY: the panel has `k` vectors, of which these are `len`; `totals` has `ROWS` rows of `taken` vectors; this task
            // alone has these rows and panels.
            unsafe {
                if block.last && !self.gated {
                    (0..ROWS).for_each(|r| {
                        isa.prefetch_write(self.product.out_at(first_row + r, panel).cast_const().cast());
                    });
                }
                let columns = block.weights.add((panel * k + block.from) * LANES);
                let zero = [[isa.zero(); 1]; ROWS];
                let sums = accumulate::<I, E, ROWS, 1, 1>(isa, zero, rows, columns, LANES, 0, block.len);
                for (r, [sum]) in sums.into_iter().enumerate() {
                    let totals = totals.as_mut_ptr().add(r * TASK_PANELS * LANES);
                    let total = totals.add(index * LANES);
                    let before = if block.from == 0 { isa.zero() } else { isa.load(total) };
                    let sum = isa.add(before, sum);
                    if !block.last || self.gated && !up {
                        isa.store(total, sum);
                    } else if up {
                        let gate = isa.load(totals.add((index - count) * LANES));
                        self.product.finish_gated(isa, first_row + r, panel - half, gate, sum);
                    } else {
                        self.product.finish(isa, first_row + r, panel, sum);
                    }
                }
            }
        }
    }
}
