//! Whole checkpoints on the emulated GPU device: a decoder's logits of every position of a prompt and its greedy continuation, an
//! encoder's outputs, against what another implementation answered, within twice the error of a plain bf16 computation.

use std::{path::Path, sync::Arc};

use tilewright::{
    DeviceChoice, EmbedOptions, Embedder, Model, SamplingParams,
    quantise::{Method, QuantiseOptions, quantise},
    verify::verify_on,
};

use tilewright_host::gpu::GpuDevice;
use tilewright_tests::emulated::Emulated;

use super::setup::{bits, gpu, hopper};

/// Fixtures that continue nothing.
const ENCODERS: [&str; 2] = ["bert", "vit"];

/// Holds the device to a fixture; the GEMMs that it launched, each once.
fn verifies(fixture: &str, device: GpuDevice<Emulated>) -> Vec<&'static str> {
    let device = Arc::new(device);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(fixture);
    let found = verify_on(&dir, None, device.clone()).expect("the fixture runs");
    for tensor in &found.tensors {
        println!(
            "{fixture} {}: worst error {:.3e} at {:?}, bound {:.3e}, largest {:.3e}",
            tensor.name, tensor.worst_error, tensor.coordinate, tensor.bound, tensor.largest
        );
        // A bound as large as the logits would prove nothing.
        assert!(tensor.bound < 0.1 * tensor.largest, "{fixture}: bound {}", tensor.bound);
    }
    for row in &found.greedy {
        println!(
            "{fixture} row {}: {} of {} steps equal, {} decided",
            row.row, row.equal_steps, row.steps, row.decided_steps
        );
    }
    let decides = found.greedy.iter().any(|row| row.decided_steps > 0);
    assert!(decides || ENCODERS.contains(&fixture), "{fixture}: no step is decided");
    assert!(found.passed, "{found:#?}");
    let launched = device.driver().take_launched();
    let mut gemms: Vec<_> =
        launched.iter().map(|launched| launched.kernel).filter(|name| name.starts_with("gemm")).collect();
    gemms.sort_unstable();
    gemms.dedup();
    gemms
}

/// That prompts and generated tokens were multiplied by Hopper's kernels of bf16.
fn verifies_on_hopper(fixture: &str) {
    let gemms = verifies(fixture, hopper());
    let families = ["gemm_whole_bf16", "gemm_sm90_bf16"];
    let is_bf16 =
        |name: &str| name.starts_with("gemm_few_bf16") || families.iter().any(|it| name.starts_with(it));
    assert!(gemms.iter().all(|name| is_bf16(name)), "{gemms:?}");
    for family in families {
        assert!(gemms.iter().any(|name| name.starts_with(family)), "no {family} in {gemms:?}");
    }
}

#[test]
fn llama_with_grouped_queries_and_scaled_frequencies() {
    verifies("llama-gqa-rope3", gpu());
}

#[test]
fn qwen2_with_biases() {
    verifies("qwen2-bias", gpu());
}

#[test]
fn qwen3_with_query_and_key_norms() {
    verifies("qwen3-qknorm", gpu());
}

#[test]
fn mistral_with_a_window() {
    verifies("mistral-window16", gpu());
}

#[test]
fn gpt2_with_learned_positions() {
    verifies("gpt2", gpu());
}

#[test]
fn gpt2_on_hopper() {
    verifies_on_hopper("gpt2");
}

#[test]
fn bert_without_a_causal_mask() {
    verifies("bert", gpu());
}

#[test]
fn bert_on_hopper() {
    let gemms = verifies("bert", hopper());
    assert!(gemms.iter().all(|name| name.contains("sm90_bf16")), "{gemms:?}");
}

#[test]
fn a_text_has_the_bits_it_has_alone() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/bert");
    for device in [gpu(), hopper()] {
        let embedder = Embedder::load_on(&dir, Arc::new(device)).expect("the fixture loads");
        let texts: [&[u32]; 3] = [&[2, 9, 3], &[7; 65], &[2, 5, 6, 7, 8, 3]];
        let embed =
            |texts: &[&[u32]]| embedder.embed_ids(texts, &EmbedOptions::default()).expect("vectors").vectors;
        let together = embed(&texts);
        for (text, vector) in texts.iter().zip(&together) {
            assert_eq!(bits(&embed(&[text])[0]), bits(vector), "{} tokens", text.len());
        }
    }
}

/// The fixture's weights as four heads of 32 elements, which no kernel takes, instead of two of 64.
#[test]
fn heads_of_other_sizes_are_filled_up() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/bert");
    let dir = std::env::temp_dir().join(format!("tilewright-heads-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder");
    std::fs::copy(from.join("model.safetensors"), dir.join("model.safetensors")).expect("copied");
    let config = std::fs::read_to_string(from.join("config.json")).expect("read");
    let heads = config.replace("\"num_attention_heads\": 2", "\"num_attention_heads\": 4");
    assert_ne!(heads, config);
    std::fs::write(dir.join("config.json"), heads).expect("written");
    let ids: Vec<u32> = (0..50).map(|i| i * 11 % 192).collect();
    let states = |embedder: tilewright::Result<Embedder>| {
        embedder.expect("a checkpoint").hidden_states(&ids, None).expect("outputs")
    };
    let expected = states(Embedder::load(&dir, DeviceChoice::Cpu));
    let plain = states(Embedder::load(&dir, DeviceChoice::CpuBf16));
    let found = states(Embedder::load_on(&dir, Arc::new(gpu())));
    let of_two_heads = states(Embedder::load(&from, DeviceChoice::Cpu));
    std::fs::remove_dir_all(&dir).expect("removed");
    let worst = |values: &[f32]| {
        let differences = values.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        differences.fold(0.0f32, |worst, x| worst.max(if x.is_nan() { f32::INFINITY } else { x }))
    };
    let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let bound = 2.0 * worst(&plain) + 1e-3 * largest;
    assert!(worst(&found) <= bound && bound < 0.1 * largest, "{} {bound} {largest}", worst(&found));
    assert!(worst(&of_two_heads) > bound, "the heads make no difference");
}

#[test]
fn vit_of_patches() {
    verifies("vit", gpu());
}

#[test]
fn vit_on_hopper() {
    let gemms = verifies("vit", hopper());
    // Ten classes are no multiple of eight.
    assert!(gemms.iter().any(|name| name.contains("sm90_bf16")), "{gemms:?}");
}

#[test]
fn llama_on_hopper() {
    verifies_on_hopper("llama-gqa-rope3");
}

#[test]
fn mistral_with_a_window_on_hopper() {
    verifies_on_hopper("mistral-window16");
}

#[test]
fn qwen2_with_biases_on_hopper() {
    verifies_on_hopper("qwen2-bias");
}

#[test]
fn llama_quantised_by_gptq_on_hopper() {
    let gemms = verifies("llama-gptq-g128", hopper());
    // The head is bf16, the layers are not.
    for family in ["gemm_whole_half_int4_g128", "gemm_whole_chain_int4_g128", "gemm_sm90_bf16"] {
        assert!(gemms.iter().any(|name| name.starts_with(family)), "no {family} in {gemms:?}");
    }
}

#[test]
fn llama_quantised_by_gptq_in_act_order_on_hopper() {
    let gemms = verifies("llama-gptq-actorder-g64", hopper());
    // The head is bf16, the layers are not.
    for family in ["gemm_whole_half_int4_g64", "gemm_sm90_bf16"] {
        assert!(gemms.iter().any(|name| name.starts_with(family)), "no {family} in {gemms:?}");
    }
}

#[test]
fn llama_quantised_by_gptq() {
    verifies("llama-gptq-g128", gpu());
}

#[test]
fn llama_quantised_by_gptq_in_act_order() {
    verifies("llama-gptq-actorder-g64", gpu());
}

/// Activations are rounded to eight bits on both devices, of a stream that one of them rounds to bf16 besides.
#[test]
fn llama_in_eight_bits_on_hopper() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama-gqa-rope3");
    let dir = tempfile::tempdir().expect("a folder");
    let options = QuantiseOptions { method: Method::Int8, bits: 8, ..QuantiseOptions::default() };
    quantise(&from, dir.path(), &options, &mut |_, _| {}).expect("quantised");
    let ids: Vec<u32> = (0..40).map(|i| i * 11 % 192).collect();
    let logits = |model: &Model| {
        let (mut sequence, mut all) = (model.sequence(64).expect("a sequence"), Vec::new());
        sequence.feed_all(&ids, &mut |_, row| all.extend_from_slice(row)).expect("logits");
        sequence.feed(&ids[..1]).expect("a token");
        let next = sequence.choose(&SamplingParams::default(), 0).expect("a choice");
        (all, next)
    };
    let device = Arc::new(hopper());
    let model = Model::load_on(dir.path(), device.clone()).expect("a model");
    // Loading multiplies once by each kind of matrix.
    device.driver().take_launched();
    let (found, next) = logits(&model);
    let (expected, expected_next) = logits(&Model::load(dir.path(), DeviceChoice::Cpu).expect("a model"));
    let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let worst = found.iter().zip(&expected).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
    println!("worst difference {worst:.3e} of {largest:.3e}");
    assert!(found.iter().all(|x| x.is_finite()) && worst <= 0.03 * largest, "{worst} of {largest}");
    assert_eq!(next, expected_next);
    let launched = device.driver().take_launched();
    let count = |name: &str| launched.iter().filter(|it| it.kernel.starts_with(name)).count();
    // Of two layers each, once of the prompt and once of the token: two norms, and two products that no norm comes before.
    assert_eq!([count("rms_norm_int8"), count("quantize_rows")], [8, 8]);
    assert_eq!([count("gemm_few_int8"), count("gemm_sm90_int8")], [8, 8]);
}
