//! The fields of GPT-2, which has names of its own for most.

use super::fields::Fields;
use super::{
    Activation, Architecture, FrequencyPrecision, MAX_CONTEXT, MAX_LAYERS, ModelConfig, NormKind, Positions,
    Rope, RopeScaling, bounded, equal_heads, gelu,
};
use crate::Result;

/// What transformers takes where a file doesn't say.
const DEFAULT_EPS: f64 = 1e-5;

pub(super) fn parse(fields: &Fields) -> Result<ModelConfig> {
    // What would change the sums of attention.
    for (field, served) in [
        ("scale_attn_weights", true),
        ("scale_attn_by_inverse_layer_idx", false),
        ("add_cross_attention", false),
    ] {
        if fields.flag(field)?.is_some_and(|flag| flag != served) {
            return Err(fields.wrong(field, &served.to_string()));
        }
    }
    if fields.get("quantization_config").is_some() {
        return Err(fields.wrong("quantization_config", "nothing: GPT-2 is read as it was trained"));
    }
    let hidden_size = fields.required_size("n_embd")?;
    let (heads, head_dim) = equal_heads(fields, ("n_embd", hidden_size), "n_head")?;
    let layers = bounded(fields, "n_layer", MAX_LAYERS)?;
    Ok(ModelConfig {
        architecture: Architecture::Gpt2,
        vocab_size: fields.required_size("vocab_size")?,
        hidden_size,
        intermediate_size: fields.size("n_inner")?.unwrap_or(4 * hidden_size),
        layers,
        q_heads: heads,
        kv_heads: heads,
        head_dim,
        context: bounded(fields, "n_positions", MAX_CONTEXT)?,
        norm: NormKind::Layer,
        norm_eps: fields.positive("layer_norm_epsilon")?.unwrap_or(DEFAULT_EPS) as f32,
        activation: gelu(fields, "activation_function", Activation::GeluTanh)?,
        positions: Positions::Learned,
        rope: Rope { theta: 1.0, scaling: RopeScaling::Default, precision: FrequencyPrecision::F32 },
        windows: vec![None; layers],
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        qk_norm: false,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(true),
        quantization: None,
        bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id")?,
    })
}
