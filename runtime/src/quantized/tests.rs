//! Damage to quantised checkpoints: one line that names the file, the tensor, what was expected and what was found.

use std::collections::BTreeMap;
use std::path::PathBuf;

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{DeviceChoice, Model};

const DOWN: &str = "model.layers.1.mlp.down_proj";
const Q: &str = "model.layers.0.self_attn.q_proj";

/// A fixture in memory.
struct Fixture {
    config: Value,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Fixture {
    fn new(name: &str) -> Fixture {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
        let bytes = std::fs::read(dir.join("model.safetensors")).expect("read");
        let tensors = SafeTensors::deserialize(&bytes)
            .expect("safetensors")
            .iter()
            .map(|(name, view)| {
                (name.to_string(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
            })
            .collect();
        let config = std::fs::read(dir.join("config.json")).expect("read");
        Fixture { config: serde_json::from_slice(&config).expect("JSON"), tensors }
    }

    fn tensor(&mut self, layer: &str, name: &str) -> &mut (Dtype, Vec<usize>, Vec<u8>) {
        self.tensors.get_mut(&format!("{layer}.{name}")).expect("a tensor")
    }

    fn add(&mut self, name: String, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) {
        self.tensors.insert(name, (dtype, shape.to_vec(), bytes));
    }

    fn set_word(&mut self, layer: &str, name: &str, index: usize, word: i32) {
        self.tensor(layer, name).2[4 * index..][..4].copy_from_slice(&word.to_le_bytes());
    }

    fn quantization(&mut self, field: &str, value: Value) {
        self.config["quantization_config"][field] = value;
    }

    fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let tensors = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).expect("a view"))
        });
        let bytes = safetensors::serialize(tensors, None).expect("serialised");
        std::fs::write(dir.path().join("model.safetensors"), bytes).expect("written");
        std::fs::write(dir.path().join("config.json"), self.config.to_string()).expect("written");
        dir
    }

    fn load(&self) -> Result<Model, String> {
        Model::load(self.write().path(), DeviceChoice::Cpu).map_err(|error| error.to_string())
    }
}

/// That a fixture damaged by `damage` is refused with all of `parts` in one line.
#[track_caller]
fn refused(name: &str, damage: impl FnOnce(&mut Fixture), parts: &[&str]) {
    let mut fixture = Fixture::new(name);
    damage(&mut fixture);
    let Err(message) = fixture.load() else { panic!("loaded; expected {parts:?}") };
    assert!(!message.contains('\n'), "{message}");
    for part in parts {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
}

#[test]
fn groups_that_cannot_be_are_refused() {
    let actorder = "llama-gptq-actorder-g64";
    let file = "model.safetensors: tensor model.layers.1.mlp.down_proj.g_idx: expected ";
    refused(
        actorder,
        |f| f.set_word(DOWN, "g_idx", 7, 4),
        &[file, "groups from 0 to 3, found 4 of column 7"],
    );
    refused(
        actorder,
        |f| f.set_word(DOWN, "g_idx", 0, -1),
        &[file, "groups from 0 to 3, found -1 of column 0"],
    );
    let all_in_the_first = |f: &mut Fixture| f.tensor(DOWN, "g_idx").2.fill(0);
    refused(actorder, all_in_the_first, &[file, "64 columns in group 0, found 256"]);
    let shape = |f: &mut Fixture| f.tensor(DOWN, "g_idx").1 = vec![2, 128];
    refused(actorder, shape, &[file, "shape [256], found [2, 128]"]);
    let config =
        "config.json: field quantization_config.group_size: expected -1 or an integer from 1, found 0";
    refused(actorder, |f| f.quantization("group_size", json!(0)), &[config]);
    let scales = "tensor model.layers.0.self_attn.q_proj.qzeros: expected shape [4, 16], found [2, 16]";
    refused(actorder, |f| f.quantization("group_size", json!(32)), &[scales]);
}

#[test]
fn bits_that_do_not_match_the_packing_are_refused() {
    let g128 = "llama-gptq-g128";
    let parts = ["tensor model.layers.0.self_attn.q_proj.qweight: expected shape [32, 128], found [16, 128]"];
    refused(g128, |f| f.quantization("bits", json!(8)), &parts);
    let types = |f: &mut Fixture| f.tensor(Q, "qweight").0 = Dtype::U32;
    refused(g128, types, &["q_proj.qweight: expected dtype I32, found U32"]);
    let narrow = |f: &mut Fixture| f.tensor(Q, "qzeros").1 = vec![2, 8];
    refused(g128, narrow, &["q_proj.qzeros: expected shape [1, 16], found [2, 8]"]);
    let narrower = |f: &mut Fixture| f.config["intermediate_size"] = json!(252);
    refused(g128, narrower, &["gate_proj.qweight: expected shape [16, 252], found [16, 256]"]);
}

#[test]
fn scales_must_be_finite_numbers() {
    for (value, found) in [(f16::NAN, "NaN"), (f16::INFINITY, "inf"), (f16::NEG_INFINITY, "-inf")] {
        let damage =
            |f: &mut Fixture| f.tensor(DOWN, "scales").2[10..12].copy_from_slice(&value.to_le_bytes());
        let expected = format!("down_proj.scales: expected finite scales, found {found} at element 5");
        refused("llama-gptq-g128", damage, &["model.safetensors: tensor", &expected]);
    }
    let types = |f: &mut Fixture| f.tensor(DOWN, "scales").0 = Dtype::I16;
    refused("llama-gptq-g128", types, &["down_proj.scales: expected dtype BF16, F16 or F32, found I16"]);
}

#[test]
fn every_tensor_is_there_and_used() {
    let g128 = "llama-gptq-g128";
    for name in ["qweight", "qzeros", "scales"] {
        let damage = |f: &mut Fixture| drop(f.tensors.remove(&format!("{DOWN}.{name}")));
        refused(
            g128,
            damage,
            &["model.safetensors: tensor model.layers.1.mlp.down_proj.", "expected a tensor, found none"],
        );
    }
    let both = |f: &mut Fixture| f.add(format!("{Q}.weight"), Dtype::BF16, &[1], vec![0; 2]);
    refused(g128, both, &["q_proj.weight: expected no tensor of this name in this model, found BF16 [1]"]);
    let scale = |f: &mut Fixture| f.add(format!("{Q}.input_scale"), Dtype::F32, &[1], vec![0; 4]);
    refused(g128, scale, &["q_proj.input_scale: expected no tensor of this name"]);
    let bias = |f: &mut Fixture| f.add(format!("{Q}.bias"), Dtype::F16, &[128], vec![60; 256]);
    refused(g128, bias, &["q_proj.bias: expected no tensor of this name"]);
    // Without an order of columns they are in order, and a bias of zeros is none.
    let mut fixture = Fixture::new(g128);
    for layer in [DOWN, Q] {
        fixture.tensors.remove(&format!("{layer}.g_idx"));
    }
    fixture.add(format!("{Q}.bias"), Dtype::F16, &[128], vec![0; 256]);
    assert!(fixture.load().is_ok());
    // Unquantised files that say they aren't.
    let plain =
        |f: &mut Fixture| drop(f.config.as_object_mut().expect("an object").remove("quantization_config"));
    refused(g128, plain, &["tensor model.layers.0.self_attn.q_proj.weight: expected a tensor, found none"]);
}

#[test]
fn zero_points_are_held_against_the_convention() {
    let field =
        "config.json: field quantization_config.checkpoint_format: expected gptq, by which weights average";
    let version = |f: &mut Fixture| f.quantization("checkpoint_format", json!("gptq_v2"));
    refused("llama-gptq-g128", version, &[field, "found gptq_v2, by which they average 0.99"]);
    // The same values stored as they are, but said to be stored less one.
    let shifted = |f: &mut Fixture| {
        for (_, (_, _, bytes)) in f.tensors.iter_mut().filter(|(name, _)| name.ends_with("qzeros")) {
            bytes.iter_mut().for_each(|byte| {
                *byte = (*byte & 0x0f).wrapping_add(1) & 0x0f | (*byte >> 4).wrapping_add(1) << 4
            });
        }
    };
    let field = "quantization_config.checkpoint_format: expected gptq_v2, by which";
    refused("llama-gptq-g128", shifted, &[field, "found gptq, by which they average -"]);
    let mut fixture = Fixture::new("llama-gptq-g128");
    shifted(&mut fixture);
    fixture.quantization("checkpoint_format", json!("gptq_v2"));
    assert!(fixture.load().is_ok());
    // A symmetric file has one zero point.
    let symmetric = |f: &mut Fixture| f.quantization("sym", json!(true));
    refused(
        "llama-gptq-g128",
        symmetric,
        &["q_proj.qzeros: expected zero points of 7, as the file is symmetric"],
    );
}

#[test]
fn factors_of_activations_scale_the_weights() {
    // Halving the activations and doubling the scales changes nothing.
    let name = "model.layers.0.mlp.gate_proj";
    let ids: Vec<u32> = (0..20).collect();
    let logits = |fixture: &Fixture| {
        let model = fixture.load().expect("loaded");
        let mut all = Vec::new();
        let mut sequence = model.sequence(20).expect("a sequence");
        sequence.feed_all(&ids, &mut |_, row| all.extend_from_slice(row)).expect("fed");
        all
    };
    let mut fixture = Fixture::new("llama-gptq-actorder-g64");
    let plain = logits(&fixture);
    for bytes in fixture.tensor(name, "scales").2.as_chunks_mut::<2>().0 {
        *bytes = (f16::from_le_bytes(*bytes) * f16::from_f32(2.0)).to_le_bytes();
    }
    assert_ne!(logits(&fixture), plain);
    let halves = [0.5_f32.to_le_bytes(); 128].concat();
    fixture.add(format!("{name}.pre_quant_scale"), Dtype::F32, &[128], halves);
    assert_eq!(logits(&fixture), plain);
}
