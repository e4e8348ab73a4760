//! `config.json` and `generation_config.json` of a Hugging Face checkpoint.

mod encoder;
mod fields;
mod gpt2;
mod quantization;
mod rope;

use std::path::Path;

use serde::Serialize;

use crate::Result;
use crate::checkpoint::is_there;
pub use encoder::{EncoderConfig, EncoderInput};
use fields::Fields;
pub use quantization::{QuantFormat, QuantizationConfig};
pub use rope::{FrequencyPrecision, Rope, RopeScaling};

/// Layers beyond this are taken for damage.
const MAX_LAYERS: usize = 4096;
/// Positions beyond this are taken for damage.
const MAX_CONTEXT: usize = 1 << 22;
/// What the kernels' `rope_append` can hold.
const MAX_HEAD_DIM: usize = 256;

/// What transformers takes where a file doesn't say.
const DEFAULT_EPS: f64 = 1e-6;
/// As [`DEFAULT_EPS`]; a window of `null` is none.
const DEFAULT_WINDOW: usize = 4096;

/// The families of models that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Architecture {
    /// `LlamaForCausalLM`.
    Llama,
    /// `Qwen2ForCausalLM`: biases on query, key and value.
    Qwen2,
    /// `Qwen3ForCausalLM`: norms on query and key heads.
    Qwen3,
    /// `MistralForCausalLM`: a sliding window.
    Mistral,
    /// `GPT2LMHeadModel`: learned positions, layer norms, biases everywhere, no gates.
    Gpt2,
}

/// What norms divide by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NormKind {
    /// The root mean square.
    Rms,
    /// The deviation, once the mean is subtracted; with a bias.
    Layer,
}

/// How a token's position becomes known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// Queries and keys are rotated.
    Rotary,
    /// A row of a table is added to each token's embedding.
    Learned,
}

/// What an MLP does between its matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Activation {
    /// `silu(gate) * up`.
    SwiGlu,
    /// The Gaussian error linear unit.
    Gelu,
    /// Its approximation by a hyperbolic tangent.
    GeluTanh,
}

/// A decoder's shape and constants, validated.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Token ids.
    pub vocab_size: usize,
    /// Elements of the residual stream.
    pub hidden_size: usize,
    /// Elements inside the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub q_heads: usize,
    /// Key and value heads; they divide `q_heads`.
    pub kv_heads: usize,
    /// Elements a head.
    pub head_dim: usize,
    /// Tokens of the longest text, `max_position_embeddings`.
    pub context: usize,
    /// What norms divide by.
    pub norm: NormKind,
    /// Epsilon of every norm.
    pub norm_eps: f32,
    /// What the MLP does between its matrices.
    pub activation: Activation,
    /// How positions become known.
    pub positions: Positions,
    /// Rotary embedding, where positions are rotary.
    pub rope: Rope,
    /// For each layer the keys a query sees, itself included, where it doesn't see all.
    pub windows: Vec<Option<usize>>,
    /// Biases on query, key and value projections.
    pub qkv_bias: bool,
    /// A bias on attention's output projection.
    pub output_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// RMS norms on query and key heads.
    pub qk_norm: bool,
    /// The embedding table is the output projection too.
    pub tie_word_embeddings: bool,
    /// How the weights of linear layers are quantised, where they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<QuantizationConfig>,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads and validates `config.json` of `dir`, and the EOS tokens of `generation_config.json` where there is one.
    ///
    /// # Errors
    /// Names the file and the field, what was expected and what was found.
    pub fn load(dir: &Path) -> Result<ModelConfig> {
        let mut config = ModelConfig::read(&dir.join("config.json"))?;
        let generation_path = dir.join("generation_config.json");
        if is_there(&generation_path) {
            let generation = Fields::read(&generation_path)?;
            let eos = generation.token_ids("eos_token_id")?;
            if !eos.is_empty() {
                config.eos_token_ids = eos;
            }
            config.bos_token_id =
                generation.token_ids("bos_token_id")?.first().copied().or(config.bos_token_id);
        }
        Ok(config)
    }

    /// Reads and validates one configuration file, whatever its name.
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn read(path: &Path) -> Result<ModelConfig> {
        ModelConfig::parse(&Fields::read(path)?)
    }

    /// Reads and validates what `config.json` would hold, of a model that is in no folder.
    ///
    /// # Errors
    /// Names `origin` and the field, what was expected and what was found.
    pub fn from_json(origin: &str, json: &str) -> Result<ModelConfig> {
        ModelConfig::parse(&Fields::of(Path::new(origin), json.as_bytes())?)
    }

    /// Rows of the fused query, key and value projection.
    pub fn qkv_rows(&self) -> usize {
        (self.q_heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Rotary frequencies of a head; zeros, which rotate nothing, where positions are learned.
    pub fn inv_freq(&self) -> Vec<f32> {
        match self.positions {
            Positions::Rotary => self.rope.inv_freq(self.head_dim),
            Positions::Learned => vec![0.0; self.head_dim / 2],
        }
    }

    fn parse(fields: &Fields) -> Result<ModelConfig> {
        let architecture = architecture(fields)?;
        if architecture == Architecture::Gpt2 {
            return gpt2::parse(fields);
        }
        if fields.text("hidden_act")?.is_some_and(|act| act != "silu") {
            return Err(fields.wrong("hidden_act", "\"silu\""));
        }
        let hidden_size = fields.required_size("hidden_size")?;
        let (q_heads, kv_heads, head_dim) = heads(fields, architecture, hidden_size)?;
        let layers = bounded(fields, "num_hidden_layers", MAX_LAYERS)?;
        let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
        let config = ModelConfig {
            architecture,
            vocab_size: fields.required_size("vocab_size")?,
            hidden_size,
            intermediate_size: fields.required_size("intermediate_size")?,
            layers,
            q_heads,
            kv_heads,
            head_dim,
            context: bounded(fields, "max_position_embeddings", MAX_CONTEXT)?,
            norm: NormKind::Rms,
            norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(DEFAULT_EPS) as f32,
            activation: Activation::SwiGlu,
            positions: Positions::Rotary,
            rope: Rope::parse(fields)?,
            windows: windows(fields, architecture, layers)?,
            qkv_bias: attention_bias || architecture == Architecture::Qwen2,
            output_bias: attention_bias && architecture != Architecture::Qwen2,
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            qk_norm: architecture == Architecture::Qwen3,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            quantization: QuantizationConfig::parse(fields)?,
            bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: fields.token_ids("eos_token_id")?,
        };
        Ok(config)
    }
}

fn architecture(fields: &Fields) -> Result<Architecture> {
    match fields.text("model_type")? {
        Some("llama") => Ok(Architecture::Llama),
        Some("qwen2") => Ok(Architecture::Qwen2),
        Some("qwen3") => Ok(Architecture::Qwen3),
        Some("mistral") => Ok(Architecture::Mistral),
        Some("gpt2") => Ok(Architecture::Gpt2),
        _ => Err(fields
            .wrong("model_type", "\"llama\", \"qwen2\", \"qwen3\", \"mistral\" or \"gpt2\" of a decoder")),
    }
}

fn bounded(fields: &Fields, field: &str, max: usize) -> Result<usize> {
    let size = fields.required_size(field)?;
    if size > max {
        return Err(fields.wrong(field, &format!("at most {max}")));
    }
    Ok(size)
}

/// Query heads, key and value heads, elements a head.
fn heads(fields: &Fields, architecture: Architecture, hidden_size: usize) -> Result<(usize, usize, usize)> {
    let q_heads = fields.required_size("num_attention_heads")?;
    let kv_heads = fields.size("num_key_value_heads")?.unwrap_or(q_heads);
    if !q_heads.is_multiple_of(kv_heads) {
        return Err(fields
            .wrong("num_key_value_heads", &format!("a divisor of num_attention_heads, which is {q_heads}")));
    }
    let head_dim = match fields.size("head_dim")? {
        // Llama is defined with heads that divide the hidden size even where head_dim says otherwise.
        Some(head_dim) if architecture != Architecture::Llama => head_dim,
        _ if !hidden_size.is_multiple_of(q_heads) => {
            let expected = format!("a multiple of num_attention_heads, which is {q_heads}");
            return Err(fields.wrong("hidden_size", &expected));
        }
        Some(head_dim) => head_dim,
        None => hidden_size / q_heads,
    };
    check_heads(fields, ("head_dim", head_dim), ("num_attention_heads", q_heads))?;
    Ok((q_heads, kv_heads, head_dim))
}

/// That heads have a size that is served and aren't too many. With each number goes the field to complain of.
fn check_heads(fields: &Fields, head_dim: (&str, usize), heads: (&str, usize)) -> Result<()> {
    if !head_dim.1.is_multiple_of(2) || head_dim.1 > MAX_HEAD_DIM {
        let expected = format!("an even head size of at most {MAX_HEAD_DIM}, not {}", head_dim.1);
        return Err(fields.wrong(head_dim.0, &expected));
    }
    if heads.1 * head_dim.1 > i32::MAX as usize / 4 {
        return Err(fields.wrong(heads.0, "heads that fit a projection of 2^29 rows"));
    }
    Ok(())
}

/// The activation that transformers calls so, of an MLP without a gate.
fn gelu(fields: &Fields, field: &str, default: Activation) -> Result<Activation> {
    match fields.text(field)? {
        None => Ok(default),
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some(_) => Err(fields.wrong(field, "\"gelu\", \"gelu_new\" or \"gelu_pytorch_tanh\"")),
    }
}

/// Equal heads that divide the hidden size.
fn equal_heads(
    fields: &Fields,
    (hidden_field, hidden): (&str, usize),
    heads_field: &str,
) -> Result<(usize, usize)> {
    let heads = fields.required_size(heads_field)?;
    if !hidden.is_multiple_of(heads) {
        let expected = format!("a multiple of {heads_field}, which is {heads}");
        return Err(fields.wrong(hidden_field, &expected));
    }
    check_heads(fields, (heads_field, hidden / heads), (heads_field, heads))?;
    Ok((heads, hidden / heads))
}

fn sliding_window(fields: &Fields) -> Result<Option<usize>> {
    if fields.says("sliding_window") { fields.size("sliding_window") } else { Ok(Some(DEFAULT_WINDOW)) }
}

/// Which layers slide, and how far. Mistral slides in all layers; Qwen only with `use_sliding_window`, in the layers that
/// `layer_types` lists or else those from `max_window_layers` on.
fn windows(fields: &Fields, architecture: Architecture, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = match architecture {
        Architecture::Llama | Architecture::Gpt2 => None,
        Architecture::Mistral => sliding_window(fields)?,
        Architecture::Qwen2 | Architecture::Qwen3 if fields.flag("use_sliding_window")?.unwrap_or(false) => {
            sliding_window(fields)?
        }
        Architecture::Qwen2 | Architecture::Qwen3 => None,
    };
    let Some(window) = window else { return Ok(vec![None; layers]) };
    let Some(types) = fields.get("layer_types") else {
        let first = match architecture {
            Architecture::Mistral => 0,
            _ => match fields.get("max_window_layers") {
                None => 28,
                Some(value) => {
                    value.as_u64().ok_or_else(|| fields.wrong("max_window_layers", "a number of layers"))?
                        as usize
                }
            },
        };
        return Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect());
    };
    let types = types.as_array().filter(|types| types.len() == layers);
    let types =
        types.ok_or_else(|| fields.wrong("layer_types", &format!("a list of {layers} layer types")))?;
    types
        .iter()
        .map(|layer| match layer.as_str() {
            Some("sliding_attention") => Ok(Some(window)),
            Some("full_attention") => Ok(None),
            _ => {
                Err(fields.wrong("layer_types", "\"full_attention\" or \"sliding_attention\" in each place"))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
