//! Products of generated tokens on Hopper: the launches of `gemm_few`, and the norms that they take in.

use tilewright_kernels::{
    abi,
    gemm_few::{self, Weights},
    gemm_sm90::launch::MapShape,
};

use super::{
    Driver, GpuDevice, GpuMatrix, GpuTensor, GpuVector,
    gemm::{NormWeights, Product, Target},
    scratch,
    storage::{BF16, Int4, Stored, WORD, WeightMaps, dim, require, shape},
};
use crate::{Result, RmsNormed};

/// Columns of bf16 a line, a stage of a dense product.
const LINE_COLS: u32 = gemm_few::LINE_BYTES / BF16 as u32;
/// Rows of a launch whose `k` is split: what the splits leave for each other then stays within some 32 MiB.
const MOST_SPLIT_ROWS: u32 = 256;

impl WeightMaps {
    /// The part of a launch's parameters that weights `[n, k]` of these maps are.
    pub(super) fn operand(&self, n: u32, k: u32) -> abi::GemmFew {
        abi::GemmFew {
            w_map: self.wide,
            steps: k.div_ceil(LINE_COLS),
            splits: gemm_few::launch::splits(n, k, LINE_COLS),
            ..abi::GemmFew::default()
        }
    }
}

impl Int4 {
    /// The weights' part of a launch's parameters.
    pub(super) fn operand(&self, packed: u64, splits: u32) -> abi::GemmFew {
        abi::GemmFew {
            packed,
            steps: self.steps,
            splits,
            tile_bytes: self.tile_bytes,
            zeros: u32::from(self.zeros),
            scales_f16: u32::from(self.scales_f16),
            ..abi::GemmFew::default()
        }
    }
}

impl<Dr: Driver> GpuDevice<Dr> {
    /// A product by `gemm_few`: `operand` has what concerns the weights.
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
        let Product { a, bias, residual, out, out_f32, norm, gated, m, n, k } = product;
        let variant = match norm {
            Some(_) => gemm_few::launch::choose_normed(weights, [m, k], operand.steps, operand.splits),
            None => gemm_few::launch::choose(weights, m),
        };
        let variant = variant
            .ok_or_else(|| shape(op, "weights", "of a kind that has a kernel", format!("{weights:?}")))?;
        let (splits, multiprocessors) = (operand.splits, self.driver.info().multiprocessors);
        let cluster = gemm_few::launch::cluster(variant, [m, n], splits, multiprocessors, |blocks| {
            self.driver.clusters(&variant.spec, blocks)
        })?;
        let mut held = scratch::lock(&self.gemm_scratch);
        let (partials, counters) = match splits {
            1 => (0, 0),
            _ if cluster > 1 => (0, 0),
            splits => {
                let partial_bytes = gemm_few::launch::partial_bytes(variant, m, n, splits);
                let tiles = gemm_few::launch::tiles(variant, m, n) as usize;
                (
                    held.partials.at_least(self, partial_bytes, false)?,
                    held.counters.at_least(self, tiles * WORD, true)?,
                )
            }
        };
        let rows = match norm {
            Some(NormWeights { weight, eps }) => {
                abi::GemmFew { x: a, norm_weight: weight, k, eps, ..operand }
            }
            None => {
                let shape = MapShape::new(BF16 as u32, m, k, variant.tile.tokens);
                abi::GemmFew { a_map: self.driver.tensor_map(&shape.at(a))?, ..operand }
            }
        };
        let params = abi::GemmFew {
            bias,
            residual,
            out,
            partials,
            counters,
            m,
            n,
            out_f32: u32::from(out_f32),
            silu: u32::from(gated),
            clustered: u32::from(cluster > 1),
            ..rows
        };
        let blocks = gemm_few::launch::blocks(variant, m, n, operand.splits, multiprocessors);
        // SAFETY: operands are what a `Product` says, and `operand` describes weights `[n, k]` of this variant's kind; `n` and `k`
        // are multiples of 8. Scratch is as large as the launcher says, and counters are zero: fresh ones are, and launches leave
        // them so. Launches that share scratch follow each other on one stream; the lock is held until this one is in it.
        unsafe { self.launch_clusters(&variant.spec, [blocks, 1, 1], cluster, params) }
    }

    /// The norm's weights, if the product of generated tokens alone takes it in: a row has the same bits either way.
    fn taken_in(
        &self,
        op: &'static str,
        norm: &RmsNormed<'_, Self>,
        w: &GpuMatrix<Dr>,
        normed: &mut GpuTensor<Dr>,
    ) -> Result<Option<NormWeights>> {
        let (x, weight) = (norm.x, norm.weight);
        let Stored::Int4(int4) = &w.stored else { return Ok(None) };
        if x.rows == 0 || x.generated != x.rows || x.cols != w.cols {
            return Ok(None);
        }
        let (m, k) = (dim(op, "rows of x", x.rows)?, dim(op, "columns of x", x.cols)?);
        let splits = gemm_few::launch::splits(dim(op, "rows of w", w.rows)?, k, gemm_few::layout::TILE_K);
        let weights = Weights::Int4 { groups: int4.groups };
        if gemm_few::launch::choose_normed(weights, [m, k], int4.steps, splits).is_none() {
            return Ok(None);
        }
        require(weight.len == x.cols, op, "weight", x.cols, weight.len)?;
        require(normed.cols == x.cols, op, "columns of normed", x.cols, normed.cols)?;
        normed.resize(op, "normed", x.rows, x.generated)?;
        Ok(Some(NormWeights { weight: weight.address, eps: norm.eps }))
    }

    pub(super) fn launch_rms_norm_linear(
        &self,
        norm: RmsNormed<'_, Self>,
        w: &GpuMatrix<Dr>,
        bias: Option<&GpuVector<Dr>>,
        normed: &mut GpuTensor<Dr>,
        out: &mut GpuTensor<Dr>,
    ) -> Result<()> {
        let op = "rms_norm_linear";
        let Some(weights) = self.taken_in(op, &norm, w, normed)? else {
            self.launch_rms_norm(op, norm.x, None, norm.weight, norm.eps, normed)?;
            return self.launch_linear(normed, w, bias, out);
        };
        require(out.cols == w.rows, op, "columns of out", w.rows, out.cols)?;
        out.resize(op, "out", norm.x.rows, norm.x.generated)?;
        let target = Target { out: out.address, residual: 0, f32: false, norm: Some(weights) };
        self.gemm(op, norm.x, w, bias, target)
    }

    pub(super) fn launch_rms_norm_linear_gated(
        &self,
        norm: RmsNormed<'_, Self>,
        w: &GpuMatrix<Dr>,
        normed: &mut GpuTensor<Dr>,
        gate_up: &mut GpuTensor<Dr>,
        out: &mut GpuTensor<Dr>,
    ) -> Result<()> {
        let op = "rms_norm_linear_gated";
        let taken_in = if w.is_paired { self.taken_in(op, &norm, w, normed)? } else { None };
        let Some(weights) = taken_in else {
            self.launch_rms_norm(op, norm.x, None, norm.weight, norm.eps, normed)?;
            return self.launch_linear_gated(normed, w, gate_up, out);
        };
        require(2 * out.cols == w.rows, op, "columns of out", w.rows / 2, out.cols)?;
        require(gate_up.cols == w.rows, op, "columns of gate_up", w.rows, gate_up.cols)?;
        gate_up.resize(op, "gate_up", norm.x.rows, norm.x.generated)?;
        out.resize(op, "out", norm.x.rows, norm.x.generated)?;
        self.gemm_gated(norm.x, w, gate_up, out, Some(weights)).map(drop)
    }
}
