use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use half::bf16;

use super::{
    Driver, GpuCache, GpuLogits, GpuMatrix, GpuRope, GpuStep, GpuTensor, GpuVector,
    choose::ChooseScratch,
    decode::DecodeScratch,
    gemm::GemmScratch,
    int4::PreparedScratch,
    replay::{GpuReplays, Recording},
    scratch::Scratch,
    storage::{BF16, HEAD_DIMS, WORD},
};
use crate::{
    AttentionSpec, Batch, CacheSpec, Device, Error, Gelu, HostMatrix, HostQuantized, LogitChanges, MemoryUse,
    Pace, Result, RopeAppend, SampleRow,
};

/// A device of kernel launches over a [`Driver`].
///
/// Activations, weights and caches are bf16 (f16 and f32 checkpoints are rounded to nearest on upload); norms, biases, rotary
/// tables, accumulators and logits f32. Columns are multiples of 8 and heads have 64 or 128 elements.
///
/// Of quantised weights, those of 4 and 8 bits stay so on Hopper, where groups are of 32, 64 or a multiple of 128 columns, or one a row, and
/// so do those of 8 bits for activations of 8; others are dequantised to bf16.
pub struct GpuDevice<Dr: Driver> {
    // Before the driver, which must outlive it.
    pub(super) decode_scratch: Mutex<DecodeScratch<Dr>>,
    pub(super) gemm_scratch: Mutex<GemmScratch<Dr>>,
    pub(super) prepared_scratch: Mutex<PreparedScratch<Dr>>,
    pub(super) choose_scratch: Mutex<ChooseScratch<Dr>>,
    /// What the blocks of a chain send each other, and what they count each other by: zeros between launches.
    pub(super) mail: Mutex<Scratch<Dr>>,
    /// How often scratch has moved: launches recorded before name memory that is gone.
    pub(super) scratch_moves: AtomicU64,
    pub(super) recording: Recording,
    /// Whether records leave the append a launch of its own.
    pub(super) appends_apart: AtomicBool,
    pub(super) driver: Dr,
}

impl<Dr: Driver> GpuDevice<Dr> {
    /// A device over `driver`.
    pub fn new(driver: Dr) -> Self {
        Self {
            decode_scratch: Mutex::default(),
            gemm_scratch: Mutex::default(),
            prepared_scratch: Mutex::default(),
            choose_scratch: Mutex::default(),
            mail: Mutex::new(Scratch::new("run_step", "the rows of chains")),
            scratch_moves: AtomicU64::default(),
            recording: Recording::default(),
            appends_apart: AtomicBool::default(),
            driver,
        }
    }

    /// Whether steps recorded from here on append keys by a launch before attention's instead of in it: to time one beside the other. The bits
    /// are the same.
    #[doc(hidden)]
    pub fn append_apart(&self, apart: bool) {
        self.appends_apart.store(apart, Ordering::Relaxed);
    }

    /// What the device runs on.
    pub fn driver(&self) -> &Dr {
        &self.driver
    }
}

impl<Dr: Driver> Device for GpuDevice<Dr> {
    type Tensor = GpuTensor<Dr>;
    type Matrix = GpuMatrix<Dr>;
    type Vector = GpuVector<Dr>;
    type Rope = GpuRope<Dr>;
    type Cache = GpuCache<Dr>;
    type Step = GpuStep<Dr>;
    type Logits = GpuLogits<Dr>;
    type Replays = GpuReplays<Dr>;

    fn describe(&self) -> String {
        let info = self.driver.info();
        let (major, minor) = info.compute_capability;
        let gib = info.memory_bytes as f64 / f64::from(1 << 30);
        format!(
            "{}, compute capability {major}.{minor}, {} multiprocessors, {gib:.1} GiB",
            info.name, info.multiprocessors
        )
    }

    fn is_asynchronous(&self) -> bool {
        true
    }

    fn padded_head_dim(&self, head_dim: usize) -> usize {
        HEAD_DIMS.into_iter().find(|&served| served >= head_dim).unwrap_or(head_dim)
    }

    fn tensor(&self, max_rows: usize, cols: usize) -> Result<Self::Tensor> {
        self.make_tensor(max_rows, cols)
    }

    fn logits(&self, max_rows: usize, vocab: usize) -> Result<Self::Logits> {
        self.make_logits(max_rows, vocab)
    }

    fn matrix(&self, weights: &HostMatrix<'_>) -> Result<Self::Matrix> {
        self.make_matrix(weights)
    }

    fn quantized(&self, weights: &HostQuantized) -> Result<Self::Matrix> {
        self.make_quantized(weights)
    }

    fn gated(&self, weights: &HostMatrix<'_>) -> Result<Self::Matrix> {
        self.make_gated(weights)
    }

    fn gated_quantized(&self, weights: &HostQuantized) -> Result<Self::Matrix> {
        self.make_gated_quantized(weights)
    }

    fn vector(&self, values: &[f32]) -> Result<Self::Vector> {
        self.make_vector(values)
    }

    fn rope(&self, inv_freq: &[f32], attention_factor: f32, max_position: usize) -> Result<Self::Rope> {
        self.make_rope(inv_freq, attention_factor, max_position)
    }

    fn cache(&self, spec: CacheSpec) -> Result<Self::Cache> {
        self.make_cache(spec)
    }

    fn cache_bytes(&self, cache: &Self::Cache) -> usize {
        cache.bytes()
    }

    fn copy_pages(&self, cache: &mut Self::Cache, copies: &[(u32, u32)]) -> Result<()> {
        self.launch_copy_pages(cache, copies)
    }

    fn step(&self, batch: &Batch) -> Result<Self::Step> {
        self.make_step(batch)
    }

    fn run_step<E: From<Error>>(
        &self,
        batch: &Batch,
        replays: &mut GpuReplays<Dr>,
        work: impl FnMut(&GpuStep<Dr>) -> Result<(), E>,
    ) -> Result<Pace, E> {
        self.run_or_replay(batch, replays, work)
    }

    fn set_logit_rows(&self, logits: &mut GpuLogits<Dr>, rows: usize) -> Result<()> {
        logits.resize("set_logit_rows", rows)
    }

    fn embed(&self, table: &Self::Matrix, step: &Self::Step, out: &mut Self::Tensor) -> Result<()> {
        self.launch_embed(table, step, out)
    }

    fn embed_sum(
        &self,
        table: &Self::Matrix,
        places: &Self::Matrix,
        step: &Self::Step,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.launch_embed_sum(table, places, step, out)
    }

    fn write(&self, values: &[f32], out: &mut Self::Tensor) -> Result<()> {
        self.upload_rows(values, out)
    }

    fn layer_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Vector,
        bias: Option<&Self::Vector>,
        eps: f32,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.launch_layer_norm(x, weight, bias, eps, out)
    }

    fn gelu(&self, x: &Self::Tensor, form: Gelu, out: &mut Self::Tensor) -> Result<()> {
        self.launch_gelu(x, form, out)
    }

    fn rms_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.launch_rms_norm("rms_norm", x, None, weight, eps, out)
    }

    fn rms_norm_for(
        &self,
        x: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        reader: &Self::Matrix,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.launch_rms_norm_for(x, weight, eps, reader, out)
    }

    fn add_rms_norm(
        &self,
        x: &Self::Tensor,
        residual: &mut Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.launch_rms_norm("add_rms_norm", x, Some(residual), weight, eps, out)
    }

    fn linear(
        &self,
        x: &Self::Tensor,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.launch_linear(x, w, bias, out)
    }

    fn linear_gated(
        &self,
        x: &Self::Tensor,
        w: &Self::Matrix,
        gate_up: &mut Self::Tensor,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.launch_linear_gated(x, w, gate_up, out)
    }

    fn linear_residual(
        &self,
        x: &Self::Tensor,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        residual: &mut Self::Tensor,
    ) -> Result<()> {
        self.launch_linear_residual(x, w, bias, residual)
    }

    fn rope_append(
        &self,
        args: RopeAppend<'_, Self>,
        step: &Self::Step,
        cache: &mut Self::Cache,
        q: &mut Self::Tensor,
    ) -> Result<()> {
        self.launch_rope_append(args, step, cache, q)
    }

    fn attention(
        &self,
        q: &Self::Tensor,
        cache: &Self::Cache,
        layer: usize,
        step: &Self::Step,
        spec: &AttentionSpec,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.launch_attention(q, cache, layer, step, spec, out)
    }

    fn causal_softmax(&self, scale: f32, scores: &mut Self::Tensor) -> Result<()> {
        self.launch_causal_softmax(scale, scores)
    }

    fn silu_mul(&self, gate_up: &Self::Tensor, out: &mut Self::Tensor) -> Result<()> {
        self.launch_silu_mul(gate_up, out)
    }

    fn select_outputs(&self, x: &Self::Tensor, step: &Self::Step, out: &mut Self::Tensor) -> Result<()> {
        self.launch_select_outputs(x, step, out)
    }

    fn project_logits(&self, x: &Self::Tensor, w: &Self::Matrix, out: &mut Self::Logits) -> Result<()> {
        self.launch_project_logits(x, w, out)
    }

    fn adjust_logits(&self, logits: &mut Self::Logits, changes: &LogitChanges) -> Result<()> {
        self.launch_adjust(logits, changes)
    }

    fn argmax(&self, logits: &Self::Logits) -> Result<Vec<u32>> {
        self.launch_argmax(logits)
    }

    fn sample(&self, logits: &Self::Logits, rows: &[SampleRow]) -> Result<Vec<u32>> {
        self.launch_sample(logits, rows)
    }

    fn choose(&self, logits: &Self::Logits, rows: &[SampleRow]) -> Result<Vec<Option<u32>>> {
        self.launch_choose(logits, rows)
    }

    fn read_logit_rows(&self, logits: &Self::Logits, rows: &[u32]) -> Result<Vec<f32>> {
        self.download_rows(logits, rows)
    }

    fn read_logits(&self, logits: &Self::Logits) -> Result<Vec<f32>> {
        let mut values = vec![0f32; logits.rows * logits.vocab];
        self.download(&logits.buffer, &mut values)?;
        Ok(values)
    }

    fn read(&self, tensor: &Self::Tensor) -> Result<Vec<f32>> {
        tensor.numbers("read", "tensor")?;
        let mut values = vec![bf16::ZERO; tensor.rows * tensor.cols];
        self.download(&tensor.buffer, &mut values)?;
        Ok(values.into_iter().map(bf16::to_f32).collect())
    }

    fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }

    fn memory(&self) -> Result<Option<MemoryUse>> {
        self.driver.memory()
    }
}

impl<Dr: Driver> GpuDevice<Dr> {
    /// The first elements of a buffer; no copy for none.
    pub(super) fn download<T: bytemuck::Pod>(&self, buffer: &Dr::Buffer, out: &mut [T]) -> Result<()> {
        const { assert!(size_of::<T>() == BF16 || size_of::<T>() == WORD) };
        if out.is_empty() {
            return Ok(());
        }
        self.driver.download(buffer, 0, bytemuck::cast_slice_mut(out))
    }
}
