//! Shapes of published models, as their `config.json` gives them.

use serde_json::json;

use crate::config::ModelConfig;
use crate::{Error, Result};

/// A published model's shape.
struct Shape {
    name: &'static str,
    /// `model_type` of its configuration.
    kind: &'static str,
    vocab: usize,
    hidden: usize,
    inter: usize,
    layers: usize,
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    context: usize,
    tied: bool,
    /// Keys a query sees, where it doesn't see all.
    window: Option<usize>,
    /// Parameters as published, for the tests.
    #[cfg(test)]
    parameters: u64,
}

macro_rules! shapes {
    ($($name:literal $kind:literal vocab $vocab:literal hidden $hidden:literal inter $inter:literal layers $layers:literal
        heads $q_heads:literal/$kv_heads:literal of $head_dim:literal context $context:literal tied $tied:literal
        window $window:expr, parameters $parameters:literal;)*) => {
        &[$(Shape {
            name: $name,
            kind: $kind,
            vocab: $vocab,
            hidden: $hidden,
            inter: $inter,
            layers: $layers,
            q_heads: $q_heads,
            kv_heads: $kv_heads,
            head_dim: $head_dim,
            context: $context,
            tied: $tied,
            window: $window,
            #[cfg(test)]
            parameters: $parameters,
        }),*]
    };
}

#[rustfmt::skip]
const SHAPES: &[Shape] = shapes! {
    "llama-2-7b" "llama" vocab 32000 hidden 4096 inter 11008 layers 32 heads 32/32 of 128 context 4096 tied false
        window None, parameters 6_738_415_616;
    "llama-2-13b" "llama" vocab 32000 hidden 5120 inter 13824 layers 40 heads 40/40 of 128 context 4096 tied false
        window None, parameters 13_015_864_320;
    "llama-2-70b" "llama" vocab 32000 hidden 8192 inter 28672 layers 80 heads 64/8 of 128 context 4096 tied false
        window None, parameters 68_976_648_192;
    "llama-3.1-8b" "llama" vocab 128256 hidden 4096 inter 14336 layers 32 heads 32/8 of 128 context 131072 tied false
        window None, parameters 8_030_261_248;
    "llama-3.1-70b" "llama" vocab 128256 hidden 8192 inter 28672 layers 80 heads 64/8 of 128 context 131072 tied false
        window None, parameters 70_553_706_496;
    "llama-3.1-405b" "llama" vocab 128256 hidden 16384 inter 53248 layers 126 heads 128/8 of 128 context 131072 tied false
        window None, parameters 405_853_388_800;
    "llama-3.2-1b" "llama" vocab 128256 hidden 2048 inter 8192 layers 16 heads 32/8 of 64 context 131072 tied true
        window None, parameters 1_235_814_400;
    "llama-3.2-3b" "llama" vocab 128256 hidden 3072 inter 8192 layers 28 heads 24/8 of 128 context 131072 tied true
        window None, parameters 3_212_749_824;
    "qwen2.5-7b" "qwen2" vocab 152064 hidden 3584 inter 18944 layers 28 heads 28/4 of 128 context 131072 tied false
        window None, parameters 7_615_616_512;
    "qwen2.5-72b" "qwen2" vocab 152064 hidden 8192 inter 29568 layers 80 heads 64/8 of 128 context 131072 tied false
        window None, parameters 72_706_203_648;
    "qwen3-0.6b" "qwen3" vocab 151936 hidden 1024 inter 3072 layers 28 heads 16/8 of 128 context 40960 tied true
        window None, parameters 596_049_920;
    "qwen3-8b" "qwen3" vocab 151936 hidden 4096 inter 12288 layers 36 heads 32/8 of 128 context 40960 tied false
        window None, parameters 8_190_735_360;
    "qwen3-32b" "qwen3" vocab 151936 hidden 5120 inter 25600 layers 64 heads 64/8 of 128 context 40960 tied false
        window None, parameters 32_762_123_264;
    "mistral-7b" "mistral" vocab 32000 hidden 4096 inter 14336 layers 32 heads 32/8 of 128 context 32768 tied false
        window Some(4096), parameters 7_241_732_096;
};

/// The models whose shapes are known.
pub fn presets() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name)
}

/// The shape of a published model.
///
/// # Errors
/// A name that isn't known; the message has those that are.
pub fn preset(name: &str) -> Result<ModelConfig> {
    let Some(shape) = SHAPES.iter().find(|shape| shape.name.eq_ignore_ascii_case(name)) else {
        let known: Vec<&str> = presets().collect();
        return Err(Error::request("preset", format!("one of {}", known.join(", ")), name));
    };
    ModelConfig::from_json(shape.name, &shape.json())
}

impl Shape {
    /// As `config.json` has it.
    fn json(&self) -> String {
        json!({
            "model_type": self.kind,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.inter,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.q_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": self.tied,
            "sliding_window": self.window,
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::weights::parameters;

    #[test]
    fn presets_have_the_parameters_that_were_published() {
        assert_eq!(SHAPES.len(), 14);
        for shape in SHAPES {
            let config = preset(shape.name).expect("a preset is valid");
            assert_eq!(parameters(&config).expect("counted"), shape.parameters, "{}", shape.name);
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known() {
        let error = preset("llama-9").expect_err("no such model").to_string();
        assert!(
            error.starts_with("preset: expected one of llama-2-7b, ") && error.ends_with("found llama-9"),
            "{error}"
        );
        assert_eq!(preset("LLAMA-2-70B").expect("whatever the case").layers, 80);
    }
}
