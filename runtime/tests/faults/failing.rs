//! A device that fails once, at an operation of the test's choice.

use std::sync::atomic::{AtomicI64, Ordering};

use tilewright_host::{
    AttentionSpec, Batch, CacheSpec, Device, Error, Gelu, HostMatrix, HostQuantized, LogitChanges, Result,
    RopeAppend, SampleRow,
};

/// Another device whose operation number `at` fails.
pub struct Failing<D> {
    inner: D,
    /// Operations until the one that fails; negative once it has.
    left: AtomicI64,
}

/// More operations than a test has.
const NEVER: i64 = i64::MAX / 2;

impl<D: Device> Failing<D> {
    pub fn new(inner: D) -> Failing<D> {
        Failing { inner, left: AtomicI64::new(NEVER) }
    }

    /// Of the operations from here on, number `at` fails; none for none.
    pub fn fail_at(&self, at: Option<usize>) {
        self.left.store(at.map_or(NEVER, |at| at as i64), Ordering::SeqCst);
    }

    /// Operations since all were to go well.
    pub fn count(&self) -> usize {
        (NEVER - self.left.load(Ordering::SeqCst)) as usize
    }

    /// Whether the failure has been.
    pub fn has_failed(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }

    fn launch(&self, call: &'static str) -> Result<()> {
        match self.left.fetch_sub(1, Ordering::SeqCst) {
            0 => Err(Error::Driver { call, code: "INJECTED".into(), observed: None }),
            _ => Ok(()),
        }
    }

    fn allocate(&self, purpose: &'static str) -> Result<()> {
        let refused = Error::OutOfMemory { device: "failing".into(), requested_bytes: 1, purpose };
        self.launch("alloc").map_err(|_| refused)
    }
}

impl<D: Device> Device for Failing<D> {
    type Tensor = D::Tensor;
    type Matrix = D::Matrix;
    type Vector = D::Vector;
    type Rope = D::Rope;
    type Cache = D::Cache;
    type Step = D::Step;
    type Logits = D::Logits;
    type Replays = D::Replays;

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn tensor(&self, max_rows: usize, cols: usize) -> Result<D::Tensor> {
        self.allocate("activations")?;
        self.inner.tensor(max_rows, cols)
    }

    fn logits(&self, max_rows: usize, vocab: usize) -> Result<D::Logits> {
        self.allocate("logits")?;
        self.inner.logits(max_rows, vocab)
    }

    fn matrix(&self, weights: &HostMatrix<'_>) -> Result<D::Matrix> {
        self.allocate("weights")?;
        self.inner.matrix(weights)
    }

    fn quantized(&self, weights: &HostQuantized) -> Result<D::Matrix> {
        self.allocate("weights")?;
        self.inner.quantized(weights)
    }

    fn vector(&self, values: &[f32]) -> Result<D::Vector> {
        self.allocate("weights")?;
        self.inner.vector(values)
    }

    fn rope(&self, inv_freq: &[f32], attention_factor: f32, max_position: usize) -> Result<D::Rope> {
        self.allocate("rotary table")?;
        self.inner.rope(inv_freq, attention_factor, max_position)
    }

    fn cache(&self, spec: CacheSpec) -> Result<D::Cache> {
        self.allocate("the KV cache")?;
        self.inner.cache(spec)
    }

    fn cache_bytes(&self, cache: &D::Cache) -> usize {
        self.inner.cache_bytes(cache)
    }

    fn copy_pages(&self, cache: &mut D::Cache, copies: &[(u32, u32)]) -> Result<()> {
        self.launch("copy_pages")?;
        self.inner.copy_pages(cache, copies)
    }

    fn step(&self, batch: &Batch) -> Result<D::Step> {
        self.allocate("a step's metadata")?;
        self.inner.step(batch)
    }

    fn set_logit_rows(&self, logits: &mut D::Logits, rows: usize) -> Result<()> {
        self.inner.set_logit_rows(logits, rows)
    }

    fn embed(&self, table: &D::Matrix, step: &D::Step, out: &mut D::Tensor) -> Result<()> {
        self.launch("embed")?;
        self.inner.embed(table, step, out)
    }

    fn embed_sum(
        &self,
        table: &D::Matrix,
        places: &D::Matrix,
        step: &D::Step,
        out: &mut D::Tensor,
    ) -> Result<()> {
        self.launch("embed_sum")?;
        self.inner.embed_sum(table, places, step, out)
    }

    fn write(&self, values: &[f32], out: &mut D::Tensor) -> Result<()> {
        self.launch("write")?;
        self.inner.write(values, out)
    }

    fn layer_norm(
        &self,
        x: &D::Tensor,
        weight: &D::Vector,
        bias: Option<&D::Vector>,
        eps: f32,
        out: &mut D::Tensor,
    ) -> Result<()> {
        self.launch("layer_norm")?;
        self.inner.layer_norm(x, weight, bias, eps, out)
    }

    fn gelu(&self, x: &D::Tensor, form: Gelu, out: &mut D::Tensor) -> Result<()> {
        self.launch("gelu")?;
        self.inner.gelu(x, form, out)
    }

    fn rms_norm(&self, x: &D::Tensor, weight: &D::Vector, eps: f32, out: &mut D::Tensor) -> Result<()> {
        self.launch("rms_norm")?;
        self.inner.rms_norm(x, weight, eps, out)
    }

    fn add_rms_norm(
        &self,
        x: &D::Tensor,
        residual: &mut D::Tensor,
        weight: &D::Vector,
        eps: f32,
        out: &mut D::Tensor,
    ) -> Result<()> {
        self.launch("add_rms_norm")?;
        self.inner.add_rms_norm(x, residual, weight, eps, out)
    }

    fn linear(
        &self,
        x: &D::Tensor,
        w: &D::Matrix,
        bias: Option<&D::Vector>,
        out: &mut D::Tensor,
    ) -> Result<()> {
        self.launch("linear")?;
        self.inner.linear(x, w, bias, out)
    }

    fn linear_residual(
        &self,
        x: &D::Tensor,
        w: &D::Matrix,
        bias: Option<&D::Vector>,
        residual: &mut D::Tensor,
    ) -> Result<()> {
        self.launch("linear_residual")?;
        self.inner.linear_residual(x, w, bias, residual)
    }

    fn rope_append(
        &self,
        args: RopeAppend<'_, Self>,
        step: &D::Step,
        cache: &mut D::Cache,
        q: &mut D::Tensor,
    ) -> Result<()> {
        self.launch("rope_append")?;
        let RopeAppend { qkv, qk_norm, rope, q_heads, layer } = args;
        self.inner.rope_append(RopeAppend { qkv, qk_norm, rope, q_heads, layer }, step, cache, q)
    }

    fn attention(
        &self,
        q: &D::Tensor,
        cache: &D::Cache,
        layer: usize,
        step: &D::Step,
        spec: &AttentionSpec,
        out: &mut D::Tensor,
    ) -> Result<()> {
        self.launch("attention")?;
        self.inner.attention(q, cache, layer, step, spec, out)
    }

    fn causal_softmax(&self, scale: f32, scores: &mut D::Tensor) -> Result<()> {
        self.launch("causal_softmax")?;
        self.inner.causal_softmax(scale, scores)
    }

    fn silu_mul(&self, gate_up: &D::Tensor, out: &mut D::Tensor) -> Result<()> {
        self.launch("silu_mul")?;
        self.inner.silu_mul(gate_up, out)
    }

    fn select_outputs(&self, x: &D::Tensor, step: &D::Step, out: &mut D::Tensor) -> Result<()> {
        self.launch("select_outputs")?;
        self.inner.select_outputs(x, step, out)
    }

    fn project_logits(&self, x: &D::Tensor, w: &D::Matrix, out: &mut D::Logits) -> Result<()> {
        self.launch("project_logits")?;
        self.inner.project_logits(x, w, out)
    }

    fn adjust_logits(&self, logits: &mut D::Logits, changes: &LogitChanges) -> Result<()> {
        self.launch("adjust_logits")?;
        self.inner.adjust_logits(logits, changes)
    }

    fn argmax(&self, logits: &D::Logits) -> Result<Vec<u32>> {
        self.launch("argmax")?;
        self.inner.argmax(logits)
    }

    fn sample(&self, logits: &D::Logits, rows: &[SampleRow]) -> Result<Vec<u32>> {
        self.launch("sample")?;
        self.inner.sample(logits, rows)
    }

    fn choose(&self, logits: &D::Logits, rows: &[SampleRow]) -> Result<Vec<Option<u32>>> {
        self.launch("choose")?;
        self.inner.choose(logits, rows)
    }

    fn read_logit_rows(&self, logits: &D::Logits, rows: &[u32]) -> Result<Vec<f32>> {
        self.launch("read_logit_rows")?;
        self.inner.read_logit_rows(logits, rows)
    }

    fn read_logits(&self, logits: &D::Logits) -> Result<Vec<f32>> {
        self.launch("read_logits")?;
        self.inner.read_logits(logits)
    }

    fn read(&self, tensor: &D::Tensor) -> Result<Vec<f32>> {
        self.launch("read")?;
        self.inner.read(tensor)
    }

    fn synchronize(&self) -> Result<()> {
        self.launch("synchronize")?;
        self.inner.synchronize()
    }
}
