//! GPT-2's tensors: linear layers are stored transposed, query, key and value as one.

use tilewright_host::{AttentionSpec, Device};

use super::Tensors;
use crate::Result;
use crate::config::ModelConfig;
use crate::model::{Layer, NormPlace};

/// A tensor's name: the first checkpoints of the family have no prefix, later ones do.
pub(super) fn name<D: Device>(tensors: &Tensors<'_, D>, part: &str) -> String {
    let prefix = if tensors.checkpoint.contains("transformer.wte.weight") { "transformer." } else { "" };
    format!("{prefix}{part}")
}

/// Whether a tensor is the causal mask that some checkpoints carry in each layer.
pub(super) fn is_mask(name: &str) -> bool {
    name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
}

pub(super) fn layer<D: Device>(
    tensors: &mut Tensors<'_, D>,
    config: &ModelConfig,
    index: usize,
) -> Result<Layer<D>> {
    let (hidden, inter) = (config.hidden_size, config.intermediate_size);
    let stem = name(tensors, &format!("h.{index}"));
    let part = |part: &str| format!("{stem}.{part}");
    let bias = |part: &str, len| [(format!("{stem}.{part}.bias"), len)];
    Ok(Layer {
        input_norm: tensors.norm(config.norm, &part("ln_1"), hidden, config.norm_eps)?,
        qkv: tensors.transposed(&part("attn.c_attn.weight"), 3 * hidden, hidden)?,
        qkv_bias: Some(tensors.vector(&bias("attn.c_attn", 3 * hidden))?),
        qk_norm: None,
        output: tensors.transposed(&part("attn.c_proj.weight"), hidden, hidden)?,
        output_bias: Some(tensors.vector(&bias("attn.c_proj", hidden))?),
        post_norm: tensors.norm(config.norm, &part("ln_2"), hidden, config.norm_eps)?,
        gate_up: tensors.transposed(&part("mlp.c_fc.weight"), inter, hidden)?,
        gate_up_bias: Some(tensors.vector(&bias("mlp.c_fc", inter))?),
        activation: config.activation,
        down: tensors.transposed(&part("mlp.c_proj.weight"), hidden, inter)?,
        down_bias: Some(tensors.vector(&bias("mlp.c_proj", hidden))?),
        attention: AttentionSpec {
            q_heads: config.q_heads,
            scale: (config.head_dim as f32).sqrt().recip(),
            causal: true,
            window: None,
            softcap: None,
        },
        norms: NormPlace::Before,
    })
}
