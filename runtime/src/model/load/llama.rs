use tilewright_host::{AttentionSpec, Device};

use super::Tensors;
use crate::Result;
use crate::config::ModelConfig;
use crate::model::{Layer, NormPlace};

/// A layer as Llama's family names its tensors.
pub(super) fn layer<D: Device>(
    tensors: &mut Tensors<'_, D>,
    config: &ModelConfig,
    index: usize,
) -> Result<Layer<D>> {
    let (hidden, inter) = (config.hidden_size, config.intermediate_size);
    let q_rows = config.q_heads * config.head_dim;
    let kv_rows = config.kv_heads * config.head_dim;
    let name = |part: &str| format!("model.layers.{index}.{part}");
    let qkv = |kind: &str| {
        [("q", q_rows), ("k", kv_rows), ("v", kv_rows)]
            .map(|(part, rows)| (name(&format!("self_attn.{part}_proj.{kind}")), rows))
    };
    let gate_up = |kind: &str| ["gate", "up"].map(|part| (name(&format!("mlp.{part}_proj.{kind}")), inter));
    let qk_norm = match config.qk_norm {
        false => None,
        true => Some((
            tensors.vector(&[(name("self_attn.q_norm.weight"), config.head_dim)])?,
            tensors.vector(&[(name("self_attn.k_norm.weight"), config.head_dim)])?,
            config.norm_eps,
        )),
    };
    Ok(Layer {
        input_norm: tensors.norm(config.norm, &name("input_layernorm"), hidden, config.norm_eps)?,
        qkv: tensors.matrix(&qkv("weight"), hidden)?,
        qkv_bias: tensors.vector_if(config.qkv_bias, &qkv("bias"))?,
        qk_norm,
        output: tensors.matrix(&[(name("self_attn.o_proj.weight"), hidden)], q_rows)?,
        output_bias: tensors.vector_if(config.output_bias, &[(name("self_attn.o_proj.bias"), hidden)])?,
        post_norm: tensors.norm(config.norm, &name("post_attention_layernorm"), hidden, config.norm_eps)?,
        gate_up: match config.mlp_bias {
            true => tensors.matrix(&gate_up("weight"), hidden)?,
            false => tensors.gated(&gate_up("weight"), hidden)?,
        },
        gate_up_bias: tensors.vector_if(config.mlp_bias, &gate_up("bias"))?,
        activation: config.activation,
        down: tensors.matrix(&[(name("mlp.down_proj.weight"), hidden)], inter)?,
        down_bias: tensors.vector_if(config.mlp_bias, &[(name("mlp.down_proj.bias"), hidden)])?,
        attention: AttentionSpec {
            q_heads: config.q_heads,
            scale: (config.head_dim as f32).sqrt().recip(),
            causal: true,
            window: config.windows[index],
            softcap: None,
        },
        norms: NormPlace::Before,
    })
}
