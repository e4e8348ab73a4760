//! Products with four- and eight-bit weights: packed panels that are dequantised in the inner loop, f32 compute.
//!
//! Codes are used where they lie in their word: a mask leaves code `i` times `2^(bits * i)`, a number that f32 holds exactly,
//! and the activation it meets was multiplied by `2^-(bits * i)` beforehand. Unpacking is a mask and a conversion.
//!
//! The sum over a group (or 256 columns of it) of `x * code`, less `zero` times the sum of its `x`, times the group's scale joins
//! the total. Few rows and many rows spell out the same sum with the same fused multiply-adds in ascending order of columns, so
//! that a row's bits don't depend on the rows beside it.

mod few;
mod many;
mod pack;
mod prepare;

use std::cell::RefCell;

use super::isa::{Isa, LANES, Level};
use super::linear::{Epilogue, TILE_ROWS, WORTH_A_TASK};
use super::matrix::{CpuMatrix, Panels};
use super::parallel::{self, Shared};
use super::tensor::{CpuTensor, round_to_bf16};
use super::{Precision, matrix};
use crate::{CodeBits, HostQuantized, Result, Tensor};
use few::FewRows;
use many::ManyRows;
pub(super) use pack::Packed;

/// Rows that a task takes through its panels: a segment's columns of them stay in a 512 KiB second-level cache.
const TASK_ROWS: usize = 32 * TILE_ROWS;
/// Panels a task, at most.
const TASK_PANELS: usize = 8;

impl CpuMatrix {
    /// Packs quantised weights. A device that rounds to bf16 takes the weights dequantised and rounded.
    pub(super) fn quantized(weights: &HostQuantized, precision: Precision) -> Result<CpuMatrix> {
        let (rows, cols) = (weights.rows(), weights.cols());
        if precision == Precision::Bf16 {
            return matrix::of_floats(&weights.dequantized(), cols, precision);
        }
        let mut first_row = 0;
        let mut parts = Vec::with_capacity(weights.parts().len());
        for part in weights.parts() {
            parts.push(Packed::new(part, first_row)?);
            first_row += part.rows;
        }
        Ok(CpuMatrix { rows, cols, panels: Panels::Quantized(parts) })
    }
}

/// How a word of 32 bits holds codes: those of consecutive columns, lowest bits first.
trait Code: Copy {
    /// Codes a word.
    const CODES: usize;

    /// Code `i` of the words times [`place_value`].
    fn column<I: Isa>(isa: I, words: I::W, i: usize) -> I::V;
}

#[derive(Clone, Copy)]
struct Four;
#[derive(Clone, Copy)]
struct Eight;

impl Code for Four {
    const CODES: usize = 8;

    #[inline(always)]
    fn column<I: Isa>(isa: I, words: I::W, i: usize) -> I::V {
        // Masks are immediates; the loop over `i` is unrolled.
        match i {
            0 => isa.masked::<0xf>(words),
            1 => isa.masked::<0xf0>(words),
            2 => isa.masked::<0xf00>(words),
            3 => isa.masked::<0xf000>(words),
            4 => isa.masked::<0xf_0000>(words),
            5 => isa.masked::<0xf0_0000>(words),
            6 => isa.masked::<0xf00_0000>(words),
            _ => isa.shifted::<28>(words),
        }
    }
}

impl Code for Eight {
    const CODES: usize = 4;

    #[inline(always)]
    fn column<I: Isa>(isa: I, words: I::W, i: usize) -> I::V {
        match i {
            0 => isa.masked::<0xff>(words),
            1 => isa.masked::<0xff00>(words),
            2 => isa.masked::<0xff_0000>(words),
            _ => isa.shifted::<24>(words),
        }
    }
}

/// What [`Code::column`] has multiplied code `i` by. The highest, whose mask would leave a sign, is shifted down.
fn place_value(bits: CodeBits, i: usize) -> f32 {
    if i + 1 == codes_a_word(bits) { 1.0 } else { (1u32 << (i * bits.bits())) as f32 }
}

/// Codes a word.
const fn codes_a_word(bits: CodeBits) -> usize {
    match bits {
        CodeBits::Four => Four::CODES,
        CodeBits::Eight => Eight::CODES,
    }
}

/// A product with one part under way.
#[derive(Clone, Copy)]
struct Product<'a> {
    /// Rows of activations as [`prepare::Input`] leaves them, `part.prepared_cols()` apart.
    x: &'a [f32],
    part: &'a Packed,
    out: Shared<f32>,
    out_stride: usize,
    epilogue: Epilogue<'a>,
}

thread_local! {
    /// Activations as a part takes them.
    static PREPARED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `out = epilogue(x * w^T)`, part after part. Shapes were checked.
pub(super) fn linear(
    level: Level,
    x: &CpuTensor,
    parts: &[Packed],
    epilogue: Epilogue<'_>,
    out: &mut CpuTensor,
) {
    let m = x.rows();
    if m == 0 {
        return;
    }
    let (out_stride, out) = (out.stride(), out.shared());
    let mut prepared = PREPARED.take();
    for part in parts {
        prepared.resize(m * part.prepared_cols(), 0.0);
        part.input.prepare(part, x, &mut prepared);
        run(level, m, Product { x: &prepared, part, out, out_stride, epilogue });
    }
    PREPARED.set(prepared);
}

/// Spreads a product over the threads.
fn run(level: Level, m: usize, product: Product<'_>) {
    let panels = product.part.rows.div_ceil(LANES);
    if m <= TILE_ROWS {
        let tasks = (product.part.bytes() / WORTH_A_TASK).clamp(1, parallel::threads()).min(panels.max(1));
        parallel::run(tasks, |task| {
            let panels = panels * task / tasks..panels * (task + 1) / tasks;
            level.run(FewRows { product, rows: m, panels });
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
    unsafe fn finish<I: Isa>(&self, isa: I, row: usize, panel: usize, sum: I::V) {
        let lanes = (self.part.rows - panel * LANES).min(LANES);
        let col = self.part.first_row + panel * LANES;
        // SAFETY: the part's rows are columns of the output.
        let out = unsafe { self.out.at(row * self.out_stride + col) };
        let (mut sums, mut before, mut bias) = (isa.to_array(sum), [0.0; LANES], [0.0; LANES]);
        if let Some(values) = self.epilogue.bias {
            bias[..lanes].copy_from_slice(&values.values()[col..][..lanes]);
        }
        if self.epilogue.residual {
            // SAFETY: `lanes` columns follow, this thread's alone.
            before[..lanes].copy_from_slice(unsafe { std::slice::from_raw_parts(out, lanes) });
        }
        for lane in 0..LANES {
            if self.epilogue.bias.is_some() {
                sums[lane] += bias[lane];
            }
            if self.epilogue.residual {
                sums[lane] += before[lane];
            }
            if self.epilogue.round {
                sums[lane] = round_to_bf16(sums[lane]);
            }
        }
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(out, lanes) }.copy_from_slice(&sums[..lanes]);
    }
}
