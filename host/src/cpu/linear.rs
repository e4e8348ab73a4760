//! `x * w^T` for any number of rows, bit for bit the same whatever that number.
//!
//! Every output is `((0 + block_0) + block_1) + ...`, where a block sums [`K_BLOCK`] products in ascending order with fused
//! multiply-adds. Few rows stream the packed weights straight through registers; many rows go by register tiles, each taken past
//! a group of panels that stays in the second-level cache ([`super::linear_many`]). Both widen weights in registers and spell out
//! that same sum. The `gemm` crate is not used because its order of summation follows from the shapes: a row would change with
//! the rows beside it.
use super::accumulate::{Bf16, Element, F16, accumulate, strided};
use super::isa::{Isa, Kernel, LANES, Level};
use super::layers::silu;
use super::linear_many::{self, ManyRows};
use super::matrix::{CpuMatrix, Panels};
use super::parallel::{self, Shared};
use super::quantized;
use super::tensor::{CpuTensor, CpuVector, round_to_bf16};
use crate::Tensor;

/// Products summed before they join the total: 6 rows of them stay in a first-level cache.
pub(super) const K_BLOCK: usize = 1024;
/// Rows of a register tile: 6 * 2 accumulators, a panel's column and a row's element fill AVX2's sixteen registers but one.
pub(super) const TILE_ROWS: usize = 6;
/// Weights, in bytes, whose product with one row takes as long as waking a thread.
pub(super) const WORTH_A_TASK: usize = 64 * 1024;

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
pub(super) struct Product<'a> {
    pub(super) x: &'a CpuTensor,
    pub(super) w: &'a CpuMatrix,
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
        linear_many::run(m, panels, |rows, panels| {
            level.run(ManyRows { product, rows, panels, gated: false })
        });
    }
}

/// `out = silu(x * gate^T) * (x * up^T)`, to the bit what [`linear`] and `silu_mul` make of the same; false where it can't be done
/// without room for the products. Shapes were checked.
pub(super) fn linear_gated(
    level: Level,
    x: &CpuTensor,
    w: &CpuMatrix,
    round: bool,
    out: &mut CpuTensor,
) -> bool {
    let (m, columns) = (x.rows(), out.cols());
    // Few rows' products cost nothing to keep. Gate and up must not share a panel.
    if m <= TILE_ROWS || !columns.is_multiple_of(LANES) || matches!(w.panels, Panels::Quantized(_)) {
        return false;
    }
    let out_stride = out.stride();
    let epilogue = Epilogue { bias: None, residual: false, round };
    let product = Product { x, w, out: out.shared(), out_stride, epilogue };
    linear_many::run_gated(m, columns / LANES, |rows, panels| {
        level.run(ManyRows { product, rows, panels, gated: true });
    });
    true
}

impl Product<'_> {
    /// Writes the sums of one row and panel out.
    ///
    /// # Safety
    /// Row and panel are within the output, and no other thread has them.
    #[inline(always)]
    pub(super) unsafe fn finish<I: Isa>(&self, isa: I, row: usize, panel: usize, mut sum: I::V) {
        let col = panel * LANES;
        if let Some(bias) = self.epilogue.bias {
            // SAFETY: a bias is padded to whole vectors and as long as the output's columns.
            sum = isa.add(sum, unsafe { isa.load(bias.padded().as_ptr().add(col)) });
        }
        // SAFETY: the caller's; rows are padded to whole vectors.
        let out = unsafe { self.out_at(row, panel) };
        if self.epilogue.residual {
            // SAFETY: as above.
            sum = isa.add(unsafe { isa.load(out) }, sum);
        }
        // SAFETY: as above.
        unsafe { isa.store(out, self.rounded(isa, sum)) };
    }

    /// Writes out a gate's and an up's sums of one row and panel.
    ///
    /// # Safety
    /// As of [`Product::finish`].
    #[inline(always)]
    pub(super) unsafe fn finish_gated<I: Isa>(&self, isa: I, row: usize, panel: usize, gate: I::V, up: I::V) {
        let product = silu(isa, self.rounded(isa, gate), self.rounded(isa, up));
        // SAFETY: the caller's; rows are padded to whole vectors.
        unsafe { isa.store(self.out_at(row, panel), self.rounded(isa, product)) };
    }

    /// Where a row's columns of a panel are written.
    ///
    /// # Safety
    /// Row and panel are within the output.
    #[inline(always)]
    pub(super) unsafe fn out_at(&self, row: usize, panel: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.out.at(row * self.out_stride + panel * LANES) }
    }

    #[inline(always)]
    fn rounded<I: Isa>(&self, isa: I, v: I::V) -> I::V {
        if self.epilogue.round { isa.vector(&isa.to_array(v).map(round_to_bf16)) } else { v }
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
                let rows = strided(a, x.stride());
                accumulate::<I, E, ROWS, PANELS, 1>(
                    isa,
                    zero,
                    rows,
                    b,
                    LANES,
                    k * LANES,
                    K_BLOCK.min(k - from),
                )
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
