//! `config.json` and `generation_config.json` of a Hugging Face checkpoint.

mod fields;
mod quantization;
mod rope;

use std::path::Path;

use serde::Serialize;

use crate::Result;
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
    /// Epsilon of every norm.
    pub rms_norm_eps: f32,
    /// Rotary embedding.
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
        if generation_path.exists() {
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

    fn parse(fields: &Fields) -> Result<ModelConfig> {
        let architecture = architecture(fields)?;
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
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(DEFAULT_EPS) as f32,
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
        _ => Err(fields.wrong("model_type", "\"llama\", \"qwen2\", \"qwen3\" or \"mistral\"")),
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
    if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
        let expected = format!("an even head size of at most {MAX_HEAD_DIM}, not {head_dim}");
        return Err(fields.wrong("head_dim", &expected));
    }
    if q_heads * head_dim > i32::MAX as usize / 4 {
        return Err(fields.wrong("num_attention_heads", "heads that fit a projection of 2^29 rows"));
    }
    Ok((q_heads, kv_heads, head_dim))
}

fn sliding_window(fields: &Fields) -> Result<Option<usize>> {
    if fields.says("sliding_window") { fields.size("sliding_window") } else { Ok(Some(DEFAULT_WINDOW)) }
}

/// Which layers slide, and how far. Mistral slides in all layers; Qwen only with `use_sliding_window`, in the layers that
/// `layer_types` lists or else those from `max_window_layers` on.
fn windows(fields: &Fields, architecture: Architecture, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = match architecture {
        Architecture::Llama => None,
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
