//! Writes the weights of a quantised checkpoint's linear layers as this crate reads them, f32, for another reader to compare:
//!
//! `cargo run -p tilewright --example dequantise -- DIR weights.safetensors`, then
//! `python benches/peers/read_quantised.py DIR weights.safetensors`
use std::path::Path;

use safetensors::{Dtype, tensor::TensorView};
use tilewright::checkpoint::Checkpoint;
use tilewright::config::ModelConfig;
use tilewright::quantized::read_linear;
use tilewright_host::HostQuantized;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, out] = &args[..] else { return Err("usage: dequantise DIR OUT".into()) };
    let config = ModelConfig::load(Path::new(dir))?;
    let checkpoint = Checkpoint::open(Path::new(dir))?;
    let Some(quantization) = &config.quantization else {
        return Err(format!("{dir}: expected a quantised checkpoint").into());
    };
    let (hidden, inter) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.q_heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut tensors = Vec::new();
    for layer in 0..config.layers {
        for (part, rows, cols) in [
            ("self_attn.q_proj", q, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, q),
            ("mlp.gate_proj", inter, hidden),
            ("mlp.up_proj", inter, hidden),
            ("mlp.down_proj", hidden, inter),
        ] {
            let name = format!("model.layers.{layer}.{part}");
            let weights =
                HostQuantized::new(vec![read_linear(&checkpoint, quantization, &name, rows, cols)?])?;
            let bytes: Vec<u8> = weights.dequantized().iter().flat_map(|w| w.to_le_bytes()).collect();
            tensors.push((name, vec![rows, cols], bytes));
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (name.clone(), view))
    });
    std::fs::write(out, safetensors::serialize(views.collect::<Result<Vec<_>, _>>()?, None)?)?;
    Ok(())
}
