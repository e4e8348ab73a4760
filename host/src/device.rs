use crate::{Batch, HostQuantized, LogitChanges, Result};

/// Element type of weights as a checkpoint stores them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl DType {
    /// Bytes an element.
    pub fn bytes(self) -> usize {
        match self {
            DType::Bf16 | DType::F16 => 2,
            DType::F32 => 4,
        }
    }
}

/// A weight matrix `[rows, cols]` (`[out, in]` of a linear layer), row-major, as bytes on the host. Several parts are stacked
/// along `rows`: query, key and value projections become one matrix, gate and up another.
#[derive(Debug, Clone)]
pub struct HostMatrix<'a> {
    /// Each part's rows and little-endian bytes.
    pub parts: Vec<(usize, &'a [u8])>,
    /// Columns of every part.
    pub cols: usize,
    /// Element type of every part.
    pub dtype: DType,
}

impl HostMatrix<'_> {
    /// Rows of all parts.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|(rows, _)| rows).sum()
    }
}

/// What a KV cache stores a key's or value's element as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvDType {
    /// What the device computes attention of: bf16 on a GPU, f32 on the CPU.
    #[default]
    Native,
    /// -127 to 127, times an f32 scale a token and head: the vector's largest magnitude over 127.
    Int8,
    /// fp8 e4m3, times an f32 scale a token and head: the vector's largest magnitude over 448.
    Fp8,
}

impl KvDType {
    /// All of them.
    pub const ALL: [KvDType; 3] = [KvDType::Native, KvDType::Int8, KvDType::Fp8];

    /// As it is named on a command line.
    pub fn name(self) -> &'static str {
        match self {
            KvDType::Native => "auto",
            KvDType::Int8 => "int8",
            KvDType::Fp8 => "fp8",
        }
    }
}

/// A KV cache's shape: `layers` times key and value of `[pages, kv_heads, page_size, head_dim]`. A contiguous cache is one page
/// a sequence, `page_size` its capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSpec {
    /// Layers of the model.
    pub layers: usize,
    /// Pages.
    pub pages: usize,
    /// Tokens a page.
    pub page_size: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements a head.
    pub head_dim: usize,
    /// What an element is stored as.
    pub dtype: KvDType,
}

/// How scores become weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Query heads; a multiple of the cache's `kv_heads`.
    pub q_heads: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
    /// Keys a query sees, itself included.
    pub window: Option<usize>,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f32>,
}

/// Forms of the Gaussian error linear unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// `x * P(N < x)` for a normal `N`, by the error function.
    Erf,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
    Tanh,
}

/// How penalties and a bias change one logit.
pub use tilewright_kernels::abi::LogitChange;
/// How one row of logits is sampled; validated by the caller. The ranking and the order of the filters are those of
/// [`tilewright_kernels::abi::Sample`].
pub use tilewright_kernels::abi::SampleRow;

/// What [`Device::rope_append`] reads.
pub struct RopeAppend<'a, D: Device> {
    /// `[tokens, (q_heads + 2 * kv_heads) * head_dim]`.
    pub qkv: &'a D::Tensor,
    /// RMS norms of each query and key head (weights `[head_dim]`) and their epsilon.
    pub qk_norm: Option<(&'a D::Vector, &'a D::Vector, f32)>,
    /// From [`Device::rope`].
    pub rope: &'a D::Rope,
    /// Query heads.
    pub q_heads: usize,
    /// The layer of the cache.
    pub layer: usize,
}

/// Activations, `[rows, cols]`, of a capacity fixed when made.
pub trait Tensor: Send {
    /// Rows in use.
    fn rows(&self) -> usize;
    /// Columns.
    fn cols(&self) -> usize;
    /// Uses the first `rows`; their contents are unspecified until written.
    ///
    /// # Errors
    /// If `rows` exceeds the capacity.
    fn set_rows(&mut self, rows: usize) -> Result<()>;
}

/// How a step was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As steps like it will be.
    Steady,
    /// With work that steps like it won't need again: it is no measure of them.
    First,
}

/// Bytes of a device's memory that are allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// At the moment.
    pub now: usize,
    /// At a time, the most since the last call.
    pub most: usize,
}

/// A device that runs a transformer's operations in the order they are called.
///
/// Outputs are written into tensors the caller made; an output takes the row count of its input (`set_rows` is done by the
/// operation). The result of a row depends on that row and its sequence alone: the same bits in any batch.
///
/// # Errors
/// Every operation checks its shapes and answers [`crate::Error::Shape`] naming the operation and the argument.
pub trait Device: Send + Sync + Sized + 'static {
    /// Activations.
    type Tensor: Tensor;
    /// A weight matrix in the device's layout.
    type Matrix: Send + Sync;
    /// An f32 vector: norm weights, biases.
    type Vector: Send + Sync;
    /// Cosines and sines by position.
    type Rope: Send + Sync;
    /// A KV cache.
    type Cache: Send;
    /// A batch's metadata where the operations read it.
    type Step: Send;
    /// f32 logits, `[rows, vocab]`.
    type Logits: Send;
    /// What is kept of steps, so that steps like them take less: of one model, cache and set of activations.
    type Replays: Default + Send;

    /// The device in words: name, threads or compute capability, memory.
    fn describe(&self) -> String;
    /// Whether operations that don't wait may return before they are done, so that the host has time until one that does.
    fn is_asynchronous(&self) -> bool {
        false
    }
    /// The least head size from `head_dim` on that attention takes: heads filled up with zeros to it have the scores and the outputs
    /// that they would have had. `head_dim` itself where there is none.
    fn padded_head_dim(&self, head_dim: usize) -> usize {
        head_dim
    }
    /// Uninitialised activations.
    fn tensor(&self, max_rows: usize, cols: usize) -> Result<Self::Tensor>;
    /// Uninitialised logits.
    fn logits(&self, max_rows: usize, vocab: usize) -> Result<Self::Logits>;
    /// Takes a weight matrix over.
    fn matrix(&self, weights: &HostMatrix<'_>) -> Result<Self::Matrix>;
    /// Takes quantised weights over, in the device's own packing: an operand of every product that a matrix is.
    fn quantized(&self, weights: &HostQuantized) -> Result<Self::Matrix>;
    /// Takes over what [`Device::linear_gated`] multiplies by: the rows of a gate, then as many of what it gates, in the device's own order.
    fn gated(&self, weights: &HostMatrix<'_>) -> Result<Self::Matrix> {
        self.matrix(weights)
    }
    /// As [`Device::gated`], of quantised weights.
    fn gated_quantized(&self, weights: &HostQuantized) -> Result<Self::Matrix> {
        self.quantized(weights)
    }
    /// Takes a vector over.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector>;
    /// Tabulates `cos(p * f) * attention_factor` and the sine for positions below `max_position` and `head_dim / 2` frequencies.
    fn rope(&self, inv_freq: &[f32], attention_factor: f32, max_position: usize) -> Result<Self::Rope>;
    /// Reserves a cache; contents unspecified.
    fn cache(&self, spec: CacheSpec) -> Result<Self::Cache>;
    /// Bytes a cache occupies on the device.
    fn cache_bytes(&self, cache: &Self::Cache) -> usize;
    /// Copies whole pages of all layers within a cache, each from a source to a destination; none is written twice or both read
    /// and written.
    fn copy_pages(&self, cache: &mut Self::Cache, copies: &[(u32, u32)]) -> Result<()>;
    /// Brings a step's metadata over. Token ids must be below the vocabulary, positions below the rope's.
    fn step(&self, batch: &Batch) -> Result<Self::Step>;
    /// The step of another's wanted rows alone, where the device would sooner compute attention for those than choose them from its
    /// results. Of a device whose kernels work on rows by the dozen, none.
    fn wanted_alone(&self, _step: &Self::Step) -> Result<Option<Self::Step>> {
        Ok(None)
    }
    /// Brings a step's metadata over and does `work` with it, or has done what the same work did for an earlier step like it. So `work`
    /// asks for the same operations, over the same tensors and the same cache, whenever `replays` are the same, and for none that waits.
    /// Says whether steps like it will be done the same way.
    fn run_step<E: From<crate::Error>>(
        &self,
        batch: &Batch,
        _replays: &mut Self::Replays,
        mut work: impl FnMut(&Self::Step) -> Result<(), E>,
    ) -> Result<Pace, E> {
        work(&self.step(batch)?)?;
        Ok(Pace::Steady)
    }
    /// Uses the first `rows` of logits, which a step that was replayed has written.
    fn set_logit_rows(&self, logits: &mut Self::Logits, rows: usize) -> Result<()>;

    /// `out[i] = table[ids[i]]` for the step's token ids.
    fn embed(&self, table: &Self::Matrix, step: &Self::Step, out: &mut Self::Tensor) -> Result<()>;
    /// `out[i] = table[ids[i]] + places[positions[i]]` for the step's token ids and positions: embedding with learned positions.
    fn embed_sum(
        &self,
        table: &Self::Matrix,
        places: &Self::Matrix,
        step: &Self::Step,
        out: &mut Self::Tensor,
    ) -> Result<()>;
    /// Writes whole rows of activations, row-major, from the host.
    fn write(&self, values: &[f32], out: &mut Self::Tensor) -> Result<()>;
    /// `out = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias`, row by row.
    fn layer_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Vector,
        bias: Option<&Self::Vector>,
        eps: f32,
        out: &mut Self::Tensor,
    ) -> Result<()>;
    /// `out = gelu(x)`, element by element.
    fn gelu(&self, x: &Self::Tensor, form: Gelu, out: &mut Self::Tensor) -> Result<()>;
    /// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row.
    fn rms_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    ) -> Result<()>;
    /// As [`Device::rms_norm`], of rows that `reader` alone then multiplies: a device may leave in `out` what that product takes, which no
    /// other operation does.
    fn rms_norm_for(
        &self,
        x: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        _reader: &Self::Matrix,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.rms_norm(x, weight, eps, out)
    }
    /// `residual += x`, then the norm of that.
    fn add_rms_norm(
        &self,
        x: &Self::Tensor,
        residual: &mut Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    ) -> Result<()>;
    /// `out = x * w^T (+ bias)`.
    fn linear(
        &self,
        x: &Self::Tensor,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        out: &mut Self::Tensor,
    ) -> Result<()>;
    /// `out = silu(x * gate^T) * (x * up^T)` of a matrix of both that [`Device::gated`] made; `gate_up` is room for the products.
    fn linear_gated(
        &self,
        x: &Self::Tensor,
        w: &Self::Matrix,
        gate_up: &mut Self::Tensor,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.linear(x, w, None, gate_up)?;
        self.silu_mul(gate_up, out)
    }
    /// `residual += x * w^T (+ bias)`.
    fn linear_residual(
        &self,
        x: &Self::Tensor,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        residual: &mut Self::Tensor,
    ) -> Result<()>;
    /// Splits the fused projection, normalises heads where asked, rotates query and key, appends key and value to the cache
    /// and leaves the queries in `q`, `[tokens, q_heads * head_dim]`.
    fn rope_append(
        &self,
        args: RopeAppend<'_, Self>,
        step: &Self::Step,
        cache: &mut Self::Cache,
        q: &mut Self::Tensor,
    ) -> Result<()>;
    /// Attention of the step's queries over their sequences' keys in `layer` of the cache.
    fn attention(
        &self,
        q: &Self::Tensor,
        cache: &Self::Cache,
        layer: usize,
        step: &Self::Step,
        spec: &AttentionSpec,
        out: &mut Self::Tensor,
    ) -> Result<()>;
    /// Scores `[heads * tokens, tokens]` become attention's weights, in place: of row `i` the first `i % tokens + 1` the softmax of
    /// `scale` times them, the others 0. No model asks for it: with a product before and one after it, it is the attention that writes
    /// its scores down, which [`Device::attention`] is measured against.
    fn causal_softmax(&self, scale: f32, scores: &mut Self::Tensor) -> Result<()>;
    /// `out = silu(gate) * up` of a fused `[rows, 2 * inter]`.
    fn silu_mul(&self, gate_up: &Self::Tensor, out: &mut Self::Tensor) -> Result<()>;
    /// The rows of `x` that the step wants logits of.
    fn select_outputs(&self, x: &Self::Tensor, step: &Self::Step, out: &mut Self::Tensor) -> Result<()>;
    /// `out = x * w^T` in f32.
    fn project_logits(&self, x: &Self::Tensor, w: &Self::Matrix, out: &mut Self::Logits) -> Result<()>;

    /// Changes logits in place, each row's by its own list: [`LogitChange::of`], bit for bit.
    fn adjust_logits(&self, logits: &mut Self::Logits, changes: &LogitChanges) -> Result<()>;
    /// The index of each row's largest logit, the lowest among equals. Waits.
    fn argmax(&self, logits: &Self::Logits) -> Result<Vec<u32>>;
    /// Draws a token a row. Waits.
    fn sample(&self, logits: &Self::Logits, rows: &[SampleRow]) -> Result<Vec<u32>>;
    /// A token a row, as [`Device::sample`] draws it, or the largest logit's (the lowest index among equals) where the temperature
    /// is 0. `None` where a row holds a NaN or nothing finite, which leaves the others as they are. Waits.
    fn choose(&self, logits: &Self::Logits, rows: &[SampleRow]) -> Result<Vec<Option<u32>>>;
    /// The logits of some rows, row-major, in the order asked. Waits.
    fn read_logit_rows(&self, logits: &Self::Logits, rows: &[u32]) -> Result<Vec<f32>>;
    /// All logits, row-major. Waits.
    fn read_logits(&self, logits: &Self::Logits) -> Result<Vec<f32>>;
    /// All activations in use, row-major, as f32. Waits.
    fn read(&self, tensor: &Self::Tensor) -> Result<Vec<f32>>;
    /// Until all that was asked is done.
    fn synchronize(&self) -> Result<()>;
    /// What is allocated of its memory, by whomever in this process, where the device counts that. Waits.
    fn memory(&self) -> Result<Option<MemoryUse>> {
        Ok(None)
    }
}
