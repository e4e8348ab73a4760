//! Bytes of weights, by what they are stored as.

use std::str::FromStr;

use serde::Serialize;

use super::product;
use crate::config::ModelConfig;
use crate::{Error, Result};

/// Inputs that share a scale in weights of four bits.
const GROUP: usize = 128;

/// What the weights of the linear layers are stored as. Embedding, head, norms and biases keep the checkpoint's own type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum WeightFormat {
    /// f32 throughout: on the CPU alone, a GPU rounds such weights to bf16.
    F32,
    /// bf16 (or f16) throughout.
    Bf16,
    /// Eight bits with an f32 scale an output; activations of eight bits too.
    Int8,
    /// Four bits, a 16-bit scale and a zero point for each 128 inputs; activations as they are.
    Int4,
}

impl WeightFormat {
    /// All of them, largest first.
    pub const ALL: [WeightFormat; 4] =
        [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4];

    /// As it is named on the command line.
    pub fn name(self) -> &'static str {
        match self {
            WeightFormat::F32 => "f32",
            WeightFormat::Bf16 => "bf16",
            WeightFormat::Int8 => "int8",
            WeightFormat::Int4 => "int4",
        }
    }

    /// The format of a checkpoint of that configuration.
    pub fn of(config: &ModelConfig) -> WeightFormat {
        use crate::config::QuantFormat::IntQuantized;
        match &config.quantization {
            None => WeightFormat::Bf16,
            Some(quantization) if quantization.format == IntQuantized || quantization.bits == 8 => {
                WeightFormat::Int8
            }
            Some(_) => WeightFormat::Int4,
        }
    }

    /// Bytes of one matrix of a linear layer, `[rows, cols]`.
    pub(crate) fn matrix_bytes(self, rows: usize, cols: usize) -> Result<u64> {
        let elems = product(&[rows, cols])?;
        Ok(match self {
            WeightFormat::F32 => 4 * elems,
            WeightFormat::Bf16 => 2 * elems,
            WeightFormat::Int8 => elems + 4 * rows as u64,
            WeightFormat::Int4 => {
                let groups = product(&[rows, cols.div_ceil(GROUP)])?;
                elems.div_ceil(2) + 2 * groups + groups.div_ceil(2)
            }
        })
    }

    /// Bytes of an element of everything else.
    fn plain_bytes(self) -> u64 {
        if self == WeightFormat::F32 { 4 } else { 2 }
    }
}

impl FromStr for WeightFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<WeightFormat> {
        match text {
            "fp32" => Ok(WeightFormat::F32),
            "fp16" | "f16" => Ok(WeightFormat::Bf16),
            _ => WeightFormat::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| {
                Error::request("weights", "f32, bf16 (or fp16), int8 or int4", format!("{text:?}"))
            }),
        }
    }
}

/// A model's weights in one format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WeightBytes {
    /// The format.
    pub format: WeightFormat,
    /// Bytes of the linear layers, scales and zero points included: what each step reads.
    pub linear_bytes: u64,
    /// Bytes of the output projection, which each step reads too: the embedding table where they are tied.
    pub head_bytes: u64,
    /// Bytes of the embedding table where it isn't the output projection: a step reads a row a token of it.
    pub embedding_bytes: u64,
    /// Bytes of norms and biases.
    pub vector_bytes: u64,
}

impl WeightBytes {
    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.linear_bytes + self.head_bytes + self.embedding_bytes + self.vector_bytes
    }
}

/// Rows and columns of a layer's linear weights.
fn matrices(config: &ModelConfig) -> [[usize; 2]; 7] {
    let (hidden, inter) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.q_heads * config.head_dim, config.kv_heads * config.head_dim);
    [[q, hidden], [kv, hidden], [kv, hidden], [hidden, q], [inter, hidden], [inter, hidden], [hidden, inter]]
}

/// Elements of norms and biases.
fn vectors(config: &ModelConfig) -> Result<u64> {
    let mut layer = 2 * config.hidden_size;
    layer += if config.qkv_bias { config.qkv_rows() } else { 0 };
    layer += if config.output_bias { config.hidden_size } else { 0 };
    layer += if config.mlp_bias { 2 * config.intermediate_size + config.hidden_size } else { 0 };
    layer += if config.qk_norm { 2 * config.head_dim } else { 0 };
    Ok(product(&[config.layers, layer])? + config.hidden_size as u64)
}

/// Elements of the linear layers: a token's multiply-adds in them.
///
/// # Errors
/// A model beyond 2^63.
pub fn linear_parameters(config: &ModelConfig) -> Result<u64> {
    let layer = matrices(config).iter().try_fold(0, |sum, dims| Ok::<_, Error>(sum + product(dims)?))?;
    product(&[config.layers, usize::try_from(layer).unwrap_or(usize::MAX)])
}

/// All parameters, those of a table that serves twice counted once.
///
/// # Errors
/// A model beyond 2^63.
pub fn parameters(config: &ModelConfig) -> Result<u64> {
    let table = product(&[config.vocab_size, config.hidden_size])?;
    let tables = if config.tie_word_embeddings { table } else { 2 * table };
    Ok(linear_parameters(config)? + tables + vectors(config)?)
}

/// A model's weights in a format.
///
/// # Errors
/// A model beyond 2^63 bytes.
pub fn weight_bytes(config: &ModelConfig, format: WeightFormat) -> Result<WeightBytes> {
    let layer = matrices(config)
        .iter()
        .try_fold(0, |sum, [rows, cols]| Ok::<_, Error>(sum + format.matrix_bytes(*rows, *cols)?))?;
    let table = product(&[config.vocab_size, config.hidden_size, format.plain_bytes() as usize])?;
    Ok(WeightBytes {
        format,
        linear_bytes: product(&[config.layers, usize::try_from(layer).unwrap_or(usize::MAX)])?,
        head_bytes: table,
        embedding_bytes: if config.tie_word_embeddings { 0 } else { table },
        vector_bytes: vectors(config)?.saturating_mul(format.plain_bytes()),
    })
}
