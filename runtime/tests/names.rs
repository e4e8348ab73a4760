//! Checkpoints whose tensors have the names of older releases: the same answers, bit for bit.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, View};
use tilewright::{DeviceChoice, EmbedOptions, Embedder, Model, Pooling, Result};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// A tensor in memory.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A copy of a fixture with other names, and with tensors of zeros that older releases carry.
fn renamed(name: &str, rename: impl Fn(&str) -> String, extra: &[(&str, &[usize])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::copy(fixture(name).join("config.json"), dir.path().join("config.json")).expect("copied");
    let bytes = std::fs::read(fixture(name).join("model.safetensors")).expect("read");
    let tensors = SafeTensors::deserialize(&bytes).expect("a checkpoint");
    let mut stored: Vec<(String, Stored)> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let (dtype, shape, bytes) = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            (rename(&name), Stored { dtype, shape, bytes })
        })
        .collect();
    for (name, shape) in extra {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        stored.push((name.to_string(), Stored { dtype: Dtype::F32, shape: shape.to_vec(), bytes }));
    }
    let file = safetensors::serialize(stored, None).expect("a file");
    std::fs::write(dir.path().join("model.safetensors"), file).expect("written");
    dir
}

/// The logits of each position.
fn logits(dir: &Path) -> Result<Vec<f32>> {
    let model = Model::load(dir, DeviceChoice::Cpu)?;
    let mut all = Vec::new();
    model.sequence(8)?.feed_all(&[3, 5, 7, 11, 13], &mut |_, logits| all.extend_from_slice(logits))?;
    Ok(all)
}

fn vector(dir: &Path) -> Result<Vec<f32>> {
    let options = EmbedOptions { pooling: Some(Pooling::Pooler), ..EmbedOptions::default() };
    let embedder = Embedder::load(dir, DeviceChoice::Cpu)?;
    Ok(embedder.embed_ids(&[&[2, 9, 3]], &options)?.vectors.remove(0))
}

#[test]
fn gpt2_without_a_prefix_and_with_its_masks() {
    let plain = |name: &str| name.trim_start_matches("transformer.").to_string();
    let masks: &[(&str, &[usize])] = &[("h.0.attn.bias", &[1, 1, 4, 4]), ("h.1.attn.masked_bias", &[1])];
    let dir = renamed("gpt2", plain, masks);
    assert_eq!(logits(dir.path()).expect("logits"), logits(&fixture("gpt2")).expect("logits"));
    let odd = renamed("gpt2", plain, &[("h.0.attn.c_attn.scale", &[1])]);
    let refusal = logits(odd.path()).expect_err("a tensor is left over").to_string();
    assert!(refusal.contains("h.0.attn.c_attn.scale: expected no tensor of this name"), "{refusal}");
}

#[test]
fn bert_with_a_prefix_gammas_and_the_heads_of_pretraining() {
    let old = |name: &str| {
        let name =
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        format!("bert.{name}")
    };
    let extra: &[(&str, &[usize])] =
        &[("cls.predictions.bias", &[192]), ("bert.embeddings.position_ids", &[1, 128])];
    let dir = renamed("bert", old, extra);
    assert_eq!(vector(dir.path()).expect("a vector"), vector(&fixture("bert")).expect("a vector"));
    let missing = renamed("bert", |name| name.replace("layer.1.output.dense.bias", "x"), &[]);
    let refusal = vector(missing.path()).expect_err("a tensor is missing").to_string();
    assert!(refusal.contains("encoder.layer.1.output.dense.bias: expected a tensor"), "{refusal}");
}
