use serde_json::{Value, json};

use super::*;

fn load(value: &Value) -> Result<ModelConfig> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("config.json"), value.to_string()).expect("config.json");
    ModelConfig::load(dir.path())
}

fn llama() -> Value {
    json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 512})
}

fn with(changes: Value) -> Value {
    let mut value = llama();
    for (key, change) in changes.as_object().expect("an object") {
        value[key] = change.clone();
    }
    value
}

#[test]
fn defaults_are_those_of_the_family() {
    let config = load(&llama()).expect("a valid configuration");
    assert_eq!((config.kv_heads, config.head_dim, config.rope.theta), (4, 16, 10_000.0));
    assert_eq!(config.windows, [None, None]);
    assert!(!config.tie_word_embeddings && !config.qkv_bias && !config.qk_norm);
    let qwen2 = load(&with(json!({"model_type": "qwen2"}))).expect("a valid configuration");
    assert!(qwen2.qkv_bias && !qwen2.output_bias);
    assert!(load(&with(json!({"model_type": "qwen3"}))).expect("a valid configuration").qk_norm);
}

#[test]
fn both_forms_of_rope_say_the_same() {
    let scaling = json!({"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let old = load(&with(json!({"rope_theta": 5e5, "rope_scaling": scaling}))).expect("the old form");
    let mut parameters = scaling.clone();
    parameters["rope_type"] = json!("llama3");
    parameters["rope_theta"] = json!(5e5);
    let new = load(&with(json!({"rope_parameters": parameters}))).expect("the new form");
    assert_eq!(old.rope, new.rope);
    assert_eq!(old.rope.theta, 5e5);
    let linear = load(&with(json!({"rope_scaling": {"type": "linear", "factor": 4.0}}))).expect("linear");
    assert_eq!(linear.rope.inv_freq(16)[0], 0.25);
}

#[test]
fn llama3_keeps_high_and_divides_low_frequencies() {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 64,
    };
    assert_eq!(scaling.apply(1.0), 1.0);
    assert_eq!(scaling.apply(0.01), 0.01 / 8.0);
    let between = scaling.apply(0.2);
    assert!(between < 0.2 && between > 0.2 / 8.0);
}

#[test]
fn windows_follow_the_family() {
    let windows = |changes| load(&with(changes)).expect("a valid configuration").windows;
    assert_eq!(windows(json!({"model_type": "mistral", "sliding_window": 16})), [Some(16), Some(16)]);
    assert_eq!(windows(json!({"model_type": "mistral", "sliding_window": null})), [None, None]);
    assert_eq!(windows(json!({"model_type": "mistral"})), [Some(4096), Some(4096)]);
    assert_eq!(windows(json!({"model_type": "qwen2", "sliding_window": 16})), [None, None]);
    let qwen = json!({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": true, "max_window_layers": 1});
    assert_eq!(windows(qwen), [None, Some(16)]);
    let qwen = json!({"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": true,
        "layer_types": ["sliding_attention", "full_attention"]});
    assert_eq!(windows(qwen), [Some(8), None]);
}

#[test]
fn generation_config_has_the_last_word_on_eos() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("config.json"), with(json!({"eos_token_id": 2})).to_string())
        .expect("written");
    assert_eq!(ModelConfig::load(dir.path()).expect("valid").eos_token_ids, [2]);
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [3, 4]}"#)
        .expect("written");
    assert_eq!(ModelConfig::load(dir.path()).expect("valid").eos_token_ids, [3, 4]);
}

#[test]
fn damage_is_named_by_file_and_field() {
    let cases = [
        (json!({"num_attention_heads": 0}), "num_attention_heads: expected an integer from 1"),
        (
            json!({"hidden_size": 66}),
            "hidden_size: expected a multiple of num_attention_heads, which is 4, found 66",
        ),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads: expected a divisor"),
        (json!({"model_type": "gpt9"}), "model_type: expected \"llama\""),
        (json!({"model_type": null}), "model_type: expected \"llama\""),
        (json!({"vocab_size": u64::MAX}), "vocab_size: expected an integer from 1"),
        (json!({"vocab_size": -5}), "vocab_size: expected an integer from 1"),
        (json!({"vocab_size": 1.5}), "vocab_size: expected an integer from 1"),
        (json!({"num_hidden_layers": 1_000_000_000}), "num_hidden_layers: expected at most"),
        (json!({"max_position_embeddings": 2_000_000_000}), "max_position_embeddings: expected at most"),
        (json!({"head_dim": 2_000_000_000}), "head_dim: expected an even head size"),
        (json!({"head_dim": 17}), "head_dim: expected an even head size"),
        (json!({"hidden_act": "gelu"}), "hidden_act: expected \"silu\", found \"gelu\""),
        (json!({"rms_norm_eps": 0.0}), "rms_norm_eps: expected a number above 0"),
        (json!({"rope_scaling": {"type": "yarn"}}), "rope_scaling.type: expected \"default\""),
        (
            json!({"rope_parameters": {"rope_type": "linear"}}),
            "rope_parameters.factor: expected a number above 0",
        ),
        (
            json!({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}}),
            "rope_scaling: expected what rope_parameters says",
        ),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 1e4}),
            "rope_theta: expected what rope_parameters says",
        ),
        (json!({"eos_token_id": "x"}), "eos_token_id: expected a token id"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings: expected true or false"),
    ];
    for (changes, expected) in cases {
        let error = load(&with(changes.clone())).expect_err(&changes.to_string()).to_string();
        assert!(error.contains("config.json: field ") && error.contains(expected), "{changes}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn quantisation_is_read_from_each_format() {
    let parse = |quantization: Value| {
        load(&with(json!({"quantization_config": quantization})))
            .expect("a valid configuration")
            .quantization
            .expect("quantised")
    };
    let gptq =
        parse(json!({"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": true, "sym": true}));
    assert_eq!((gptq.format, gptq.bits, gptq.group(300)), (QuantFormat::Gptq, 8, 300));
    assert!(gptq.symmetric && gptq.act_order);
    let v2 =
        parse(json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "gptq_v2"}));
    assert_eq!((v2.format, v2.group(64), v2.group(256)), (QuantFormat::GptqV2, 64, 128));
    let awq = parse(
        json!({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": true, "version": "GEMM"}),
    );
    assert_eq!((awq.format, awq.symmetric), (QuantFormat::Awq, false));
    let weights = json!({"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32,
        "actorder": "group"});
    let group = json!({"targets": ["Linear"], "weights": weights, "input_activations": null});
    let packed = parse(json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": group}}));
    assert_eq!(
        (packed.format, packed.group_size, packed.act_order),
        (QuantFormat::PackQuantized, Some(32), true)
    );
    let int = parse(int_quantized());
    assert_eq!((int.format, int.bits, int.group_size), (QuantFormat::IntQuantized, 8, None));
}

fn int_quantized() -> Value {
    let weights = json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel"});
    let inputs = json!({"num_bits": 8, "dynamic": true, "strategy": "token", "symmetric": true});
    json!({"quant_method": "compressed-tensors", "format": "int-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}})
}

#[test]
fn quantisation_that_is_not_read_is_named() {
    let gptq = |changes: Value| {
        let mut value = json!({"quant_method": "gptq", "bits": 4, "group_size": 128});
        for (key, change) in changes.as_object().expect("an object") {
            value[key] = change.clone();
        }
        value
    };
    let int = |pointer: &str, change: Value| {
        let mut value = int_quantized();
        *value.pointer_mut(pointer).expect("a field") = change;
        value
    };
    let inputs = "/config_groups/group_0/input_activations";
    let cases = [
        (json!({"bits": 4}), "quantization_config.quant_method: expected \"gptq\", \"awq\" or"),
        (json!(4), "quantization_config: expected an object"),
        (gptq(json!({"bits": 3})), "quantization_config.bits: expected 4 or 8, found 3"),
        (gptq(json!({"bits": "4"})), "quantization_config.bits: expected"),
        (
            gptq(json!({"group_size": 0})),
            "quantization_config.group_size: expected -1 or an integer from 1, found 0",
        ),
        (gptq(json!({"group_size": -2})), "group_size: expected -1 or an integer from 1, found -2"),
        (gptq(json!({"group_size": "x"})), "group_size: expected -1 or an integer from 1"),
        (gptq(json!({"group_size": u64::MAX})), "group_size: expected"),
        (gptq(json!({"checkpoint_format": "marlin"})), "checkpoint_format: expected \"gptq\" or \"gptq_v2\""),
        (gptq(json!({"dynamic": {"x": {}}})), "dynamic: expected nothing"),
        (gptq(json!({"sym": 1})), "sym: expected true or false"),
        (json!({"quant_method": "awq", "bits": 8}), "quantization_config.bits: expected 4, found 8"),
        (json!({"quant_method": "awq", "bits": 4, "version": "gemv"}), "version: expected \"gemm\""),
        (json!({"quant_method": "awq", "bits": 4, "group_size": 0}), "group_size: expected -1 or"),
        (json!({"quant_method": "compressed-tensors"}), "config_groups: expected an object"),
        (
            int("/format", json!("float-quantized")),
            "format: expected \"pack-quantized\" or \"int-quantized\"",
        ),
        (int(&format!("{inputs}/dynamic"), json!(false)), "config_groups.group_0.input_activations.dynamic"),
        (
            int(&format!("{inputs}/strategy"), json!("tensor")),
            "input_activations.strategy: expected \"token\"",
        ),
        (int(inputs, json!(null)), "group_0.input_activations: expected an object"),
        (int("/config_groups/group_0/targets", json!(["Conv2d"])), "group_0.targets: expected [\"Linear\"]"),
        (int("/config_groups/group_0/weights/type", json!("float")), "weights.type: expected \"int\""),
        (
            int("/config_groups/group_0/weights/strategy", json!("group")),
            "weights.strategy: expected \"channel\"",
        ),
    ];
    for (quantization, expected) in cases {
        let error = load(&with(json!({"quantization_config": quantization})));
        let error = error.expect_err(expected).to_string();
        assert!(error.contains("config.json: field ") && error.contains(expected), "{expected}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

fn gpt2(changes: Value) -> Result<ModelConfig> {
    let mut value = json!({"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100,
        "n_positions": 512, "n_inner": null});
    for (key, change) in changes.as_object().expect("an object") {
        value[key] = change.clone();
    }
    load(&value)
}

#[test]
fn gpt2_has_names_and_defaults_of_its_own() {
    let config = gpt2(json!({})).expect("a valid configuration");
    assert_eq!((config.intermediate_size, config.head_dim, config.context), (256, 16, 512));
    assert_eq!((config.norm, config.positions), (NormKind::Layer, Positions::Learned));
    assert!(config.tie_word_embeddings && config.qkv_bias && config.norm_eps == 1e-5);
    assert_eq!(config.activation, Activation::GeluTanh);
    assert_eq!(config.inv_freq(), [0.0; 8]);
    assert_eq!(gpt2(json!({"activation_function": "gelu"})).expect("valid").activation, Activation::Gelu);
    for (changes, expected) in [
        (json!({"n_head": 3}), "n_embd: expected a multiple of n_head, which is 3, found 64"),
        (json!({"n_embd": 68}), "n_head: expected an even head size of at most 256, not 17"),
        (json!({"n_positions": 0}), "n_positions: expected an integer from 1"),
        (json!({"activation_function": "relu"}), "activation_function: expected \"gelu\", \"gelu_new\""),
        (json!({"scale_attn_weights": false}), "scale_attn_weights: expected true, found false"),
        (json!({"add_cross_attention": true}), "add_cross_attention: expected false, found true"),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "quantization_config: expected nothing"),
    ] {
        let error = gpt2(changes.clone()).expect_err("refused").to_string();
        assert!(error.contains(expected), "{changes}: {error}");
    }
}

#[test]
fn encoders_are_read_and_damage_is_named() {
    let load = |value: &Value| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("config.json"), value.to_string()).expect("config.json");
        assert_eq!(EncoderConfig::describes(dir.path()).expect("JSON"), value["model_type"] != "gpt2");
        EncoderConfig::load(dir.path())
    };
    let base = json!({"model_type": "bert", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 32, "image_size": 32,
        "patch_size": 8, "id2label": {"0": "a", "1": "b"}});
    let with = |changes: Value| {
        let mut value = base.clone();
        for (key, change) in changes.as_object().expect("an object") {
            value[key] = change.clone();
        }
        value
    };
    let bert = load(&base).expect("valid");
    assert_eq!((bert.context(), bert.places(), bert.head_dim), (32, 64, 16));
    let vit = load(&with(json!({"model_type": "vit"}))).expect("valid");
    assert_eq!((vit.context(), vit.places()), (17, 17));
    for (changes, expected) in [
        (json!({"model_type": "gpt2"}), "model_type: expected \"bert\" or \"vit\" of an encoder"),
        (json!({"hidden_act": "silu"}), "hidden_act: expected \"gelu\""),
        (
            json!({"position_embedding_type": "relative_key"}),
            "position_embedding_type: expected \"absolute\"",
        ),
        (json!({"is_decoder": true}), "is_decoder: expected false"),
        (json!({"type_vocab_size": 1_000_000}), "type_vocab_size: expected at most 1024"),
        (json!({"num_attention_heads": 5}), "hidden_size: expected a multiple of num_attention_heads"),
        (json!({"model_type": "vit", "patch_size": 5}), "patch_size: expected a divisor of image_size"),
        (json!({"model_type": "vit", "image_size": 1 << 20}), "image_size: expected at most 16384"),
        (json!({"model_type": "vit", "qkv_bias": false}), "qkv_bias: expected true"),
        (json!({"model_type": "vit", "id2label": {"1": "a"}}), "id2label: expected a name for each number"),
    ] {
        let error = load(&with(changes.clone())).expect_err("refused").to_string();
        assert!(error.contains("config.json: field ") && error.contains(expected), "{changes}: {error}");
    }
}
