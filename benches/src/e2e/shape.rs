//! The models that are measured, and the bytes that a step of theirs can't do without.

use tilewright::config::ModelConfig;

use crate::{Error, Result};

/// The names of shapes.
pub const SHAPES: [&str; 3] = ["llama-3.1-8b", "llama-3.2-1b", "tiny"];

/// How a model's linear layers are stored; embedding and output projection are bf16 in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// bf16.
    Bf16,
    /// Four bits in groups of 128, an f16 scale each.
    Int4,
    /// The same in act-order, of which q, k and v share one, and gate and up.
    Int4ActOrder,
    /// Eight bits in groups of 128, an f16 scale each.
    Int8,
    /// Eight bits with a scale a channel, for activations of eight bits.
    W8a8,
}

impl Weights {
    fn quantisation(self) -> Option<serde_json::Value> {
        let gptq = |bits: usize, act_order: bool| {
            serde_json::json!({
                "quant_method": "gptq", "bits": bits, "group_size": 128, "sym": true, "desc_act": act_order,
            })
        };
        match self {
            Weights::Bf16 => None,
            Weights::Int4 => Some(gptq(4, false)),
            Weights::Int4ActOrder => Some(gptq(4, true)),
            Weights::Int8 => Some(gptq(8, false)),
            Weights::W8a8 => Some(serde_json::json!({
                "quant_method": "compressed-tensors",
                "format": "int-quantized",
                "config_groups": { "group_0": {
                    "targets": ["Linear"],
                    "weights": { "num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel" },
                    "input_activations":
                        { "num_bits": 8, "dynamic": true, "strategy": "token", "symmetric": true },
                } },
            })),
        }
    }
}

/// A model of that name.
///
/// # Errors
/// A name that isn't one of [`SHAPES`].
pub fn config(name: &str, weights: Weights) -> Result<ModelConfig> {
    let [layers, hidden, inter, q_heads, kv_heads, head_dim, vocab] = match name {
        "llama-3.1-8b" => [32, 4096, 14336, 32, 8, 128, 128_256],
        "llama-3.2-1b" => [16, 2048, 8192, 32, 8, 64, 128_256],
        "tiny" => [2, 256, 384, 4, 2, 64, 512],
        _ => {
            return Err(Error::UnknownShape { name: name.to_string(), known: SHAPES.join(", ") });
        }
    };
    let mut json = serde_json::json!({
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": q_heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
    });
    if let Some(quantisation) = weights.quantisation() {
        json["quantization_config"] = quantisation;
    }
    Ok(ModelConfig::from_json(name, &json.to_string())?)
}

/// Bytes of weights that a step reads whatever its batch: all but the embedding table, norms aside.
pub fn weight_bytes(config: &ModelConfig) -> f64 {
    let (hidden, inter) = (config.hidden_size as f64, config.intermediate_size as f64);
    let q = (config.q_heads * config.head_dim) as f64;
    let layer = hidden * (config.qkv_rows() as f64 + q + 3.0 * inter);
    let bytes_a_weight = match &config.quantization {
        None => 2.0,
        // And two bytes of scale a group.
        Some(quantization) => {
            quantization.bits as f64 / 8.0 + 2.0 / quantization.group(config.hidden_size) as f64
        }
    };
    config.layers as f64 * layer * bytes_a_weight + 2.0 * hidden * config.vocab_size as f64
}

/// Bytes of bf16 keys and values of a token.
pub fn token_bytes(config: &ModelConfig) -> f64 {
    (2 * config.layers * config.kv_heads * config.head_dim * 2) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walls_are_those_of_the_shape() {
        let bytes = |weights| weight_bytes(&config("llama-3.1-8b", weights).expect("a shape"));
        // 8.03e9 parameters less an embedding of 0.525e9.
        assert!((bytes(Weights::Bf16) / 15.01e9 - 1.0).abs() < 1e-3, "{}", bytes(Weights::Bf16));
        assert!((bytes(Weights::Int4) / 4.65e9 - 1.0).abs() < 2e-3, "{}", bytes(Weights::Int4));
        assert_eq!(token_bytes(&config("llama-3.1-8b", Weights::Bf16).expect("a shape")), 131_072.0);
    }

    #[test]
    fn shapes_have_the_names_they_say() {
        for name in SHAPES {
            for weights in [Weights::Int4, Weights::Int4ActOrder, Weights::Int8, Weights::W8a8] {
                assert!(config(name, weights).is_ok(), "{name} {weights:?}");
            }
        }
        let error = config("llama", Weights::Bf16).expect_err("none").to_string();
        assert!(error.starts_with("no shape 'llama'; there are llama-3.1-8b, "), "{error}");
    }
}
