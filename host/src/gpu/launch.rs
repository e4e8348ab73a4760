//! Every launch: what it asks of its arguments, its parameters, its grid.
//!
//! Sizes are checked against the buffers here and the ids of a step against the tables they index, so that what a kernel is
//! given to address is there. A launch over nothing is left out.

use bytemuck::{Zeroable, bytes_of};
use tilewright_kernels::{
    abi::{self, KernelSpec, Params},
    gather_rows::GATHER_ROWS,
    rms_norm::RMS_NORM,
    rope_append,
    silu_mul::{self, SILU_MUL},
};

use super::{
    Driver, GpuCache, GpuDevice, GpuMatrix, GpuStep, GpuTensor, GpuVector,
    decode::Planes,
    select::MAX_GRID_Y,
    step::End,
    storage::{BF16, Stored, dim, require, shape},
};
use crate::{AttentionSpec, Result, RopeAppend};

/// Windows from here on see everything: no context is as long, and sums with positions stay within 32 bits.
const UNBOUNDED_WINDOW: usize = 1 << 30;

impl<Dr: Driver> GpuDevice<Dr> {
    /// # Safety
    /// `params` are those of `spec`, and what they address is large enough.
    pub(super) unsafe fn launch<P: Params>(
        &self,
        spec: &'static KernelSpec,
        grid: [u32; 3],
        params: P,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        if self.recording.takes(spec, grid, bytes_of(&params)) {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.driver.launch(spec, grid, bytes_of(&params)) }
    }

    fn gather(&self, table: u64, ids: u64, rows: usize, out: &GpuTensor<Dr>, op: &'static str) -> Result<()> {
        let (rows, cols) = (dim(op, "rows", rows)?, dim(op, "cols", out.cols)?);
        let params = abi::GatherRows { table, ids, out: out.address, rows, cols };
        // SAFETY: both callers checked the ids against the table, and sized `out` to `rows` of the table's columns.
        unsafe { self.launch(&GATHER_ROWS, [rows, 1, 1], params) }
    }

    pub(super) fn launch_embed(
        &self,
        table: &GpuMatrix<Dr>,
        step: &GpuStep<Dr>,
        out: &mut GpuTensor<Dr>,
    ) -> Result<()> {
        let plan = &step.plan;
        require(out.cols == table.cols, "embed", "columns of out", table.cols, out.cols)?;
        step.note(End::Ids, table.rows);
        require(
            plan.ids_end <= table.rows,
            "embed",
            "token ids",
            format!("below {}", table.rows),
            plan.ids_end.saturating_sub(1),
        )?;
        require(
            matches!(table.stored, Stored::Bf16(_)),
            "embed",
            "table",
            "rows of numbers",
            "quantised weights",
        )?;
        out.resize("embed", "out", plan.tokens, plan.generated)?;
        self.gather(table.address, step.at(plan.ids), plan.tokens, out, "embed")
    }

    pub(super) fn launch_select_outputs(
        &self,
        x: &GpuTensor<Dr>,
        step: &GpuStep<Dr>,
        out: &mut GpuTensor<Dr>,
    ) -> Result<()> {
        let plan = &step.plan;
        require(x.rows == plan.tokens, "select_outputs", "rows of x", plan.tokens, x.rows)?;
        require(out.cols == x.cols, "select_outputs", "columns of out", x.cols, out.cols)?;
        out.resize("select_outputs", "out", plan.output_rows, plan.generated_outputs)?;
        self.gather(
            x.numbers("select_outputs", "x")?,
            step.at(plan.outputs),
            plan.output_rows,
            out,
            "select_outputs",
        )
    }

    pub(super) fn launch_rms_norm(
        &self,
        op: &'static str,
        x: &GpuTensor<Dr>,
        residual: Option<&mut GpuTensor<Dr>>,
        weight: &GpuVector<Dr>,
        eps: f32,
        out: &mut GpuTensor<Dr>,
    ) -> Result<()> {
        require(weight.len == x.cols, op, "weight", x.cols, weight.len)?;
        require(out.cols == x.cols, op, "columns of out", x.cols, out.cols)?;
        if let Some(residual) = &residual {
            let (found, expected) = ((residual.rows, residual.cols), (x.rows, x.cols));
            require(found == expected, op, "residual", format!("{expected:?}"), format!("{found:?}"))?;
        }
        out.resize(op, "out", x.rows, x.generated)?;
        let (rows, cols) = (dim(op, "rows", x.rows)?, dim(op, "cols", x.cols)?);
        let residual = residual.map_or(Ok(0), |residual| residual.numbers(op, "residual"))?;
        let (x, weight, out) = (x.numbers(op, "x")?, weight.address, out.address);
        let params = abi::RmsNorm { x, residual, weight, out, rows, cols, eps, reserved: 0 };
        // SAFETY: `x`, `residual` and `out` are `[rows, cols]` and `weight` `[cols]`, as checked above.
        unsafe { self.launch(&RMS_NORM, [rows, 1, 1], params) }
    }

    pub(super) fn launch_silu_mul(&self, gate_up: &GpuTensor<Dr>, out: &mut GpuTensor<Dr>) -> Result<()> {
        let op = "silu_mul";
        require(gate_up.cols == 2 * out.cols, op, "columns of gate_up", 2 * out.cols, gate_up.cols)?;
        out.resize(op, "out", gate_up.rows, gate_up.generated)?;
        self.silu_mul_rows(gate_up, out, 0, false)
    }

    /// Rows from `first` on; `out` has the rows of `gate_up` and half of its columns, as the callers checked.
    pub(super) fn silu_mul_rows(
        &self,
        gate_up: &GpuTensor<Dr>,
        out: &GpuTensor<Dr>,
        first: usize,
        is_paired: bool,
    ) -> Result<()> {
        let op = "silu_mul";
        let (rows, inter) = (dim(op, "rows", gate_up.rows - first)?, dim(op, "cols", out.cols)?);
        let params = abi::SiluMul {
            gate_up: gate_up.numbers(op, "gate_up")? + (first * gate_up.cols * BF16) as u64,
            out: out.address + (first * out.cols * BF16) as u64,
            rows,
            inter,
            paired: u32::from(is_paired),
            reserved: 0,
        };
        // SAFETY: `gate_up` is `[rows, 2 * inter]` and `out` `[rows, inter]`, as checked above.
        unsafe { self.launch(&SILU_MUL, [rows, silu_mul::parts(inter), 1], params) }
    }

    pub(super) fn launch_rope_append(
        &self,
        args: RopeAppend<'_, Self>,
        step: &GpuStep<Dr>,
        cache: &mut GpuCache<Dr>,
        q: &mut GpuTensor<Dr>,
    ) -> Result<()> {
        let op = "rope_append";
        let (RopeAppend { qkv, qk_norm, rope, q_heads, layer }, plan, spec) = (args, &step.plan, cache.spec);
        let cols = (q_heads + 2 * spec.kv_heads) * spec.head_dim;
        require(qkv.cols == cols, op, "columns of qkv", cols, qkv.cols)?;
        require(qkv.rows == plan.tokens, op, "rows of qkv", plan.tokens, qkv.rows)?;
        require(q.cols == q_heads * spec.head_dim, op, "columns of q", q_heads * spec.head_dim, q.cols)?;
        require(rope.head_dim == spec.head_dim, op, "rope", spec.head_dim, rope.head_dim)?;
        step.note(End::Positions, rope.max_position);
        let positions = || format!("below {}", rope.max_position);
        require(plan.positions_end <= rope.max_position, op, "positions", positions(), plan.positions_end)?;
        let slots = spec.pages * spec.page_size;
        step.note(End::Slots, slots);
        require(plan.slots_end <= slots, op, "slots", format!("below {slots}"), plan.slots_end)?;
        let mut params = abi::RopeAppend { eps: 0.0, ..Zeroable::zeroed() };
        if let Some((q_norm, k_norm, eps)) = qk_norm {
            require(q_norm.len == spec.head_dim, op, "q_norm", spec.head_dim, q_norm.len)?;
            require(k_norm.len == spec.head_dim, op, "k_norm", spec.head_dim, k_norm.len)?;
            params = abi::RopeAppend { q_norm: q_norm.address, k_norm: k_norm.address, eps, ..params };
        }
        q.resize(op, "q", plan.tokens, plan.generated)?;
        let planes = cache.layer(op, layer)?;
        let ([k_cache, v_cache], [k_scales, v_scales]) = (planes.elements, planes.scales);
        let params = abi::RopeAppend {
            qkv: qkv.numbers(op, "qkv")?,
            cos_sin: rope.address,
            positions: step.at(plan.positions),
            slots: step.at(plan.slots),
            q_out: q.address,
            k_cache,
            v_cache,
            k_scales,
            v_scales,
            tokens: dim(op, "tokens", plan.tokens)?,
            q_heads: dim(op, "q_heads", q_heads)?,
            kv_heads: dim(op, "kv_heads", spec.kv_heads)?,
            head_dim: dim(op, "head_dim", spec.head_dim)?,
            page_size: dim(op, "page_size", spec.page_size)?,
            ..params
        };
        let grid = rope_append::grid(params.tokens, params.q_heads, params.kv_heads, params.head_dim);
        let Some(kernel) = rope_append::spec(cache.format()) else {
            return Err(shape(op, "dtype of the cache", "bf16, int8 or fp8", cache.format()));
        };
        // SAFETY: `qkv` and `q` have the step's rows and the columns checked above, positions are in the table and slots in the
        // cache, whose layer is there, with scales where the kernel writes some; norms have a head's length.
        unsafe { self.launch(kernel, grid, params) }
    }

    pub(super) fn launch_attention(
        &self,
        q: &GpuTensor<Dr>,
        cache: &GpuCache<Dr>,
        layer: usize,
        step: &GpuStep<Dr>,
        spec: &AttentionSpec,
        out: &mut GpuTensor<Dr>,
    ) -> Result<()> {
        let op = "attention";
        let (plan, held, q_heads) = (&step.plan, cache.spec, spec.q_heads);
        let grouped = q_heads > 0 && q_heads.is_multiple_of(held.kv_heads) && q_heads <= MAX_GRID_Y as usize;
        require(
            grouped,
            op,
            "q_heads",
            format!("a multiple of {}, at most {MAX_GRID_Y}", held.kv_heads),
            q_heads,
        )?;
        require(q.cols == q_heads * held.head_dim, op, "columns of q", q_heads * held.head_dim, q.cols)?;
        require(q.rows == plan.tokens, op, "rows of q", plan.tokens, q.rows)?;
        require(out.cols == q.cols, op, "columns of out", q.cols, out.cols)?;
        let (pages, page_size) = (held.pages, dim(op, "page_size", held.page_size)?);
        step.note(End::Pages, pages);
        step.note(End::PageSize, held.page_size);
        require(plan.pages_end <= pages, op, "pages", format!("below {pages}"), plan.pages_end)?;
        require(
            plan.min_page_size <= page_size,
            op,
            "page_size",
            format!("at least {}", plan.min_page_size),
            page_size,
        )?;
        require(spec.window != Some(0), op, "window", "above 0", 0)?;
        out.resize(op, "out", plan.tokens, plan.generated)?;
        let planes = cache.layer(op, layer)?;
        let ([k_cache, v_cache], [k_wide, v_wide]) = (planes.elements, planes.wide);
        let params = abi::AttentionPrefill {
            q: q.numbers(op, "q")?,
            k_cache: k_wide,
            v_cache: v_wide,
            out: out.address,
            seq_ids: step.at(plan.prefill.seq_ids),
            q_starts: step.at(plan.q_starts),
            kv_lens: step.at(plan.kv_lens),
            block_table: step.at(plan.block_table),
            lse: 0,
            kv_row_starts: 0,
            block_table_stride: plan.block_table_stride,
            page_size,
            q_heads: dim(op, "q_heads", q_heads)?,
            kv_heads: dim(op, "kv_heads", held.kv_heads)?,
            scale: spec.scale,
            softcap: spec.softcap.unwrap_or(0.0),
            causal: u32::from(spec.causal),
            window: spec.window.filter(|&w| w < UNBOUNDED_WINDOW).map_or(0, |w| w as u32),
        };
        self.widen_for_prefill(cache, &planes, step)?;
        self.attention_prefill(params, held.head_dim as u32, pages, step)?;
        let stored = Planes { format: cache.format(), head_dim: held.head_dim, scales: planes.scales };
        self.attention_decode(abi::AttentionPrefill { k_cache, v_cache, ..params }, stored, step)
    }
}
