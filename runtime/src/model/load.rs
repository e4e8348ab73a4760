use std::collections::HashSet;
use std::sync::Arc;

use tilewright_host::{AttentionSpec, Device, HostMatrix, HostQuantized};

use super::Decoder;
use super::layer::Layer;
use crate::checkpoint::{Checkpoint, MatrixView};
use crate::config::ModelConfig;
use crate::quantized::{Reader, check_matrix};
use crate::{Error, Result};

impl<D: Device> Decoder<D> {
    /// Brings a checkpoint's weights to a device. `progress` is told of each layer: how many are done, and of how many.
    ///
    /// # Errors
    /// A tensor that is missing, left over, or of another shape or type than `config` implies.
    pub fn load(
        device: Arc<D>,
        config: ModelConfig,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Decoder<D>> {
        let mut loader = Loader::new(&*device, &config, checkpoint);
        let total = config.layers + 1;
        progress(0, total);
        let embedding = loader.embedding()?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(loader.matrix(&[("lm_head.weight", config.vocab_size)], config.hidden_size)?),
        };
        let norm = loader.vector(&[("model.norm.weight", config.hidden_size)])?;
        progress(1, total);
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(loader.layer(index)?);
            progress(index + 2, total);
            // One layer of every kernel is enough to tell a device that computes from one that doesn't.
            loader.checked = true;
        }
        if let Some(reader) = &loader.reader {
            loader.used.extend(reader.used().cloned());
            reader.check_zero_points(&checkpoint.dir().join("config.json"))?;
        }
        checkpoint.expect_all_used(&loader.used, config.tie_word_embeddings)?;
        let rope = device.rope(&config.rope.inv_freq(config.head_dim), 1.0, config.context)?;
        Ok(Decoder { embedding, layers, norm, lm_head, rope, config, device })
    }
}

/// The linear layers of decoder layer `index` in the order in which they are used: name (without `.weight`), outputs, inputs.
pub(crate) fn projections(config: &ModelConfig, index: usize) -> [(String, usize, usize); 7] {
    let (hidden, inter) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.q_heads * config.head_dim, config.kv_heads * config.head_dim);
    [
        ("self_attn.q_proj", q, hidden),
        ("self_attn.k_proj", kv, hidden),
        ("self_attn.v_proj", kv, hidden),
        ("self_attn.o_proj", hidden, q),
        ("mlp.gate_proj", inter, hidden),
        ("mlp.up_proj", inter, hidden),
        ("mlp.down_proj", hidden, inter),
    ]
    .map(|(part, rows, cols)| (format!("model.layers.{index}.{part}"), rows, cols))
}

/// The linear layer that a weight is of.
fn layer_of(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// Brings a checkpoint's tensors to a device, and notes which it took.
pub(crate) struct Loader<'a, D: Device> {
    device: &'a D,
    config: &'a ModelConfig,
    checkpoint: &'a Checkpoint,
    used: HashSet<String>,
    /// Where the checkpoint is quantised.
    reader: Option<Reader<'a>>,
    /// A quantised layer was compared with its plain dequantisation.
    checked: bool,
}

impl<'a, D: Device> Loader<'a, D> {
    pub fn new(device: &'a D, config: &'a ModelConfig, checkpoint: &'a Checkpoint) -> Self {
        let reader = config.quantization.as_ref().map(|quantization| Reader::new(checkpoint, quantization));
        Loader { device, config, checkpoint, used: HashSet::new(), reader, checked: false }
    }

    pub fn embedding(&mut self) -> Result<D::Matrix> {
        self.matrix(&[("model.embed_tokens.weight", self.config.vocab_size)], self.config.hidden_size)
    }

    pub fn layer(&mut self, index: usize) -> Result<Layer<D>> {
        let config = self.config;
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let q_rows = config.q_heads * config.head_dim;
        let kv_rows = config.kv_heads * config.head_dim;
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let qkv = |kind: &str| {
            [("q", q_rows), ("k", kv_rows), ("v", kv_rows)]
                .map(|(part, rows)| (name(&format!("self_attn.{part}_proj.{kind}")), rows))
        };
        let gate_up =
            |kind: &str| ["gate", "up"].map(|part| (name(&format!("mlp.{part}_proj.{kind}")), inter));
        let qk_norm = match config.qk_norm {
            false => None,
            true => Some((
                self.vector(&[(name("self_attn.q_norm.weight"), config.head_dim)])?,
                self.vector(&[(name("self_attn.k_norm.weight"), config.head_dim)])?,
            )),
        };
        Ok(Layer {
            input_norm: self.vector(&[(name("input_layernorm.weight"), hidden)])?,
            qkv: self.matrix(&qkv("weight"), hidden)?,
            qkv_bias: self.vector_if(config.qkv_bias, &qkv("bias"))?,
            qk_norm,
            output: self.matrix(&[(name("self_attn.o_proj.weight"), hidden)], q_rows)?,
            output_bias: self.vector_if(config.output_bias, &[(name("self_attn.o_proj.bias"), hidden)])?,
            post_norm: self.vector(&[(name("post_attention_layernorm.weight"), hidden)])?,
            gate_up: match config.mlp_bias {
                true => self.matrix(&gate_up("weight"), hidden)?,
                false => self.gated(&gate_up("weight"), hidden)?,
            },
            gate_up_bias: self.vector_if(config.mlp_bias, &gate_up("bias"))?,
            down: self.matrix(&[(name("mlp.down_proj.weight"), hidden)], inter)?,
            down_bias: self.vector_if(config.mlp_bias, &[(name("mlp.down_proj.bias"), hidden)])?,
            attention: AttentionSpec {
                q_heads: config.q_heads,
                scale: (config.head_dim as f32).sqrt().recip(),
                causal: true,
                window: config.windows[index],
                softcap: None,
            },
        })
    }

    /// Parts stacked along their rows.
    fn matrix(&mut self, parts: &[(impl AsRef<str>, usize)], cols: usize) -> Result<D::Matrix> {
        if let Some(weights) = self.quantized(parts, cols)? {
            let matrix = self.device.quantized(&weights)?;
            self.check(parts[0].0.as_ref(), &weights, &matrix)?;
            return Ok(matrix);
        }
        Ok(self.device.matrix(&self.plain(parts, cols)?)?)
    }

    /// A gate's rows and those of what it gates.
    fn gated(&mut self, parts: &[(impl AsRef<str>, usize); 2], cols: usize) -> Result<D::Matrix> {
        if let Some(weights) = self.quantized(parts, cols)? {
            if !self.checked {
                // Rows may be in another order in what is kept.
                let plain = self.device.quantized(&weights)?;
                self.check(parts[0].0.as_ref(), &weights, &plain)?;
            }
            return Ok(self.device.gated_quantized(&weights)?);
        }
        Ok(self.device.gated(&self.plain(parts, cols)?)?)
    }

    /// Parts that aren't quantised, as they lie in the file.
    fn plain(&mut self, parts: &[(impl AsRef<str>, usize)], cols: usize) -> Result<HostMatrix<'a>> {
        let mut views: Vec<MatrixView<'a>> = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            let name = name.as_ref();
            let view = self.checkpoint.matrix(name, *rows, cols)?;
            if let Some(first) = views.first().filter(|first| first.dtype != view.dtype) {
                let expected = format!("dtype {:?} as of {}", first.dtype, parts[0].0.as_ref());
                let found = format!("{:?}", view.dtype);
                return Err(Error::tensor(self.checkpoint.path_of(name), name, expected, found));
            }
            self.used.insert(name.to_string());
            views.push(view);
        }
        let dtype = views[0].dtype;
        let parts = views.iter().map(|view| (view.rows, view.bytes)).collect();
        Ok(HostMatrix { parts, cols, dtype })
    }

    /// Parts stacked along their rows, where the first of them is quantised; then all must be.
    fn quantized(
        &mut self,
        parts: &[(impl AsRef<str>, usize)],
        cols: usize,
    ) -> Result<Option<HostQuantized>> {
        let Some(reader) = &mut self.reader else { return Ok(None) };
        if !reader.holds(layer_of(parts[0].0.as_ref())) {
            return Ok(None);
        }
        let read = parts.iter().map(|(name, rows)| reader.part(layer_of(name.as_ref()), *rows, cols));
        Ok(Some(HostQuantized::new(read.collect::<Result<_>>()?)?))
    }

    /// That a device's product with quantised weights is that of the file's, unless that is known already.
    fn check(&self, name: &str, weights: &HostQuantized, matrix: &D::Matrix) -> Result<()> {
        if self.checked {
            return Ok(());
        }
        let layer = layer_of(name);
        let check = check_matrix(self.device, layer, weights, matrix, false)?;
        if check.passed {
            return Ok(());
        }
        let expected = format!("{} as output {} of a product", check.expected, check.output);
        let found = format!("{} on {}", check.found, self.device.describe());
        Err(Error::tensor(self.checkpoint.path_of(name), layer, expected, found))
    }

    /// Parts one behind the other.
    fn vector(&mut self, parts: &[(impl AsRef<str>, usize)]) -> Result<D::Vector> {
        let mut values = Vec::new();
        for (name, len) in parts {
            values.extend(self.checkpoint.vector(name.as_ref(), *len)?);
            self.used.insert(name.as_ref().to_string());
        }
        Ok(self.device.vector(&values)?)
    }

    fn vector_if(&mut self, present: bool, parts: &[(impl AsRef<str>, usize)]) -> Result<Option<D::Vector>> {
        if present { self.vector(parts).map(Some) } else { Ok(None) }
    }
}
