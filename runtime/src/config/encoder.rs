//! `config.json` of the encoders: BERT and ViT.

use std::path::Path;

use serde::Serialize;

use super::fields::Fields;
use super::{Activation, MAX_CONTEXT, MAX_LAYERS, bounded, equal_heads, gelu};
use crate::Result;

/// What transformers takes where a file doesn't say.
const DEFAULT_EPS: f64 = 1e-12;
/// Token types beyond this are taken for damage.
const MAX_TOKEN_TYPES: usize = 1024;
/// Pixels along an image's side beyond this are taken for damage.
const MAX_IMAGE_SIZE: usize = 1 << 14;

/// An encoder's shape and constants, validated. Norms are layer norms, positions learned, linear layers have biases.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EncoderConfig {
    /// What it reads.
    pub input: EncoderInput,
    /// Elements of the residual stream.
    pub hidden_size: usize,
    /// Elements inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub layers: usize,
    /// Heads of queries, and as many of keys and values.
    pub heads: usize,
    /// Elements a head.
    pub head_dim: usize,
    /// Epsilon of every norm.
    pub norm_eps: f32,
    /// What the MLP does between its matrices.
    pub activation: Activation,
}

/// What an encoder reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[non_exhaustive]
pub enum EncoderInput {
    /// `BertModel`: tokens, normed after each sum.
    Bert {
        /// Token ids.
        vocab_size: usize,
        /// Tokens of the longest text, `max_position_embeddings`.
        context: usize,
        /// Types of tokens (first or second text of a pair).
        token_types: usize,
    },
    /// `ViTForImageClassification`: square images, cut into square patches.
    Vit {
        /// Colours.
        channels: usize,
        /// Pixels along a side.
        image_size: usize,
        /// Pixels along a patch's side; divides `image_size`.
        patch_size: usize,
        /// What each class is called, in the order of the logits.
        labels: Vec<String>,
    },
}

impl EncoderConfig {
    /// Whether `config.json` of `dir` is an encoder's.
    ///
    /// # Errors
    /// A file that can't be read, or isn't JSON.
    pub fn describes(dir: &Path) -> Result<bool> {
        let fields = Fields::read(&dir.join("config.json"))?;
        Ok(matches!(fields.text("model_type")?, Some("bert" | "vit")))
    }

    /// Reads and validates `config.json` of `dir`.
    ///
    /// # Errors
    /// Names the file and the field, what was expected and what was found.
    pub fn load(dir: &Path) -> Result<EncoderConfig> {
        let fields = &Fields::read(&dir.join("config.json"))?;
        let input = match fields.text("model_type")? {
            Some("bert") => bert(fields)?,
            Some("vit") => vit(fields)?,
            _ => return Err(fields.wrong("model_type", "\"bert\" or \"vit\" of an encoder")),
        };
        if fields.get("quantization_config").is_some() {
            return Err(
                fields.wrong("quantization_config", "nothing: encoders are read as they were trained")
            );
        }
        let hidden_size = fields.required_size("hidden_size")?;
        let (heads, head_dim) = equal_heads(fields, ("hidden_size", hidden_size), "num_attention_heads")?;
        Ok(EncoderConfig {
            input,
            hidden_size,
            intermediate_size: fields.required_size("intermediate_size")?,
            layers: bounded(fields, "num_hidden_layers", MAX_LAYERS)?,
            heads,
            head_dim,
            norm_eps: fields.positive("layer_norm_eps")?.unwrap_or(DEFAULT_EPS) as f32,
            activation: gelu(fields, "hidden_act", Activation::Gelu)?,
        })
    }

    /// Rows of the table of places: positions of each type of token, or of the class token and the patches of an image.
    pub fn places(&self) -> usize {
        match &self.input {
            EncoderInput::Bert { context, token_types, .. } => context * token_types,
            EncoderInput::Vit { .. } => self.context(),
        }
    }

    /// Tokens of the longest text, or of every image: its class token and its patches.
    pub fn context(&self) -> usize {
        match &self.input {
            EncoderInput::Bert { context, .. } => *context,
            EncoderInput::Vit { image_size, patch_size, .. } => 1 + (image_size / patch_size).pow(2),
        }
    }
}

fn bert(fields: &Fields) -> Result<EncoderInput> {
    if fields.text("position_embedding_type")?.is_some_and(|kind| kind != "absolute") {
        return Err(fields.wrong("position_embedding_type", "\"absolute\""));
    }
    if fields.flag("is_decoder")? == Some(true) {
        return Err(fields.wrong("is_decoder", "false"));
    }
    let token_types = fields.size("type_vocab_size")?.unwrap_or(2);
    if token_types > MAX_TOKEN_TYPES {
        return Err(fields.wrong("type_vocab_size", &format!("at most {MAX_TOKEN_TYPES}")));
    }
    Ok(EncoderInput::Bert {
        vocab_size: fields.required_size("vocab_size")?,
        context: bounded(fields, "max_position_embeddings", MAX_CONTEXT)?,
        token_types,
    })
}

fn vit(fields: &Fields) -> Result<EncoderInput> {
    if fields.flag("qkv_bias")? == Some(false) {
        return Err(fields.wrong("qkv_bias", "true"));
    }
    let image_size = bounded(fields, "image_size", MAX_IMAGE_SIZE)?;
    let patch_size = fields.required_size("patch_size")?;
    if !image_size.is_multiple_of(patch_size) {
        return Err(fields.wrong("patch_size", &format!("a divisor of image_size, which is {image_size}")));
    }
    let channels = fields.size("num_channels")?.unwrap_or(3);
    if channels > MAX_TOKEN_TYPES {
        return Err(fields.wrong("num_channels", &format!("at most {MAX_TOKEN_TYPES}")));
    }
    Ok(EncoderInput::Vit { channels, image_size, patch_size, labels: labels(fields)? })
}

/// The names of `id2label`, whose keys must be the numbers from 0 on.
fn labels(fields: &Fields) -> Result<Vec<String>> {
    let wrong = || fields.wrong("id2label", "a name for each number from 0 on");
    let names = fields.get("id2label").and_then(|value| value.as_object()).ok_or_else(wrong)?;
    if names.is_empty() {
        return Err(wrong());
    }
    (0..names.len())
        .map(|id| names.get(&id.to_string()).and_then(|name| name.as_str()).map(str::to_owned))
        .map(|name| name.ok_or_else(wrong))
        .collect()
}
