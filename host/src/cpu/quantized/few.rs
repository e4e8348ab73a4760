use super::{Code, Eight, Four, Product};
use crate::CodeBits;
use crate::cpu::isa::{Isa, Kernel, LANES};

/// At most [`super::TILE_ROWS`] rows: bound by the reading of the weights.
pub(super) struct FewRows<'a> {
    pub(super) product: Product<'a>,
    pub(super) rows: usize,
    pub(super) panels: std::ops::Range<usize>,
}

impl Kernel for FewRows<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.product.part.bits {
            CodeBits::Four => self.coded::<I, Four>(isa),
            CodeBits::Eight => self.coded::<I, Eight>(isa),
        }
    }
}

impl FewRows<'_> {
    #[inline(always)]
    fn coded<I: Isa, C: Code>(&self, isa: I) {
        match self.rows {
            // As many panels as keep additions from waiting for the ones before.
            1 => self.panels::<I, C, 1, 4>(isa),
            2 => self.panels::<I, C, 2, 2>(isa),
            3 => self.panels::<I, C, 3, 1>(isa),
            4 => self.panels::<I, C, 4, 1>(isa),
            5 => self.panels::<I, C, 5, 1>(isa),
            _ => self.panels::<I, C, 6, 1>(isa),
        }
    }

    #[inline(always)]
    fn panels<I: Isa, C: Code, const ROWS: usize, const PANELS: usize>(&self, isa: I) {
        let mut panel = self.panels.start;
        while panel + PANELS <= self.panels.end {
            self.sums::<I, C, ROWS, PANELS>(isa, panel);
            panel += PANELS;
        }
        while panel < self.panels.end {
            self.sums::<I, C, ROWS, 1>(isa, panel);
            panel += 1;
        }
    }

    #[inline(always)]
    fn sums<I: Isa, C: Code, const ROWS: usize, const PANELS: usize>(&self, isa: I, panel: usize) {
        let Product { x, part, .. } = self.product;
        let x_stride = part.prepared_cols();
        let sums_at = part.padded_cols();
        let mut weights = [std::ptr::null(); PANELS];
        for (p, weights) in weights.iter_mut().enumerate() {
            *weights = part.panel(panel + p).as_ptr();
        }
        let mut total = [[isa.zero(); PANELS]; ROWS];
        for (index, segment) in part.segments.iter().enumerate() {
            let (mut scales, mut zeros) = ([isa.zero(); PANELS], [isa.zero(); PANELS]);
            for p in 0..PANELS {
                let group = part.group(panel + p, segment.group);
                // SAFETY: a group has sixteen scales and as many zero points.
                unsafe {
                    scales[p] = isa.load(group.as_ptr());
                    zeros[p] = isa.load(group.as_ptr().add(LANES));
                }
            }
            let mut acc = [[isa.zero(); PANELS]; ROWS];
            for block in segment.block..segment.block + segment.blocks {
                // SAFETY: the panels have the segment's blocks, `x` has `ROWS` rows of a word's codes for each.
                unsafe {
                    let mut words = [isa.load_words(weights[0].add(block * LANES)); PANELS];
                    for p in 1..PANELS {
                        words[p] = isa.load_words(weights[p].add(block * LANES));
                    }
                    let a = x.as_ptr().add(block * C::CODES);
                    for i in 0..C::CODES {
                        let mut columns = [isa.zero(); PANELS];
                        for p in 0..PANELS {
                            columns[p] = C::column(isa, words[p], i);
                        }
                        for (r, sums) in acc.iter_mut().enumerate() {
                            let x = isa.splat(*a.add(r * x_stride + i));
                            for (sum, &column) in sums.iter_mut().zip(&columns) {
                                *sum = isa.fma(x, column, *sum);
                            }
                        }
                    }
                }
            }
            for r in 0..ROWS {
                let sum = isa.splat(x[r * x_stride + sums_at + index]);
                for p in 0..PANELS {
                    let less_zeros = isa.fma(zeros[p], sum, acc[r][p]);
                    total[r][p] = isa.fma(less_zeros, scales[p], total[r][p]);
                }
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
