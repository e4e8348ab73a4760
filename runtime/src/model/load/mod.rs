mod gpt2;
mod llama;
mod tensors;

use std::sync::Arc;

use tilewright_host::Device;

use super::{Decoder, Layer};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::config::{Architecture, ModelConfig, Positions};
pub(crate) use tensors::Tensors;

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
        let positions = loader.positions()?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => {
                let head = [("lm_head.weight", config.vocab_size)];
                Some(loader.tensors.matrix(&head, config.hidden_size)?)
            }
        };
        let norm = loader.last_norm()?;
        progress(1, total);
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(loader.layer(index)?);
            progress(index + 2, total);
            loader.tensors.trust_quantized();
        }
        loader.finish()?;
        let rope = device.rope(&config.inv_freq(), 1.0, config.context)?;
        Ok(Decoder { embedding, positions, layers, norm, lm_head, rope, config, device })
    }
}

/// The linear layers of decoder layer `index` in the order in which they are used: name (without `.weight`), outputs, inputs.
/// None where they are stored in another way: GPT-2's.
pub(crate) fn projections(config: &ModelConfig, index: usize) -> Vec<(String, usize, usize)> {
    if config.architecture == Architecture::Gpt2 {
        return Vec::new();
    }
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
    .to_vec()
}

/// Brings a decoder's weights to a device.
pub(crate) struct Loader<'a, D: Device> {
    config: &'a ModelConfig,
    tensors: Tensors<'a, D>,
}

impl<'a, D: Device> Loader<'a, D> {
    pub fn new(device: &'a D, config: &'a ModelConfig, checkpoint: &'a Checkpoint) -> Self {
        Loader { config, tensors: Tensors::new(device, checkpoint, config.quantization.as_ref()) }
    }

    pub fn embedding(&mut self) -> Result<D::Matrix> {
        let name = match self.config.architecture {
            Architecture::Gpt2 => gpt2::name(&self.tensors, "wte.weight"),
            _ => "model.embed_tokens.weight".to_string(),
        };
        self.tensors.matrix(&[(name, self.config.vocab_size)], self.config.hidden_size)
    }

    /// The table of learned positions.
    fn positions(&mut self) -> Result<Option<D::Matrix>> {
        if self.config.positions == Positions::Rotary {
            return Ok(None);
        }
        let name = gpt2::name(&self.tensors, "wpe.weight");
        self.tensors.matrix(&[(name, self.config.context)], self.config.hidden_size).map(Some)
    }

    fn last_norm(&mut self) -> Result<super::Norm<D>> {
        let stem = match self.config.architecture {
            Architecture::Gpt2 => gpt2::name(&self.tensors, "ln_f"),
            _ => "model.norm".to_string(),
        };
        self.tensors.norm(self.config.norm, &stem, self.config.hidden_size, self.config.norm_eps)
    }

    pub fn layer(&mut self, index: usize) -> Result<Layer<D>> {
        match self.config.architecture {
            Architecture::Gpt2 => gpt2::layer(&mut self.tensors, self.config, index),
            _ => llama::layer(&mut self.tensors, self.config, index),
        }
    }

    fn finish(self) -> Result<()> {
        let (tied, architecture) = (self.config.tie_word_embeddings, self.config.architecture);
        self.tensors.finish(|name| {
            name.ends_with("rotary_emb.inv_freq")
                || tied && name == "lm_head.weight"
                || architecture == Architecture::Gpt2 && gpt2::is_mask(name)
        })
    }
}
