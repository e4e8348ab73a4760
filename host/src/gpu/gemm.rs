//! Matrix products: which kernel computes which rows, and the launches.
//!
//! | weights | rows of generated tokens | rows of prompts |
//! |---|---|---|
//! | bf16 on Hopper | one, or several of few columns, `gemm_whole`, others `gemm_few`, `k` split over warps or blocks: the same bits | `gemm_sm90` |
//! | 4 bits on Hopper, 8 bits in halves of 4 ([`super::int4`]) | `gemm_whole` or `gemm_few`, as of bf16 | `dequantize_int4`, then `gemm_sm90` |
//! | bytes on Hopper, of activations of bytes too ([`super::int8`]) | `gemm_few`, `k` split | `gemm_sm90` |
//! | bf16 elsewhere, or rows of weights no multiple of 8 | `gemm_bf16` | `gemm_bf16` |
//!
//! The sums of a column's two kernels differ in the last bits; within each a row's bits don't depend on the rows beside it. So the
//! weights and a row's class choose, and nothing of the batch does.

use tilewright_kernels::{
    abi::{self, TensorMap},
    gemm_few::{self, Weights, layout},
    gemm_sm90::{
        self,
        launch::{Element, MapShape},
    },
    gemm_whole,
};

use super::{
    Driver, GpuDevice, GpuLogits, GpuMatrix, GpuTensor, GpuVector,
    scratch::{self, Scratch},
    select::select_tile,
    storage::{BF16, Stored, WORD, WeightMaps, dim, require, shape},
};
use crate::Result;

/// The compute capability whose copy engine and warpgroup products are in the form that Hopper's kernels use.
const HOPPER: (u32, u32) = (9, 0);
/// Rows of a launch whose `k` is split: what the splits leave for each other then stays within some 32 MiB.
const MOST_SPLIT_ROWS: u32 = 256;
/// Rows of a box of `gemm_sm90`'s store.
const STORE_ROWS: u32 = gemm_sm90::STORE_BOX_BYTES / gemm_sm90::LINE_BYTES;

/// What launches use one after the other: sums of splits, or sums as mail and counters, of which every launch leaves zeros, and dequantised weights.
pub(super) struct GemmScratch<Dr: Driver> {
    partials: Scratch<Dr>,
    mail: Scratch<Dr>,
    counters: Scratch<Dr>,
    pub dequantized: Scratch<Dr>,
}

impl<Dr: Driver> Default for GemmScratch<Dr> {
    fn default() -> Self {
        let [partials, mail, counters] =
            std::array::from_fn(|_| Scratch::new("linear", "the splits of products"));
        Self { partials, mail, counters, dequantized: Scratch::new("linear", "dequantised weights") }
    }
}

/// A product whose operands were checked: bf16 `a` `[m, k]` (or bytes with scales), f32 `bias` `[n]`, bf16 `residual` and bf16 or f32 `out` `[m, n]`
/// (`[m, n / 2]` if `gated`); `bias` and `residual` are 0 where there is none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub a: u64,
    /// Of rows of bytes, f32 `[m]`; of bf16, 0.
    pub a_scales: u64,
    /// Of weights of bytes, f32 `[n]`.
    pub w_scales: u64,
    pub bias: u64,
    pub residual: u64,
    pub out: u64,
    pub out_f32: bool,
    /// From a row of `out` and `residual` to the next.
    pub out_stride: u32,
    /// Pairs of columns become one of `out`: the gate's SiLU times what it gates.
    pub gated: bool,
    pub m: u32,
    pub n: u32,
    pub k: u32,
}

impl Product {
    /// Its rows from `first` to before `end`.
    pub fn rows(self, first: u32, end: u32) -> Product {
        let skip = |cols: u32, bytes: usize| u64::from(first) * u64::from(cols) * bytes as u64;
        Product {
            a: self.a + skip(self.k, self.element().bytes() as usize),
            a_scales: if self.a_scales == 0 { 0 } else { self.a_scales + skip(1, WORD) },
            residual: if self.residual == 0 { 0 } else { self.residual + skip(self.out_stride, BF16) },
            out: self.out + skip(self.out_stride, self.out_bytes()),
            m: end - first,
            ..self
        }
    }

    /// The `n` columns from `first` on, of a product that isn't gated.
    pub fn cols(self, first: u32, n: u32) -> Product {
        let skip =
            |base: u64, bytes: usize| if base == 0 { 0 } else { base + u64::from(first) * bytes as u64 };
        Product {
            bias: skip(self.bias, WORD),
            residual: skip(self.residual, BF16),
            out: skip(self.out, self.out_bytes()),
            n,
            ..self
        }
    }

    /// What `a` is made of, and what it is multiplied by.
    fn element(self) -> Element {
        if self.a_scales == 0 { Element::Bf16 } else { Element::Int8 }
    }

    fn out_bytes(self) -> usize {
        if self.out_f32 { WORD } else { BF16 }
    }
}

/// What a product is written to.
struct Target {
    out: u64,
    residual: u64,
    f32: bool,
}

impl WeightMaps {
    /// The part of a launch's parameters that weights `[n, k]` of these maps are.
    pub fn operand(&self, element: Element, n: u32, k: u32) -> abi::GemmFew {
        let line_cols = gemm_few::LINE_BYTES / element.bytes();
        abi::GemmFew {
            w_map: self.wide,
            steps: k.div_ceil(line_cols),
            splits: gemm_few::launch::splits(n, k, line_cols),
            ..abi::GemmFew::default()
        }
    }
}

/// A product whose blocks have all of `k`: `operand` has what concerns the weights.
fn whole(product: Product, operand: &abi::GemmFew, row_groups: u32) -> abi::GemmWhole {
    let Product { a, bias, residual, out, out_f32, out_stride, gated, m, n, k, .. } = product;
    let abi::GemmFew { packed, steps, splits, piece_bytes, zeros, scales_f16, .. } = *operand;
    abi::GemmWhole {
        a,
        packed,
        bias,
        residual,
        out,
        m,
        n,
        k,
        steps,
        splits,
        row_groups,
        piece_bytes,
        zeros,
        scales_f16,
        out_f32: u32::from(out_f32),
        silu: u32::from(gated),
        out_stride,
        ..abi::GemmWhole::default()
    }
}

impl<Dr: Driver> GpuDevice<Dr> {
    /// Whether Hopper's kernels run here.
    pub(super) fn is_hopper(&self) -> bool {
        self.driver.info().compute_capability == HOPPER
    }

    /// Maps of weights `[rows, cols]` that Hopper's kernels take; rows are of whole 16 bytes.
    pub(super) fn weight_maps(
        &self,
        address: u64,
        rows: usize,
        cols: usize,
        element_bytes: usize,
    ) -> Result<Option<Box<WeightMaps>>> {
        if !self.is_hopper() || rows == 0 || !rows.is_multiple_of(8) {
            return Ok(None);
        }
        let (rows, cols) = (dim("matrix", "rows", rows)?, dim("matrix", "cols", cols)?);
        let map = |box_rows| {
            self.driver.tensor_map(&MapShape::new(element_bytes as u32, rows, cols, box_rows).at(address))
        };
        Ok(Some(Box::new(WeightMaps {
            wide: map(gemm_sm90::WIDE.block_n)?,
            narrow: map(gemm_sm90::NARROW.block_n)?,
            sixteen: map(layout::PIECE_ROWS)?,
        })))
    }

    /// `out = x * w^T (+ bias) (+ residual)`; `out` and `residual` are checked to be `[x.rows, w.rows]` by the callers.
    fn gemm(
        &self,
        op: &'static str,
        x: &GpuTensor<Dr>,
        w: &GpuMatrix<Dr>,
        bias: Option<&GpuVector<Dr>>,
        target: Target,
    ) -> Result<()> {
        require(!w.is_paired, op, "w", "rows in their own order", "those of a gate in turn")?;
        require(x.cols == w.cols, op, "columns of x", w.cols, x.cols)?;
        if let Some(bias) = bias {
            require(bias.len == w.rows, op, "bias", w.rows, bias.len)?;
        }
        let (m, n) = (dim(op, "rows of x", x.rows)?, dim(op, "rows of w", w.rows)?);
        let product = Product {
            a: x.address,
            a_scales: 0,
            w_scales: 0,
            bias: bias.map_or(0, |bias| bias.address),
            residual: target.residual,
            out: target.out,
            out_f32: target.f32,
            out_stride: n,
            gated: false,
            m,
            n,
            k: dim(op, "columns of x", x.cols)?,
        };
        let first_of_prompts = dim(op, "rows of x", x.generated)?;
        let (generated, prompts) = (product.rows(0, first_of_prompts), product.rows(first_of_prompts, m));
        self.check_codes(op, x, w)?;
        match &w.stored {
            Stored::Bf16(None) => self.launch_baseline(op, product, w.address),
            Stored::Bf16(Some(maps)) => {
                self.launch_generated(op, generated, maps)?;
                self.launch_many(prompts, maps)
            }
            Stored::Int4(int4) => self.launch_int4(op, [product; 2], first_of_prompts, int4),
            Stored::Int8(int8) => self.launch_int8(op, x, [product; 2], first_of_prompts, int8),
        }
    }

    /// Rows of `x` times gates and what they gate, in turn (`w` is so): joined in `out`, or, of prompts' rows, as they are
    /// in `gate_up`. Whether all are joined. Both have the rows of `x`, and the columns of `w` or half as many.
    pub(super) fn gemm_gated(
        &self,
        x: &GpuTensor<Dr>,
        w: &GpuMatrix<Dr>,
        gate_up: &GpuTensor<Dr>,
        out: &GpuTensor<Dr>,
    ) -> Result<bool> {
        let op = "linear_gated";
        require(x.cols == w.cols, op, "columns of x", w.cols, x.cols)?;
        let (m, n) = (dim(op, "rows of x", x.rows)?, dim(op, "rows of w", w.rows)?);
        let joined = Product {
            a: x.address,
            a_scales: 0,
            w_scales: 0,
            bias: 0,
            residual: 0,
            out: out.address,
            out_f32: false,
            out_stride: n / 2,
            gated: true,
            m,
            n,
            k: dim(op, "columns of x", x.cols)?,
        };
        let first_of_prompts = dim(op, "rows of x", x.generated)?;
        let apart = Product { out: gate_up.address, out_stride: n, gated: false, ..joined };
        self.check_codes(op, x, w)?;
        match &w.stored {
            Stored::Int4(int4) => self.launch_int4(op, [joined, apart], first_of_prompts, int4)?,
            Stored::Int8(int8) => self.launch_int8(op, x, [joined, apart], first_of_prompts, int8)?,
            Stored::Bf16(Some(maps)) => {
                self.launch_generated(op, joined.rows(0, first_of_prompts), maps)?;
                self.launch_many(apart.rows(first_of_prompts, m), maps)?;
            }
            Stored::Bf16(None) => {
                return Err(shape(op, "w", "a matrix with a kernel of Hopper's", "another"));
            }
        }
        Ok(first_of_prompts == m)
    }

    fn launch_baseline(&self, op: &'static str, product: Product, w: u64) -> Result<()> {
        let Product { a, bias, residual, out, out_f32, m, n, k, .. } = product;
        let tile = select_tile(m, n, self.driver.info().multiprocessors)
            .ok_or_else(|| shape(op, "rows of x", "at most 8388480", m))?;
        let params = abi::Gemm { a, w, bias, residual, out, m, n, k, out_f32: u32::from(out_f32) };
        // SAFETY: operands are what a `Product` says, and `w` is `[n, k]`.
        unsafe { self.launch(tile.spec, [n.div_ceil(tile.block_n), m.div_ceil(tile.block_m), 1], params) }
    }

    /// A product of prompts' rows with weights of these maps.
    pub(super) fn launch_many(&self, product: Product, maps: &WeightMaps) -> Result<()> {
        let Product { a, a_scales, w_scales, bias, residual, out, out_f32, out_stride, m, n, k, .. } =
            product;
        if m == 0 {
            return Ok(());
        }
        let multiprocessors = self.driver.info().multiprocessors;
        let (tile, kernel) = gemm_sm90::launch::choose(product.element(), m, n, multiprocessors);
        let a_shape = MapShape::new(product.element().bytes(), m, k, gemm_sm90::BLOCK_M);
        let out_shape = MapShape::new(BF16 as u32, m, n, STORE_ROWS).spaced(out_stride);
        let out_map = || self.driver.tensor_map(&out_shape.at(out));
        let params = abi::GemmSm90 {
            a_map: self.driver.tensor_map(&a_shape.at(a))?,
            w_map: if tile == gemm_sm90::WIDE { maps.wide } else { maps.narrow },
            out_map: if out_f32 { TensorMap::default() } else { out_map()? },
            bias,
            residual,
            out_f32: if out_f32 { out } else { 0 },
            a_scales,
            w_scales,
            m,
            n,
            k,
            band: gemm_sm90::launch::BAND,
            out_stride,
            ..abi::GemmSm90::default()
        };
        let tiles = gemm_sm90::launch::tiles(tile, m, n);
        let blocks = tiles.min(u64::from(multiprocessors)) as u32;
        // SAFETY: operands are what a `Product` says, and the weights' maps are of `[n, k]`; `n` and `k` are multiples of 8.
        unsafe { self.launch(kernel, [blocks, 1, 1], params) }
    }

    /// A product of generated tokens' rows with bf16 weights of these maps.
    fn launch_generated(&self, op: &'static str, product: Product, maps: &WeightMaps) -> Result<()> {
        let Product { m, n, k, .. } = product;
        let operand = maps.operand(Element::Bf16, n, k);
        let multiprocessors = self.driver.info().multiprocessors;
        match gemm_whole::launch::choose_bf16([m, n, k], operand.splits, multiprocessors) {
            Some(row_groups) => {
                let product = whole(product, &operand, row_groups);
                let params =
                    abi::GemmWholeBf16 { w_map: maps.sixteen, product, ..abi::GemmWholeBf16::default() };
                // SAFETY: operands are what a `Product` says, and the map is of the weights `[n, k]`; `n` and `k` are multiples of 8.
                unsafe {
                    self.launch(&gemm_whole::BF16, [gemm_whole::launch::blocks(n, row_groups), 1, 1], params)
                }
            }
            _ => self.launch_few_in_parts(op, product, Weights::Bf16, operand),
        }
    }

    /// A product by `gemm_few`, or, of 4-bit weights, `gemm_whole`: `operand` has what concerns the weights.
    pub(super) fn launch_few_in_parts(
        &self,
        op: &'static str,
        product: Product,
        weights: Weights,
        operand: abi::GemmFew,
    ) -> Result<()> {
        let most = if operand.splits == 1 { product.m } else { MOST_SPLIT_ROWS };
        let mut first = 0;
        while first < product.m {
            let end = product.m.min(first.saturating_add(most));
            self.launch_few(op, product.rows(first, end), weights, operand)?;
            first = end;
        }
        Ok(())
    }

    fn launch_few(
        &self,
        op: &'static str,
        product: Product,
        weights: Weights,
        operand: abi::GemmFew,
    ) -> Result<()> {
        let Product { a, a_scales, w_scales, bias, residual, out, out_f32, out_stride, gated, m, n, k } =
            product;
        let multiprocessors = self.driver.info().multiprocessors;
        if let Some((kernel, row_groups)) =
            gemm_whole::launch::choose(weights, [m, n, k], operand.splits, multiprocessors)
        {
            let params = whole(product, &operand, row_groups);
            let blocks = gemm_whole::launch::blocks(n, row_groups);
            // SAFETY: as below, without scratch.
            return unsafe { self.launch(kernel, [blocks, 1, 1], params) };
        }
        let variant = gemm_few::launch::choose(weights, m, operand.splits)
            .ok_or_else(|| shape(op, "weights", "of a kind that has a kernel", format!("{weights:?}")))?;
        let mut held = scratch::lock(&self.gemm_scratch);
        let tiles = gemm_few::launch::tiles(variant, m, n) as usize;
        let (partials, counters) = match gemm_few::launch::partial_bytes(variant, m, n, operand.splits) {
            0 => (0, 0),
            bytes if variant.tile.is_mailed() => (held.mail.at_least(self, bytes, true)?, 0),
            bytes => (
                held.partials.at_least(self, bytes, false)?,
                held.counters.at_least(self, tiles * WORD, true)?,
            ),
        };
        let a_shape = MapShape::new(product.element().bytes(), m, k, variant.tile.tokens);
        let params = abi::GemmFew {
            a_map: self.driver.tensor_map(&a_shape.at(a))?,
            a_scales,
            w_scales,
            bias,
            residual,
            out,
            partials,
            counters,
            m,
            n,
            out_f32: u32::from(out_f32),
            silu: u32::from(gated),
            out_stride,
            ..operand
        };
        let grid = gemm_few::launch::grid(variant, m, n, operand.splits, multiprocessors);
        // SAFETY: operands are what a `Product` says, and `operand` describes weights `[n, k]` of this variant's kind; `n` and `k`
        // are multiples of 8. Scratch is as large as the launcher says; mail and counters are zeros: fresh ones are, and launches leave
        // them so. Launches that share scratch follow each other on one stream; the lock is held until this one is in it.
        unsafe { self.launch(&variant.spec, grid, params) }
    }

    pub(super) fn launch_linear(
        &self,
        x: &GpuTensor<Dr>,
        w: &GpuMatrix<Dr>,
        bias: Option<&GpuVector<Dr>>,
        out: &mut GpuTensor<Dr>,
    ) -> Result<()> {
        require(out.cols == w.rows, "linear", "columns of out", w.rows, out.cols)?;
        out.resize("linear", "out", x.rows, x.generated)?;
        self.gemm("linear", x, w, bias, Target { out: out.address, residual: 0, f32: false })
    }

    pub(super) fn launch_linear_residual(
        &self,
        x: &GpuTensor<Dr>,
        w: &GpuMatrix<Dr>,
        bias: Option<&GpuVector<Dr>>,
        residual: &mut GpuTensor<Dr>,
    ) -> Result<()> {
        let op = "linear_residual";
        require(residual.cols == w.rows, op, "columns of residual", w.rows, residual.cols)?;
        require(residual.rows == x.rows, op, "rows of residual", x.rows, residual.rows)?;
        let out = residual.numbers(op, "residual")?;
        self.gemm(op, x, w, bias, Target { out, residual: out, f32: false })
    }

    pub(super) fn launch_project_logits(
        &self,
        x: &GpuTensor<Dr>,
        w: &GpuMatrix<Dr>,
        out: &mut GpuLogits<Dr>,
    ) -> Result<()> {
        require(out.vocab == w.rows, "project_logits", "vocab of out", w.rows, out.vocab)?;
        out.resize("project_logits", x.rows)?;
        self.gemm("project_logits", x, w, None, Target { out: out.address, residual: 0, f32: true })
    }
}
