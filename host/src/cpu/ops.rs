use super::attention::{self, attention};
use super::encoders;
use super::layers::{self, MAX_HEAD_DIM, RopeArgs};
use super::linear::{Epilogue, linear, linear_gated};
use super::parallel;
use super::{
    CpuCache, CpuDevice, CpuLogits, CpuMatrix, CpuRope, CpuStep, CpuTensor, CpuVector, Precision, sampling,
    scores, shape,
};
use crate::{
    AttentionSpec, Batch, CacheSpec, Device, Gelu, HostMatrix, HostQuantized, LogitChanges, Result,
    RopeAppend, SampleRow, Tensor,
};

impl CpuDevice {
    /// The checks and the call that every product shares.
    fn product(
        &self,
        op: &'static str,
        (x, w): (&CpuTensor, &CpuMatrix),
        epilogue: Epilogue<'_>,
        (what, out): (&'static str, &mut CpuTensor),
    ) -> Result<()> {
        check_columns(op, "x", w.cols, x.cols())?;
        if let Some(bias) = epilogue.bias {
            bias.expect(op, "bias", w.rows)?;
        }
        out.prepare(op, what, x.rows(), w.rows)?;
        linear(self.level, x, w, epilogue, out);
        Ok(())
    }
}

impl Device for CpuDevice {
    type Tensor = CpuTensor;
    type Matrix = CpuMatrix;
    type Vector = CpuVector;
    type Rope = CpuRope;
    type Cache = CpuCache;
    type Step = CpuStep;
    type Logits = CpuLogits;
    type Replays = ();

    fn describe(&self) -> String {
        let rounding = match self.precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "f32 rounded to bf16",
        };
        format!("CPU, {} threads, {}, {rounding}", parallel::threads(), self.level.name())
    }

    fn tensor(&self, max_rows: usize, cols: usize) -> Result<CpuTensor> {
        CpuTensor::new(max_rows, cols, "activations")
    }

    fn logits(&self, max_rows: usize, vocab: usize) -> Result<CpuLogits> {
        CpuTensor::new(max_rows, vocab, "logits").map(CpuLogits)
    }

    fn matrix(&self, weights: &HostMatrix<'_>) -> Result<CpuMatrix> {
        CpuMatrix::new(weights, self.precision)
    }

    fn quantized(&self, weights: &HostQuantized) -> Result<CpuMatrix> {
        CpuMatrix::quantized(weights, self.precision)
    }

    fn vector(&self, values: &[f32]) -> Result<CpuVector> {
        CpuVector::new(values)
    }

    fn rope(&self, inv_freq: &[f32], attention_factor: f32, max_position: usize) -> Result<CpuRope> {
        CpuRope::new(inv_freq, attention_factor, max_position)
    }

    fn cache(&self, spec: CacheSpec) -> Result<CpuCache> {
        if spec.head_dim > MAX_HEAD_DIM {
            return Err(shape("cache", "head_dim", format!("at most {MAX_HEAD_DIM}"), spec.head_dim));
        }
        CpuCache::new(spec)
    }

    fn cache_bytes(&self, cache: &CpuCache) -> usize {
        cache.bytes()
    }

    fn copy_pages(&self, cache: &mut CpuCache, copies: &[(u32, u32)]) -> Result<()> {
        cache.copy_pages(copies)
    }

    fn step(&self, batch: &Batch) -> Result<CpuStep> {
        CpuStep::new(batch)
    }

    fn wanted_alone(&self, step: &CpuStep) -> Result<Option<CpuStep>> {
        step.0.wanted_alone().map(|batch| CpuStep::new(&batch)).transpose()
    }

    fn embed(&self, table: &CpuMatrix, step: &CpuStep, out: &mut CpuTensor) -> Result<()> {
        let ids = &step.0.ids;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= table.rows) {
            return Err(shape("embed", "ids", format!("below {}", table.rows), id));
        }
        out.prepare("embed", "out", ids.len(), table.cols)?;
        let (stride, cols, out) = (out.stride(), table.cols, out.shared());
        // The lanes of a panel are apart: an element costs a cache line.
        parallel::rows(ids.len(), 8 * cols, |rows| {
            for row in rows {
                // SAFETY: each row is one task's.
                table.read_row(ids[row] as usize, unsafe { out.slice(row * stride, cols) });
            }
        });
        Ok(())
    }

    fn embed_sum(
        &self,
        table: &CpuMatrix,
        places: &CpuMatrix,
        step: &CpuStep,
        out: &mut CpuTensor,
    ) -> Result<()> {
        let op = "embed_sum";
        if table.cols != places.cols {
            return Err(shape(op, "places", format!("{} columns", table.cols), places.cols));
        }
        for (what, indices, rows) in
            [("ids", &step.0.ids, table.rows), ("positions", &step.0.positions, places.rows)]
        {
            if let Some(index) = indices.iter().find(|&&index| index as usize >= rows) {
                return Err(shape(op, what, format!("below {rows}"), index));
            }
        }
        out.prepare(op, "out", step.0.tokens(), table.cols)?;
        encoders::embed_sum((table, &step.0.ids), (places, &step.0.positions), self.rounds(), out);
        Ok(())
    }

    fn write(&self, values: &[f32], out: &mut CpuTensor) -> Result<()> {
        let cols = out.cols();
        if cols == 0 || !values.len().is_multiple_of(cols) {
            return Err(shape("write", "values", format!("a multiple of {cols}"), values.len()));
        }
        out.prepare("write", "out", values.len() / cols, cols)?;
        let (stride, out) = (out.stride(), out.shared());
        for (row, values) in values.chunks_exact(cols).enumerate() {
            // SAFETY: the rows are within the output, which is borrowed exclusively.
            let out = unsafe { out.slice(row * stride, cols) };
            out.copy_from_slice(values);
            layers::round_row(out, self.rounds());
        }
        Ok(())
    }

    fn layer_norm(
        &self,
        x: &CpuTensor,
        weight: &CpuVector,
        bias: Option<&CpuVector>,
        eps: f32,
        out: &mut CpuTensor,
    ) -> Result<()> {
        let op = "layer_norm";
        weight.expect(op, "weight", x.cols())?;
        if let Some(bias) = bias {
            bias.expect(op, "bias", x.cols())?;
        }
        out.prepare(op, "out", x.rows(), x.cols())?;
        encoders::layer_norm(self.level, x, (weight, bias, eps), self.rounds(), out);
        Ok(())
    }

    fn gelu(&self, x: &CpuTensor, form: Gelu, out: &mut CpuTensor) -> Result<()> {
        out.prepare("gelu", "out", x.rows(), x.cols())?;
        encoders::gelu(self.level, x, form, self.rounds(), out);
        Ok(())
    }

    fn rms_norm(&self, x: &CpuTensor, weight: &CpuVector, eps: f32, out: &mut CpuTensor) -> Result<()> {
        weight.expect("rms_norm", "weight", x.cols())?;
        out.prepare("rms_norm", "out", x.rows(), x.cols())?;
        layers::rms_norm(self.level, x, None, weight, eps, self.rounds(), out);
        Ok(())
    }

    fn add_rms_norm(
        &self,
        x: &CpuTensor,
        residual: &mut CpuTensor,
        weight: &CpuVector,
        eps: f32,
        out: &mut CpuTensor,
    ) -> Result<()> {
        let op = "add_rms_norm";
        weight.expect(op, "weight", x.cols())?;
        check_residual(op, residual, x.rows())?;
        residual.prepare(op, "residual", x.rows(), x.cols())?;
        out.prepare(op, "out", x.rows(), x.cols())?;
        layers::rms_norm(self.level, x, Some(residual), weight, eps, self.rounds(), out);
        Ok(())
    }

    fn linear(
        &self,
        x: &CpuTensor,
        w: &CpuMatrix,
        bias: Option<&CpuVector>,
        out: &mut CpuTensor,
    ) -> Result<()> {
        self.product("linear", (x, w), Epilogue { bias, residual: false, round: self.rounds() }, ("out", out))
    }

    fn linear_gated(
        &self,
        x: &CpuTensor,
        w: &CpuMatrix,
        gate_up: &mut CpuTensor,
        out: &mut CpuTensor,
    ) -> Result<()> {
        let op = "linear_gated";
        check_columns(op, "x", w.cols, x.cols())?;
        if w.rows != 2 * out.cols() {
            return Err(shape(op, "w", format!("{} rows", 2 * out.cols()), format!("{} rows", w.rows)));
        }
        out.prepare(op, "out", x.rows(), out.cols())?;
        if linear_gated(self.level, x, w, self.rounds(), out) {
            return Ok(());
        }
        self.linear(x, w, None, gate_up)?;
        self.silu_mul(gate_up, out)
    }

    fn linear_residual(
        &self,
        x: &CpuTensor,
        w: &CpuMatrix,
        bias: Option<&CpuVector>,
        residual: &mut CpuTensor,
    ) -> Result<()> {
        let op = "linear_residual";
        check_residual(op, residual, x.rows())?;
        self.product(
            op,
            (x, w),
            Epilogue { bias, residual: true, round: self.rounds() },
            ("residual", residual),
        )
    }

    fn rope_append(
        &self,
        args: RopeAppend<'_, Self>,
        step: &CpuStep,
        cache: &mut CpuCache,
        q: &mut CpuTensor,
    ) -> Result<()> {
        let op = "rope_append";
        let CacheSpec { pages, page_size, kv_heads, head_dim, .. } = cache.layout.spec;
        step.check_rows(op, "qkv", args.qkv.rows())?;
        cache.check_layer(op, args.layer)?;
        let cols = (args.q_heads + 2 * kv_heads) * head_dim;
        check_columns(op, "qkv", cols, args.qkv.cols())?;
        if args.rope.head_dim != head_dim {
            return Err(shape(op, "rope", format!("{head_dim} elements a head"), args.rope.head_dim));
        }
        if let Some((q_norm, k_norm, _)) = args.qk_norm {
            q_norm.expect(op, "q_norm", head_dim)?;
            k_norm.expect(op, "k_norm", head_dim)?;
        }
        let positions = args.rope.positions;
        if let Some(position) = step.0.positions.iter().find(|&&position| position as usize >= positions) {
            return Err(shape(op, "positions", format!("below {positions}"), position));
        }
        if let Some(slot) = step.0.slots.iter().find(|&&slot| slot as usize / page_size >= pages) {
            return Err(shape(op, "slots", format!("below {pages} * {page_size}"), slot));
        }
        q.prepare(op, "q", step.0.tokens(), args.q_heads * head_dim)?;
        let args = RopeArgs {
            qkv: args.qkv,
            norms: args.qk_norm.map(|(q_norm, k_norm, eps)| (q_norm.values(), k_norm.values(), eps)),
            rope: args.rope,
            positions: &step.0.positions,
            slots: &step.0.slots,
            q_heads: args.q_heads,
            layer: args.layer,
            round: self.rounds(),
        };
        layers::rope_append(self.level, &args, cache, q);
        Ok(())
    }

    fn attention(
        &self,
        q: &CpuTensor,
        cache: &CpuCache,
        layer: usize,
        step: &CpuStep,
        spec: &AttentionSpec,
        out: &mut CpuTensor,
    ) -> Result<()> {
        let op = "attention";
        let CacheSpec { kv_heads, head_dim, .. } = cache.layout.spec;
        step.check_rows(op, "q", q.rows())?;
        step.check_pages(op, &cache.layout.spec)?;
        cache.check_layer(op, layer)?;
        if spec.q_heads == 0 || !spec.q_heads.is_multiple_of(kv_heads) {
            return Err(shape(op, "q_heads", format!("a multiple of {kv_heads}"), spec.q_heads));
        }
        if spec.window == Some(0) {
            return Err(shape(op, "window", "above 0", 0));
        }
        if !spec.causal && step.0.spans.iter().any(|span| span.drafts.is_some()) {
            return Err(shape(op, "causal", "true for drafts", false));
        }
        let cols = spec.q_heads * head_dim;
        check_columns(op, "q", cols, q.cols())?;
        out.prepare(op, "out", q.rows(), cols)?;
        let args = attention::Args { q, cache, layer, spec, round: self.rounds() };
        attention(self.level, args, &step.0.spans, out);
        Ok(())
    }

    fn causal_softmax(&self, scale: f32, scores: &mut CpuTensor) -> Result<()> {
        let op = "causal_softmax";
        if !scores.rows().is_multiple_of(scores.cols().max(1)) {
            return Err(shape(
                op,
                "rows of scores",
                format!("a multiple of {}", scores.cols()),
                scores.rows(),
            ));
        }
        if scale.partial_cmp(&0.0) != Some(std::cmp::Ordering::Greater) {
            return Err(shape(op, "scale", "above 0", scale));
        }
        scores::causal_softmax(self.level, scale, self.rounds(), scores);
        Ok(())
    }

    fn silu_mul(&self, gate_up: &CpuTensor, out: &mut CpuTensor) -> Result<()> {
        check_columns("silu_mul", "gate_up", 2 * out.cols(), gate_up.cols())?;
        out.prepare("silu_mul", "out", gate_up.rows(), out.cols())?;
        layers::silu_mul(self.level, gate_up, self.rounds(), out);
        Ok(())
    }

    fn select_outputs(&self, x: &CpuTensor, step: &CpuStep, out: &mut CpuTensor) -> Result<()> {
        step.check_rows("select_outputs", "x", x.rows())?;
        let outputs = &step.0.outputs;
        out.prepare("select_outputs", "out", outputs.len(), x.cols())?;
        let (stride, out) = (out.stride(), out.shared());
        for (row, &source) in outputs.iter().enumerate() {
            // SAFETY: the rows are within the output, which is borrowed exclusively.
            unsafe { out.slice(row * stride, x.cols()) }.copy_from_slice(x.row(source as usize));
        }
        Ok(())
    }

    fn set_logit_rows(&self, logits: &mut CpuLogits, rows: usize) -> Result<()> {
        logits.0.set_rows(rows)
    }

    fn project_logits(&self, x: &CpuTensor, w: &CpuMatrix, out: &mut CpuLogits) -> Result<()> {
        let epilogue = Epilogue { bias: None, residual: false, round: false };
        self.product("project_logits", (x, w), epilogue, ("out", &mut out.0))
    }

    fn adjust_logits(&self, logits: &mut CpuLogits, changes: &LogitChanges) -> Result<()> {
        changes.check(logits.0.rows(), logits.0.cols())?;
        let (stride, cols) = (logits.0.stride(), logits.0.cols());
        let out = logits.0.shared();
        for (row, changes) in changes.by_row() {
            // SAFETY: the row is one of the logits, which are borrowed exclusively.
            let row = unsafe { out.slice(row * stride, cols) };
            for change in changes {
                let logit = &mut row[change.token as usize];
                *logit = change.of(*logit);
            }
        }
        Ok(())
    }

    fn argmax(&self, logits: &CpuLogits) -> Result<Vec<u32>> {
        sampling::argmax(&logits.0)
    }

    fn sample(&self, logits: &CpuLogits, rows: &[SampleRow]) -> Result<Vec<u32>> {
        check_row_count("sample", logits, rows)?;
        sampling::sample(&logits.0, rows)
    }

    fn choose(&self, logits: &CpuLogits, rows: &[SampleRow]) -> Result<Vec<Option<u32>>> {
        check_row_count("choose", logits, rows)?;
        Ok(sampling::choose(&logits.0, rows))
    }

    fn read_logit_rows(&self, logits: &CpuLogits, rows: &[u32]) -> Result<Vec<f32>> {
        let held = logits.0.rows();
        let mut values = Vec::with_capacity(rows.len() * logits.0.cols());
        for &row in rows {
            if row as usize >= held {
                return Err(shape("read_logit_rows", "rows", format!("below {held}"), row));
            }
            values.extend_from_slice(logits.0.row(row as usize));
        }
        Ok(values)
    }

    fn read_logits(&self, logits: &CpuLogits) -> Result<Vec<f32>> {
        logits.0.to_vec()
    }

    fn read(&self, tensor: &CpuTensor) -> Result<Vec<f32>> {
        tensor.to_vec()
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

fn check_columns(op: &'static str, what: &'static str, expected: usize, found: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(shape(op, what, format!("{expected} columns"), format!("{found} columns")))
}

fn check_row_count(op: &'static str, logits: &CpuLogits, rows: &[SampleRow]) -> Result<()> {
    if rows.len() == logits.0.rows() {
        return Ok(());
    }
    Err(shape(op, "rows", format!("{} rows", logits.0.rows()), format!("{} rows", rows.len())))
}

/// A residual is read: it must hold the rows that are added to it.
fn check_residual(op: &'static str, residual: &CpuTensor, rows: usize) -> Result<()> {
    if residual.rows() == rows {
        return Ok(());
    }
    Err(shape(op, "residual", format!("{rows} rows"), format!("{} rows", residual.rows())))
}
