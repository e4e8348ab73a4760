//! One matrix quantised: rounded to the nearest code, or by GPTQ.

use rayon::prelude::*;

use super::grid::{Grid, GridKind};
use super::linalg::Upper;

/// Columns whose errors are spread at once; the rest of the row gets them as one product.
const BLOCK_COLS: usize = 128;
/// Rows worked on together, whatever the number of threads: a row's sums don't depend on it.
const ROWS: usize = 16;

/// How a matrix is quantised.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recipe {
    pub grid: GridKind,
    /// Columns that share a scale.
    pub group: usize,
}

/// A quantised matrix `[rows, cols]` in groups of columns.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Quantised {
    pub rows: usize,
    pub cols: usize,
    pub group: usize,
    /// `[rows, cols]`, in the order of the columns of the weights.
    pub codes: Vec<u8>,
    /// `[rows, groups]`
    pub scales: Vec<f32>,
    /// `[rows, groups]`
    pub zeros: Vec<u8>,
    /// The group of each column.
    pub g_idx: Vec<u32>,
}

/// A weight whose group has a larger scale than f16 holds: its row and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge {
    pub row: usize,
    pub group: usize,
}

impl Quantised {
    fn new(rows: usize, cols: usize, group: usize, order: Option<&[u32]>) -> Quantised {
        let groups = cols.div_ceil(group);
        let mut g_idx = vec![0; cols];
        for place in 0..cols {
            let col = order.map_or(place, |order| order[place] as usize);
            g_idx[col] = (place / group) as u32;
        }
        Quantised {
            rows,
            cols,
            group,
            codes: vec![0; rows * cols],
            scales: vec![0.0; rows * groups],
            zeros: vec![0; rows * groups],
            g_idx,
        }
    }

    /// Hands each panel of [`ROWS`] rows to `fill`: first row, codes, scales, zero points.
    fn fill(
        &mut self,
        fill: impl Fn(usize, &mut [u8], &mut [f32], &mut [u8]) -> Result<(), TooLarge> + Sync,
    ) -> Result<(), TooLarge> {
        let groups = self.cols.div_ceil(self.group);
        let scales = self.scales.par_chunks_mut(ROWS * groups);
        let zeros = self.zeros.par_chunks_mut(ROWS * groups);
        let panels = self.codes.par_chunks_mut(ROWS * self.cols).zip(scales.zip(zeros)).enumerate();
        panels.map(|(panel, (codes, (scales, zeros)))| fill(panel * ROWS, codes, scales, zeros)).collect()
    }
}

/// Rounds each weight to the nearest code.
pub(super) fn round_to_nearest(weights: &[f32], cols: usize, recipe: Recipe) -> Result<Quantised, TooLarge> {
    let mut out = Quantised::new(weights.len() / cols, cols, recipe.group, None);
    let groups = cols.div_ceil(recipe.group);
    out.fill(|first, codes, scales, zeros| {
        for (i, codes) in codes.chunks_exact_mut(cols).enumerate() {
            let row = &weights[(first + i) * cols..][..cols];
            for (group, (weights, codes)) in
                row.chunks(recipe.group).zip(codes.chunks_mut(recipe.group)).enumerate()
            {
                let grid = recipe.grid.fit(weights.iter().copied());
                let grid = grid.ok_or(TooLarge { row: first + i, group })?;
                (scales[i * groups + group], zeros[i * groups + group]) = (grid.scale, grid.zero);
                codes.iter_mut().zip(weights).for_each(|(code, &weight)| *code = grid.code(weight));
            }
        }
        Ok(())
    })?;
    Ok(out)
}

/// The columns of `diagonal` by descending size: those that matter most are quantised first.
pub(super) fn descending(diagonal: impl Iterator<Item = f64>) -> Vec<u32> {
    let diagonal: Vec<f64> = diagonal.collect();
    let mut order: Vec<u32> = (0..diagonal.len() as u32).collect();
    order.sort_by(|&a, &b| diagonal[b as usize].total_cmp(&diagonal[a as usize]));
    order
}

/// GPTQ (Frantar et al. 2022, algorithm 1): column after column is rounded, and its error, weighted by `factor`, is taken off the
/// columns that follow. `order` is the order of columns in which `factor` was made.
pub(super) fn gptq(
    weights: &[f32],
    recipe: Recipe,
    factor: &Upper,
    order: Option<&[u32]>,
    dead: &[bool],
) -> Result<Quantised, TooLarge> {
    let cols = factor.n;
    let mut out = Quantised::new(weights.len() / cols, cols, recipe.group, order);
    let groups = cols.div_ceil(recipe.group);
    let column = |place: usize| order.map_or(place, |order| order[place] as usize);
    let factor: Vec<f32> = factor.elems.iter().map(|&x| x as f32).collect();
    out.fill(|first, codes, scales, zeros| {
        let rows = codes.len() / cols;
        let mut panel =
            Panel { rows, cols, weights: vec![0.0; rows * cols], errors: vec![0.0; rows * BLOCK_COLS] };
        for i in 0..rows {
            for place in 0..cols {
                let col = column(place);
                // What no activation meets needs no weight.
                let weight = weights[(first + i) * cols + col];
                panel.weights[i * cols + place] = if dead[col] { 0.0 } else { weight };
            }
        }
        let mut start = 0;
        while start < cols {
            let end = block_end(start, cols, recipe.group);
            for i in 0..rows {
                let grids = Grids {
                    scales: &mut scales[i * groups..][..groups],
                    zeros: &mut zeros[i * groups..][..groups],
                };
                let bad = panel.quantise_row(i, start..end, recipe, &factor, grids, |place, code| {
                    codes[i * cols + column(place)] = code;
                });
                bad.map_err(|group| TooLarge { row: first + i, group })?;
            }
            panel.spread(start..end, &factor);
            start = end;
        }
        Ok(())
    })?;
    Ok(out)
}

/// The end of the block of columns that starts at `start`: a group never starts within a block whose errors are still held back
/// from it.
fn block_end(start: usize, cols: usize, group: usize) -> usize {
    let whole_groups = BLOCK_COLS / group * group;
    let end = match whole_groups {
        0 => (start + BLOCK_COLS).min(start / group * group + group),
        _ => start + whole_groups,
    };
    end.min(cols)
}

/// Where a row's scales and zero points go.
struct Grids<'a> {
    scales: &'a mut [f32],
    zeros: &'a mut [u8],
}

/// Rows under way: weights, of which the errors so far are taken off, in the order of quantisation.
struct Panel {
    rows: usize,
    cols: usize,
    weights: Vec<f32>,
    /// Weighted errors of the block, `[rows, BLOCK_COLS]`.
    errors: Vec<f32>,
}

impl Panel {
    /// Quantises a block of a row; the group whose scale is too large if one is.
    fn quantise_row(
        &mut self,
        row: usize,
        block: std::ops::Range<usize>,
        recipe: Recipe,
        factor: &[f32],
        grids: Grids<'_>,
        mut put: impl FnMut(usize, u8),
    ) -> Result<(), usize> {
        let cols = self.cols;
        let weights = &mut self.weights[row * cols..][..cols];
        for place in block.clone() {
            let group = place / recipe.group;
            if place % recipe.group == 0 {
                let end = (place + recipe.group).min(cols);
                let pivots = (place..end).map(|place| factor[place * cols + place]);
                let grid = recipe.grid.fit_weighted(&weights[place..end], pivots).ok_or(group)?;
                (grids.scales[group], grids.zeros[group]) = (grid.scale, grid.zero);
            }
            let grid =
                Grid { scale: grids.scales[group], zero: grids.zeros[group], largest: recipe.grid.largest };
            let code = grid.code(weights[place]);
            put(place, code);
            let factor = &factor[place * cols..][..cols];
            let error = (weights[place] - grid.weight(code)) / factor[place];
            self.errors[row * BLOCK_COLS + place - block.start] = error;
            let rest = place + 1..block.end;
            weights[rest.clone()].iter_mut().zip(&factor[rest]).for_each(|(weight, f)| *weight -= error * f);
        }
        Ok(())
    }

    /// Takes a block's errors off all columns after it.
    fn spread(&mut self, block: std::ops::Range<usize>, factor: &[f32]) {
        let (cols, rest) = (self.cols, self.cols - block.end);
        if rest == 0 {
            return;
        }
        assert!(self.weights.len() >= self.rows * cols && self.errors.len() >= self.rows * BLOCK_COLS);
        assert!(block.len() <= BLOCK_COLS && factor.len() >= block.end * cols);
        // SAFETY: the weights are `rows` rows of `cols`, of which the last `rest` are written; errors are `rows` rows of at least the
        // block's columns; the factor has the block's rows of `cols`. All asserted above.
        unsafe {
            gemm::gemm(
                self.rows,
                rest,
                block.len(),
                self.weights.as_mut_ptr().add(block.end),
                1,
                cols as isize,
                true,
                self.errors.as_ptr(),
                1,
                BLOCK_COLS as isize,
                factor.as_ptr().add(block.start * cols + block.end),
                1,
                cols as isize,
                1.0,
                -1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

#[cfg(test)]
mod tests;
