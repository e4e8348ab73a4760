use std::sync::Arc;

use tilewright_host::{Batch, CacheSpec, Device, HostQuantized, KvDType, Outputs, RopeAppend};

use super::calibrate::weights;
use super::hessian::{Hessian, Sample};
use super::matrix::gptq;
use super::options::{Linear, linears};
use super::{Job, pack};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::model::{Layer, Loader};
use crate::quantized::Reader;

/// Tokens for each input of a projection below which drift isn't made up for: its estimate has a number for each input and output, and
/// with few tokens costs more than it brings (docs/notes/2026-11-25-quantisation.md has losses for 2 to 64 an input).
const MIN_TOKENS_AN_INPUT: usize = 32;

/// The calibration texts' residual streams on a device, and what carries them through a layer.
pub(super) struct Gptq<D: Device> {
    device: Arc<D>,
    config: ModelConfig,
    steps: Vec<D::Step>,
    /// Of all texts.
    tokens: usize,
    residuals: Vec<D::Tensor>,
    /// Those of the original model, where drift is made up for in any projection.
    originals: Vec<D::Tensor>,
    rope: D::Rope,
    cache: D::Cache,
    normed: D::Tensor,
    qkv: D::Tensor,
    q: D::Tensor,
    attended: D::Tensor,
    gate_up: D::Tensor,
    activated: D::Tensor,
}

/// The inputs of a layer's projections, in the order in which they come to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Qkv,
    Output,
    GateUp,
    Down,
}

/// Which of the two models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Quantised,
    Original,
}

impl Stage {
    const ALL: [Stage; 4] = [Stage::Qkv, Stage::Output, Stage::GateUp, Stage::Down];

    /// The stage's places among [`linears`].
    fn linears(self) -> std::ops::Range<usize> {
        match self {
            Stage::Qkv => 0..3,
            Stage::Output => 3..4,
            Stage::GateUp => 4..6,
            Stage::Down => 6..7,
        }
    }
}

impl<D: Device> Gptq<D> {
    /// Embeds the texts.
    pub fn new(device: Arc<D>, job: &Job<'_>) -> Result<Gptq<D>> {
        let config = job.config.clone();
        let rows = job.options.context;
        let q_cols = config.q_heads * config.head_dim;
        let spec = CacheSpec {
            layers: 1,
            pages: 1,
            // A multiple of what attention's tiles divide.
            page_size: rows.next_multiple_of(128),
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            dtype: KvDType::Native,
        };
        let mut loader = Loader::new(&*device, &config, job.checkpoint);
        let embedding = loader.embedding()?;
        let tokens = job.windows.iter().map(Vec::len).sum::<usize>();
        let fewest = config.hidden_size.min(q_cols).min(config.intermediate_size);
        let corrects = job.options.corrected && tokens >= MIN_TOKENS_AN_INPUT * fewest;
        let streams = if corrects { 2 } else { 1 };
        let (mut steps, mut residuals, mut originals) = (Vec::new(), Vec::new(), Vec::new());
        for window in &job.windows {
            let mut batch = Batch::default();
            batch.push(window, 0, &[0], spec.page_size as u32, Outputs::None);
            let step = device.step(&batch)?;
            for streams in [&mut residuals, &mut originals].into_iter().take(streams) {
                let mut residual = device.tensor(window.len(), config.hidden_size)?;
                device.embed(&embedding, &step, &mut residual)?;
                streams.push(residual);
            }
            steps.push(step);
        }
        Ok(Gptq {
            rope: device.rope(&config.inv_freq(), 1.0, config.context)?,
            cache: device.cache(spec)?,
            normed: device.tensor(rows, config.hidden_size)?,
            qkv: device.tensor(rows, config.qkv_rows())?,
            q: device.tensor(rows, q_cols)?,
            attended: device.tensor(rows, q_cols)?,
            gate_up: device.tensor(rows, 2 * config.intermediate_size)?,
            activated: device.tensor(rows, config.intermediate_size)?,
            device,
            config,
            steps,
            tokens,
            residuals,
            originals,
        })
    }

    /// Layer after layer. How many were there already.
    pub fn run(mut self, job: Job<'_>) -> Result<usize> {
        let mut resumed = 0;
        let total = 4 * self.config.layers;
        for index in 0..self.config.layers {
            let done = job.output.has_layer(index)?;
            let device = Arc::clone(&self.device);
            let config = self.config.clone();
            let mut loader = Loader::new(&*device, &config, job.checkpoint);
            let mut layer = loader.layer(index)?;
            let original = if self.originals.is_empty() { None } else { Some(loader.layer(index)?) };
            let linears = linears(&self.config, index);
            let mut shard = job.output.layer(index);
            for (place, stage) in Stage::ALL.into_iter().enumerate() {
                (job.progress)(4 * index + place, total);
                let group = &linears[stage.linears()];
                let weights = if done {
                    self.read(&job.output.layer_path(index), group, &job)?
                } else {
                    let hessian = self.hessian(&layer, original.as_ref(), stage, group[0].cols)?;
                    let prepared = hessian.prepare(&group[0], job.options)?;
                    let mut parts = Vec::new();
                    for linear in group {
                        let weights = prepared.corrected(weights(job.checkpoint, linear)?);
                        let recipe = job.options.recipe(linear.cols);
                        let order = prepared.order.as_deref();
                        let quantised = gptq(&weights, recipe, &prepared.factor, order, &prepared.dead)
                            .map_err(|bad| linear.too_large(job.checkpoint, bad))?;
                        shard.gptq(linear, &quantised);
                        parts.push(pack::part(&quantised, job.options.file_config().code_bits())?);
                    }
                    HostQuantized::new(parts)?
                };
                let matrix = device.quantized(&weights)?;
                match stage {
                    Stage::Qkv => layer.qkv = matrix,
                    Stage::Output => layer.output = matrix,
                    Stage::GateUp => layer.gate_up = matrix,
                    Stage::Down => layer.down = matrix,
                }
                self.advance(&layer, stage, Stream::Quantised)?;
                if let Some(original) = &original {
                    self.advance(original, stage, Stream::Original)?;
                }
            }
            if done {
                resumed += 1;
            } else {
                shard.write(job.checkpoint)?;
            }
        }
        (job.progress)(total, total);
        Ok(resumed)
    }

    /// Matrices that an earlier run wrote.
    fn read(&self, path: &std::path::Path, group: &[Linear], job: &Job<'_>) -> Result<HostQuantized> {
        let (file, config) = (Checkpoint::open_file(path)?, job.options.file_config());
        let mut reader = Reader::new(&file, &config);
        let parts = group.iter().map(|linear| reader.part(&linear.name, linear.rows, linear.cols));
        Ok(HostQuantized::new(parts.collect::<Result<_>>()?)?)
    }

    /// The Hessian of a stage's inputs over all texts, and their drift from the original layer's.
    fn hessian(
        &mut self,
        layer: &Layer<D>,
        original: Option<&Layer<D>>,
        stage: Stage,
        cols: usize,
    ) -> Result<Hessian> {
        let mut hessian = Hessian::new(cols);
        let original = original.filter(|_| self.tokens >= MIN_TOKENS_AN_INPUT * cols);
        for text in 0..self.steps.len() {
            let inputs = self.read_inputs(layer, stage, text, Stream::Quantised)?;
            let (original, residual_drift) = match original {
                None => (None, None),
                Some(original) => {
                    let original = self.read_inputs(original, stage, text, Stream::Original)?;
                    (Some(original), self.residual_drift(stage, text)?)
                }
            };
            let tokens = inputs.len() / cols;
            hessian.add(Sample { inputs, tokens, original, residual_drift });
        }
        Ok(hessian)
    }

    /// How far the residual stream that a stage's outputs are added to is from the original's.
    fn residual_drift(&self, stage: Stage, text: usize) -> Result<Option<Vec<f32>>> {
        if matches!(stage, Stage::Qkv | Stage::GateUp) {
            return Ok(None);
        }
        let mut drift = self.device.read(&self.originals[text])?;
        let present = self.device.read(&self.residuals[text])?;
        drift.iter_mut().zip(present).for_each(|(original, present)| *original -= present);
        Ok(Some(drift))
    }

    fn read_inputs(
        &mut self,
        layer: &Layer<D>,
        stage: Stage,
        text: usize,
        stream: Stream,
    ) -> Result<Vec<f32>> {
        self.inputs(layer, stage, text, stream)?;
        let inputs = match stage {
            Stage::Qkv | Stage::GateUp => &self.normed,
            Stage::Output => &self.attended,
            Stage::Down => &self.activated,
        };
        Ok(self.device.read(inputs)?)
    }

    /// Computes a stage's inputs for one text.
    fn inputs(&mut self, layer: &Layer<D>, stage: Stage, text: usize, stream: Stream) -> Result<()> {
        let Gptq { device, config, .. } = self;
        let residual = match stream {
            Stream::Quantised => &self.residuals[text],
            Stream::Original => &self.originals[text],
        };
        let step = &self.steps[text];
        match stage {
            Stage::Qkv => layer.input_norm.apply(&**device, residual, &mut self.normed)?,
            Stage::Output => {
                layer.input_norm.apply(&**device, residual, &mut self.normed)?;
                device.linear(&self.normed, &layer.qkv, layer.qkv_bias.as_ref(), &mut self.qkv)?;
                let args = RopeAppend {
                    qkv: &self.qkv,
                    qk_norm: layer.qk_norm.as_ref().map(|(q, k, eps)| (q, k, *eps)),
                    rope: &self.rope,
                    q_heads: config.q_heads,
                    layer: 0,
                };
                device.rope_append(args, step, &mut self.cache, &mut self.q)?;
                device.attention(&self.q, &self.cache, 0, step, &layer.attention, &mut self.attended)?;
            }
            Stage::GateUp => layer.post_norm.apply(&**device, residual, &mut self.normed)?,
            Stage::Down => {
                layer.post_norm.apply(&**device, residual, &mut self.normed)?;
                layer.activate(device, &self.normed, &mut self.gate_up, &mut self.activated)?;
            }
        }
        Ok(())
    }

    /// Adds the outputs of attention, or of the MLP, to all residual streams once their last projection is there.
    fn advance(&mut self, layer: &Layer<D>, stage: Stage, stream: Stream) -> Result<()> {
        for text in 0..self.steps.len() {
            if matches!(stage, Stage::Qkv | Stage::GateUp) {
                return Ok(());
            }
            self.inputs(layer, stage, text, stream)?;
            let residual = match stream {
                Stream::Quantised => &mut self.residuals[text],
                Stream::Original => &mut self.originals[text],
            };
            let (x, matrix, bias) = match stage {
                Stage::Output => (&self.attended, &layer.output, &layer.output_bias),
                _ => (&self.activated, &layer.down, &layer.down_bias),
            };
            self.device.linear_residual(x, matrix, bias.as_ref(), residual)?;
        }
        Ok(())
    }
}
