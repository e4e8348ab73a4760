use std::path::Path;
use std::sync::Arc;

use tilewright_host::{AttentionSpec, DType, Device, HostMatrix};

use super::forward::{AnyEncoder, Encoder, Head, Input};
use crate::checkpoint::Checkpoint;
use crate::config::{EncoderConfig, EncoderInput, NormKind};
use crate::device::{DeviceJob, on_device, why_no_gpu};
use crate::model::{Layer, NormPlace, Tensors};
use crate::{DeviceChoice, Error, Result};

/// Columns of a matrix are a multiple of this on every device.
const COLUMNS: usize = 8;

/// An encoder on the device chosen for it.
pub(crate) struct LoadedEncoder {
    pub config: EncoderConfig,
    pub encoder: Arc<dyn AnyEncoder>,
    /// Whether the device keeps activations in f32.
    pub computes_in_f32: bool,
    /// As [`crate::Embedder::no_gpu`].
    pub no_gpu: Option<String>,
}

struct Load<'a> {
    config: &'a EncoderConfig,
    checkpoint: &'a Checkpoint,
}

impl DeviceJob for Load<'_> {
    type Output = (Arc<dyn AnyEncoder>, bool);

    fn run<D: Device>(self, device: Arc<D>, in_f32: bool) -> Result<Self::Output> {
        Ok((Arc::new(Encoder::load(device, self.config.clone(), self.checkpoint)?), in_f32))
    }
}

/// Loads the encoder in `dir` onto the device chosen.
pub(crate) fn load(dir: &Path, choice: DeviceChoice) -> Result<LoadedEncoder> {
    std::fs::read_dir(dir).map_err(Error::io(dir))?;
    let (config, checkpoint) = (EncoderConfig::load(dir)?, Checkpoint::open(dir)?);
    let (encoder, computes_in_f32) = on_device(choice, Load { config: &config, checkpoint: &checkpoint })?;
    Ok(LoadedEncoder { config, encoder, computes_in_f32, no_gpu: why_no_gpu(choice) })
}

/// Loads the encoder in `dir` onto a device that rounds activations to bf16.
pub(crate) fn load_on<D: Device>(dir: &Path, device: Arc<D>) -> Result<LoadedEncoder> {
    std::fs::read_dir(dir).map_err(Error::io(dir))?;
    let (config, checkpoint) = (EncoderConfig::load(dir)?, Checkpoint::open(dir)?);
    let (encoder, _) = Load { config: &config, checkpoint: &checkpoint }.run(device, false)?;
    Ok(LoadedEncoder { config, encoder, computes_in_f32: false, no_gpu: None })
}

impl<D: Device> Encoder<D> {
    fn load(device: Arc<D>, config: EncoderConfig, checkpoint: &Checkpoint) -> Result<Encoder<D>> {
        let mut tensors = Tensors::new(&*device, checkpoint, None);
        let (input, norm, head, names) = match &config.input {
            EncoderInput::Bert { .. } => bert(&mut tensors, &config)?,
            EncoderInput::Vit { .. } => vit(&mut tensors, &config)?,
        };
        let layers = (0..config.layers)
            .map(|index| layer(&mut tensors, &config, &names, index))
            .collect::<Result<Vec<_>>>()?;
        // Buffers, and the heads of pretraining, which nothing here asks for.
        tensors.finish(|name| name.ends_with("embeddings.position_ids") || name.starts_with("cls."))?;
        // Heads of which every element is turned by no angle.
        let head_dim = device.padded_head_dim(config.head_dim);
        let rope = device.rope(&vec![0.0; head_dim / 2], 1.0, config.places())?;
        Ok(Encoder { head_dim, input, layers, norm, head, rope, config, device })
    }
}

/// What a family calls the parts of a layer.
struct Names {
    layers: String,
    attention: &'static str,
    input_norm: &'static str,
    post_norm: &'static str,
    norms: NormPlace,
}

type Parts<D> = (Input<D>, Option<crate::model::Norm<D>>, Option<Head<D>>, Names);

fn layer<D: Device>(
    tensors: &mut Tensors<'_, D>,
    config: &EncoderConfig,
    names: &Names,
    index: usize,
) -> Result<Layer<D>> {
    let (hidden, inter, eps) = (config.hidden_size, config.intermediate_size, config.norm_eps);
    let name = |part: &str| format!("{}.{index}.{part}", names.layers);
    let qkv = |kind: &str| {
        ["query", "key", "value"].map(|part| (name(&format!("{}.{part}.{kind}", names.attention)), hidden))
    };
    let weight = |part: &str, rows: usize| [(name(&format!("{part}.weight")), rows)];
    let bias = |part: &str, rows: usize| [(name(&format!("{part}.bias")), rows)];
    let heads =
        Heads { hidden, given: config.head_dim, taken: tensors.device.padded_head_dim(config.head_dim) };
    Ok(Layer {
        input_norm: norm(tensors, &name(names.input_norm), hidden, eps)?,
        qkv: heads.qkv(tensors, &qkv("weight"))?,
        qkv_bias: Some(heads.qkv_bias(tensors, &qkv("bias"))?),
        qk_norm: None,
        output: heads.output(tensors, &name("attention.output.dense.weight"))?,
        output_bias: Some(tensors.vector(&bias("attention.output.dense", hidden))?),
        post_norm: norm(tensors, &name(names.post_norm), hidden, eps)?,
        gate_up: tensors.matrix(&weight("intermediate.dense", inter), hidden)?,
        gate_up_bias: Some(tensors.vector(&bias("intermediate.dense", inter))?),
        activation: config.activation,
        down: tensors.matrix(&weight("output.dense", hidden), inter)?,
        down_bias: Some(tensors.vector(&bias("output.dense", hidden))?),
        attention: AttentionSpec {
            q_heads: config.heads,
            scale: (config.head_dim as f32).sqrt().recip(),
            causal: false,
            window: None,
            softcap: None,
        },
        norms: names.norms,
    })
}

/// Heads of `given` elements, filled up with zeros to those that the device takes. A score is a sum over a head's elements, so zeros in
/// queries and keys leave it as it was; zeros in values make outputs that nothing is multiplied with.
struct Heads {
    hidden: usize,
    given: usize,
    taken: usize,
}

impl Heads {
    /// Query, key and value, `[3 * heads * taken, hidden]`.
    fn qkv<D: Device>(&self, tensors: &mut Tensors<'_, D>, parts: &[(String, usize)]) -> Result<D::Matrix> {
        if self.given == self.taken {
            return tensors.matrix(parts, self.hidden);
        }
        let mut values = Vec::new();
        for (name, rows) in parts {
            values.extend(tensors.floats(name, &[*rows, self.hidden])?);
        }
        of_floats(tensors.device, &self.fill(&values, self.hidden), self.hidden)
    }

    fn qkv_bias<D: Device>(
        &self,
        tensors: &mut Tensors<'_, D>,
        parts: &[(String, usize)],
    ) -> Result<D::Vector> {
        let mut values = Vec::new();
        for (name, len) in parts {
            values.extend(tensors.floats(name, &[*len])?);
        }
        Ok(tensors.device.vector(&self.fill(&values, 1))?)
    }

    /// The projection of all heads' outputs, `[hidden, heads * taken]`.
    fn output<D: Device>(&self, tensors: &mut Tensors<'_, D>, name: &str) -> Result<D::Matrix> {
        if self.given == self.taken {
            return tensors.matrix(&[(name, self.hidden)], self.hidden);
        }
        let values = tensors.floats(name, &[self.hidden, self.hidden])?;
        of_floats(tensors.device, &self.fill(&values, 1), self.hidden / self.given * self.taken)
    }

    /// Zeros behind the elements of each head, of `width` numbers each.
    fn fill(&self, values: &[f32], width: usize) -> Vec<f32> {
        let mut filled = Vec::with_capacity(values.len() / self.given * self.taken);
        for head in values.chunks_exact(self.given * width) {
            filled.extend_from_slice(head);
            filled.resize(filled.len() + (self.taken - self.given) * width, 0.0);
        }
        filled
    }
}

/// A layer norm; the first checkpoints of BERT call its weight and bias gamma and beta.
fn norm<D: Device>(
    tensors: &mut Tensors<'_, D>,
    stem: &str,
    len: usize,
    eps: f32,
) -> Result<crate::model::Norm<D>> {
    if !tensors.checkpoint.contains(&format!("{stem}.gamma")) {
        return tensors.norm(NormKind::Layer, stem, len, eps);
    }
    let weight = tensors.vector(&[(format!("{stem}.gamma"), len)])?;
    Ok(crate::model::Norm::Layer { weight, bias: tensors.vector(&[(format!("{stem}.beta"), len)])?, eps })
}

fn bert<D: Device>(tensors: &mut Tensors<'_, D>, config: &EncoderConfig) -> Result<Parts<D>> {
    let EncoderInput::Bert { vocab_size, context, token_types } = config.input else {
        return Err(Error::request("encoder", "a BERT", "another"));
    };
    let hidden = config.hidden_size;
    let known = tensors.checkpoint.contains("bert.embeddings.word_embeddings.weight");
    let prefix = if known { "bert." } else { "" };
    let embedding = |part: &str| format!("{prefix}embeddings.{part}");
    let positions = tensors.floats(&embedding("position_embeddings.weight"), &[context, hidden])?;
    let types = tensors.floats(&embedding("token_type_embeddings.weight"), &[token_types, hidden])?;
    // A table of both, so that a token takes one row: positions of type 0, of type 1, and so on.
    let mut places = Vec::with_capacity(config.places() * hidden);
    for kind in types.chunks_exact(hidden) {
        for position in positions.chunks_exact(hidden) {
            places.extend(position.iter().zip(kind).map(|(position, kind)| position + kind));
        }
    }
    let table = [(embedding("word_embeddings.weight"), vocab_size)];
    let input = Input::Tokens {
        table: tensors.matrix(&table, hidden)?,
        places: of_floats(tensors.device, &places, hidden)?,
        norm: norm(tensors, &embedding("LayerNorm"), hidden, config.norm_eps)?,
    };
    let pooler = format!("{prefix}pooler.dense");
    let head = match tensors.checkpoint.contains(&format!("{pooler}.weight")) {
        true => Some(head(tensors, &pooler, hidden, hidden)?),
        false => None,
    };
    let names = Names {
        layers: format!("{prefix}encoder.layer"),
        attention: "attention.self",
        input_norm: "attention.output.LayerNorm",
        post_norm: "output.LayerNorm",
        norms: NormPlace::After,
    };
    Ok((input, None, head, names))
}

fn vit<D: Device>(tensors: &mut Tensors<'_, D>, config: &EncoderConfig) -> Result<Parts<D>> {
    let EncoderInput::Vit { channels, patch_size, labels, .. } = &config.input else {
        return Err(Error::request("encoder", "a ViT", "another"));
    };
    let (hidden, patch_elems) = (config.hidden_size, channels * patch_size * patch_size);
    let embedding = |part: &str| format!("vit.embeddings.{part}");
    let mut places = tensors.floats(&embedding("position_embeddings"), &[1, config.places(), hidden])?;
    let class = tensors.floats(&embedding("cls_token"), &[1, 1, hidden])?;
    let projection = embedding("patch_embeddings.projection.weight");
    let weights = tensors.floats(&projection, &[hidden, *channels, *patch_size, *patch_size])?;
    let bias = tensors.floats(&embedding("patch_embeddings.projection.bias"), &[hidden])?;
    // What is the same in every image: the class token itself, the projection's bias of patches.
    for (place, row) in places.chunks_exact_mut(hidden).enumerate() {
        let constant = if place == 0 { &class } else { &bias };
        row.iter_mut().zip(constant).for_each(|(sum, constant)| *sum += constant);
    }
    let unfolded = patch_elems.next_multiple_of(COLUMNS);
    let mut padded = Vec::with_capacity(hidden * unfolded);
    for row in weights.chunks_exact(patch_elems) {
        padded.extend_from_slice(row);
        padded.resize(padded.len().next_multiple_of(unfolded), 0.0);
    }
    let input = Input::Patches {
        places: of_floats(tensors.device, &places, hidden)?,
        projection: of_floats(tensors.device, &padded, unfolded)?,
        unfolded,
    };
    let last = norm(tensors, "vit.layernorm", hidden, config.norm_eps)?;
    let classifier = head(tensors, "classifier", labels.len(), hidden)?;
    let names = Names {
        layers: "vit.encoder.layer".to_string(),
        attention: "attention.attention",
        input_norm: "layernorm_before",
        post_norm: "layernorm_after",
        norms: NormPlace::Before,
    };
    Ok((input, Some(last), Some(classifier), names))
}

fn head<D: Device>(tensors: &mut Tensors<'_, D>, stem: &str, rows: usize, cols: usize) -> Result<Head<D>> {
    let weight = tensors.matrix(&[(format!("{stem}.weight"), rows)], cols)?;
    Ok(Head { weight, bias: tensors.floats(&format!("{stem}.bias"), &[rows])? })
}

/// A matrix of rows of `cols` floats.
fn of_floats<D: Device>(device: &D, values: &[f32], cols: usize) -> Result<D::Matrix> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Ok(device.matrix(&HostMatrix { parts: vec![(values.len() / cols, &bytes)], cols, dtype: DType::F32 })?)
}
