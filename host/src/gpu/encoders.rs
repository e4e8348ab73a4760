//! Launches for models without rotary positions and gates: learned positions, layer norms, activations.

use half::bf16;
use tilewright_kernels::{
    abi::{self, GELU_ERF, GELU_TANH},
    embed_sum::EMBED_SUM,
    gelu::GELU,
    layer_norm::LAYER_NORM,
};

use super::{
    Driver, GpuDevice, GpuMatrix, GpuStep, GpuTensor, GpuVector,
    step::End,
    storage::{Stored, dim, require},
};
use crate::{Gelu, Result};

impl<Dr: Driver> GpuDevice<Dr> {
    pub(super) fn launch_embed_sum(
        &self,
        table: &GpuMatrix<Dr>,
        places: &GpuMatrix<Dr>,
        step: &GpuStep<Dr>,
        out: &mut GpuTensor<Dr>,
    ) -> Result<()> {
        let (op, plan) = ("embed_sum", &step.plan);
        for (what, matrix) in [("columns of table", table), ("columns of places", places)] {
            require(matrix.cols == out.cols, op, what, out.cols, matrix.cols)?;
            let numbers = matches!(matrix.stored, Stored::Bf16(_));
            require(numbers, op, "tables", "rows of numbers", "quantised weights")?;
        }
        step.note(End::Ids, table.rows);
        step.note(End::Positions, places.rows);
        for (what, end, rows) in
            [("token ids", plan.ids_end, table.rows), ("positions", plan.positions_end, places.rows)]
        {
            require(end <= rows, op, what, format!("below {rows}"), end.saturating_sub(1))?;
        }
        out.resize(op, "out", plan.tokens, plan.generated)?;
        let (rows, cols) = (dim(op, "rows", plan.tokens)?, dim(op, "cols", out.cols)?);
        let params = abi::EmbedSum {
            table: table.address,
            places: places.address,
            ids: step.at(plan.ids),
            positions: step.at(plan.positions),
            out: out.address,
            rows,
            cols,
        };
        // SAFETY: ids and positions are `[rows]` and below the rows of their tables, which have the columns of `out`, as checked above.
        unsafe { self.launch(&EMBED_SUM, [rows, 1, 1], params) }
    }

    /// Rows of activations from the host, of no generated token.
    pub(super) fn upload_rows(&self, values: &[f32], out: &mut GpuTensor<Dr>) -> Result<()> {
        let whole = values.len().is_multiple_of(out.cols);
        require(whole, "write", "values", format!("a multiple of {}", out.cols), values.len())?;
        out.resize("write", "out", values.len() / out.cols, 0)?;
        let rounded: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
        self.upload(&out.buffer, 0, bytemuck::cast_slice(&rounded))
    }

    pub(super) fn launch_layer_norm(
        &self,
        x: &GpuTensor<Dr>,
        weight: &GpuVector<Dr>,
        bias: Option<&GpuVector<Dr>>,
        eps: f32,
        out: &mut GpuTensor<Dr>,
    ) -> Result<()> {
        let op = "layer_norm";
        require(weight.len == x.cols, op, "weight", x.cols, weight.len)?;
        if let Some(bias) = bias {
            require(bias.len == x.cols, op, "bias", x.cols, bias.len)?;
        }
        require(out.cols == x.cols, op, "columns of out", x.cols, out.cols)?;
        out.resize(op, "out", x.rows, x.generated)?;
        let (rows, cols) = (dim(op, "rows", x.rows)?, dim(op, "cols", x.cols)?);
        let params = abi::LayerNorm {
            x: x.numbers(op, "x")?,
            residual: 0,
            weight: weight.address,
            bias: bias.map_or(0, |bias| bias.address),
            out: out.address,
            rows,
            cols,
            eps,
            reserved: 0,
        };
        // SAFETY: `x` and `out` are `[rows, cols]`, `weight` and `bias` `[cols]`, as checked above.
        unsafe { self.launch(&LAYER_NORM, [rows, 1, 1], params) }
    }

    pub(super) fn launch_gelu(&self, x: &GpuTensor<Dr>, form: Gelu, out: &mut GpuTensor<Dr>) -> Result<()> {
        let op = "gelu";
        require(out.cols == x.cols, op, "columns of out", x.cols, out.cols)?;
        out.resize(op, "out", x.rows, x.generated)?;
        let (rows, cols) = (dim(op, "rows", x.rows)?, dim(op, "cols", x.cols)?);
        let kind = match form {
            Gelu::Erf => GELU_ERF,
            Gelu::Tanh => GELU_TANH,
        };
        let params = abi::Gelu { x: x.numbers(op, "x")?, out: out.address, rows, cols, kind, reserved: 0 };
        // SAFETY: `x` and `out` are `[rows, cols]`, as checked above.
        unsafe { self.launch(&GELU, [rows, 1, 1], params) }
    }
}
