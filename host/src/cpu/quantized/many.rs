use std::cell::RefCell;

use super::pack::Segment;
use super::{Code, Eight, Four, Product, TASK_PANELS, TASK_ROWS, TILE_ROWS};
use crate::CodeBits;
use crate::cpu::accumulate::{accumulate, strided};
use crate::cpu::isa::{Isa, Kernel, LANES};

/// Columns of the longest segment, padding included.
const SEGMENT_COLS: usize = 256;

thread_local! {
    /// A panel's segment as floats, then the running totals of a task.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A segment of a panel, ready to be multiplied.
struct Block<'a, I: Isa> {
    widened: &'a [f32],
    /// The first of its packed columns.
    from: usize,
    segment: usize,
    scale: I::V,
    zero: I::V,
}

/// A block of rows by a group of panels: bound by arithmetic.
pub(super) struct ManyRows<'a> {
    pub(super) product: Product<'a>,
    pub(super) rows: std::ops::Range<usize>,
    pub(super) panels: std::ops::Range<usize>,
}

impl Kernel for ManyRows<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        // Taken out rather than borrowed: a closure would not carry the target features.
        let mut scratch = SCRATCH.take();
        scratch.resize(SEGMENT_COLS * LANES + TASK_PANELS * TASK_ROWS * LANES, 0.0);
        match self.product.part.bits {
            CodeBits::Four => self.coded::<I, Four>(isa, &mut scratch),
            CodeBits::Eight => self.coded::<I, Eight>(isa, &mut scratch),
        }
        SCRATCH.set(scratch);
    }
}

impl ManyRows<'_> {
    #[inline(always)]
    fn coded<I: Isa, C: Code>(&self, isa: I, scratch: &mut [f32]) {
        let (widened, totals) = scratch.split_at_mut(SEGMENT_COLS * LANES);
        totals.fill(0.0);
        for (index, &segment) in self.product.part.segments.iter().enumerate() {
            for panel in self.panels.clone() {
                let group = self.product.part.group(panel, segment.group);
                // SAFETY: a group has sixteen scales and as many zero points.
                let (scale, zero) =
                    unsafe { (isa.load(group.as_ptr()), isa.load(group.as_ptr().add(LANES))) };
                self.widen::<I, C>(isa, segment, panel, widened);
                let at = (panel - self.panels.start) * TASK_ROWS * LANES;
                let block = Block {
                    widened: &widened[..segment.blocks * C::CODES * LANES],
                    from: segment.block * C::CODES,
                    segment: index,
                    scale,
                    zero,
                };
                self.rows(isa, &block, &mut totals[at..][..TASK_ROWS * LANES]);
            }
        }
        for panel in self.panels.clone() {
            for row in self.rows.clone() {
                let at = ((panel - self.panels.start) * TASK_ROWS + row - self.rows.start) * LANES;
                // SAFETY: the totals hold `TASK_PANELS * TASK_ROWS` vectors; this task alone has these rows and panels.
                unsafe { self.product.finish(isa, row, panel, isa.load(totals.as_ptr().add(at))) };
            }
        }
    }

    /// A panel's codes of a segment, each times its place's value.
    #[inline(always)]
    fn widen<I: Isa, C: Code>(&self, isa: I, segment: Segment, panel: usize, widened: &mut [f32]) {
        let words = &self.product.part.panel(panel)[segment.block * LANES..][..segment.blocks * LANES];
        let widened = &mut widened[..segment.blocks * C::CODES * LANES];
        for (words, columns) in words.chunks_exact(LANES).zip(widened.chunks_exact_mut(C::CODES * LANES)) {
            // SAFETY: the chunks hold a block and the columns of its codes.
            unsafe {
                let words = isa.load_words(words.as_ptr());
                for i in 0..C::CODES {
                    isa.store(columns.as_mut_ptr().add(i * LANES), C::column(isa, words, i));
                }
            }
        }
    }

    /// Adds one segment's sums of all rows to `totals`.
    #[inline(always)]
    fn rows<I: Isa>(&self, isa: I, block: &Block<'_, I>, totals: &mut [f32]) {
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
    fn tile<I: Isa, const ROWS: usize>(&self, isa: I, block: &Block<'_, I>, row: usize, totals: &mut [f32]) {
        let Product { x, part, .. } = self.product;
        let (x_stride, widened) = (part.prepared_cols(), block.widened);
        let first = (self.rows.start + row) * x_stride;
        // SAFETY: `x` has `ROWS` rows from here, `widened` as many vectors as are asked for, `totals` a vector a row.
        unsafe {
            let rows = strided::<ROWS>(x.as_ptr().add(first + block.from), x_stride);
            let (zero, columns) = ([[isa.zero(); 1]; ROWS], widened.len() / LANES);
            let sums = accumulate::<I, f32, ROWS, 1, 1>(isa, zero, rows, widened.as_ptr(), LANES, 0, columns);
            for (r, [acc]) in sums.into_iter().enumerate() {
                let sum =
                    isa.splat(*x.as_ptr().add(first + r * x_stride + part.padded_cols() + block.segment));
                let less_zeros = isa.fma(block.zero, sum, acc);
                let total = totals.as_mut_ptr().add((row + r) * LANES);
                isa.store(total, isa.fma(less_zeros, block.scale, isa.load(total)));
            }
        }
    }
}
