use std::sync::Arc;

use tilewright_host::{Batch, CacheSpec, Device, KvDType};

use super::batch::{Images, PAGE_TOKENS, TextBatches};
use crate::Result;
use crate::config::{EncoderConfig, EncoderInput};
use crate::model::{Activations, Layer, Norm, Pass, Selected, Widths};

/// An encoder's weights on a device.
pub(crate) struct Encoder<D: Device> {
    pub(super) device: Arc<D>,
    pub(super) config: EncoderConfig,
    /// Elements a head, filled up with zeros to what the device takes.
    pub(super) head_dim: usize,
    pub(super) input: Input<D>,
    pub(super) layers: Vec<Layer<D>>,
    /// Of the last layer's outputs, where norms come first.
    pub(super) norm: Option<Norm<D>>,
    /// BERT's pooler or ViT's classifier.
    pub(super) head: Option<Head<D>>,
    /// Rotates nothing.
    pub(super) rope: D::Rope,
}

/// What makes a residual stream of the input.
pub(super) enum Input<D: Device> {
    /// BERT: a token's row and its place's, normed. A place is a position of a type of token: row `type * context + position`.
    Tokens { table: D::Matrix, places: D::Matrix, norm: Norm<D> },
    /// ViT: a place's row, to which a patch's projection is added. The class token's row is in its place's; its patch is zeros. The
    /// projection's bias is in the places.
    Patches { places: D::Matrix, projection: D::Matrix, unfolded: usize },
}

/// A linear layer on the first token of each sequence.
pub(super) struct Head<D: Device> {
    pub weight: D::Matrix,
    pub bias: Vec<f32>,
}

/// Which outputs of a text are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Those of every token.
    All,
    /// That of the first.
    First,
    /// That of the first, through the pooler.
    Pooled,
}

/// An encoder on some device.
pub(crate) trait AnyEncoder: Send + Sync {
    /// The outputs of each text, `[tokens or 1, hidden]`. Each text's ids, and its tokens' types where they aren't all 0; checked.
    fn texts(&self, texts: &[(&[u32], Option<&[u32]>)], want: Want) -> Result<Vec<Vec<f32>>>;
    /// The logits of each image, `[channels, image_size, image_size]`; checked.
    fn images(&self, pixels: &[&[f32]]) -> Result<Vec<Vec<f32>>>;
    /// Whether there is a pooler.
    fn pools(&self) -> bool;
    fn describe(&self) -> String;
}

impl<D: Device> AnyEncoder for Encoder<D> {
    fn texts(&self, texts: &[(&[u32], Option<&[u32]>)], want: Want) -> Result<Vec<Vec<f32>>> {
        let hidden = self.config.hidden_size;
        let mut outputs = Vec::with_capacity(texts.len());
        for (batch, lens) in TextBatches::new(texts, self.config.context(), want) {
            let head = if want == Want::Pooled { self.head.as_ref() } else { None };
            let mut values = self.forward(&batch, None, head)?;
            if head.is_some() {
                values.iter_mut().for_each(|value| *value = value.tanh());
            }
            let mut rest = &values[..];
            for len in lens {
                let (text, after) = rest.split_at(len * hidden);
                outputs.push(text.to_vec());
                rest = after;
            }
        }
        Ok(outputs)
    }

    fn images(&self, pixels: &[&[f32]]) -> Result<Vec<Vec<f32>>> {
        let (EncoderInput::Vit { channels, image_size, patch_size, .. }, Input::Patches { unfolded, .. }) =
            (&self.config.input, &self.input)
        else {
            return Ok(Vec::new());
        };
        let images = Images { shape: [*channels, *image_size, *patch_size], unfolded: *unfolded };
        let mut logits = Vec::with_capacity(pixels.len());
        for chunk in pixels.chunks(images.at_once()) {
            let values =
                self.forward(&images.batch(chunk.len()), Some(&images.unfold(chunk)), self.head.as_ref())?;
            logits.extend(values.chunks_exact(values.len() / chunk.len()).map(<[f32]>::to_vec));
        }
        Ok(logits)
    }

    fn pools(&self) -> bool {
        self.head.is_some()
    }

    fn describe(&self) -> String {
        self.device.describe()
    }
}

impl<D: Device> Encoder<D> {
    /// The outputs that `batch` wants, row by row, through `head` where there is one.
    fn forward(&self, batch: &Batch, patches: Option<&[f32]>, head: Option<&Head<D>>) -> Result<Vec<f32>> {
        let (device, config) = (&*self.device, &self.config);
        let step = &device.step(batch)?;
        let mut activations = self.embed(batch.tokens(), step, patches)?;
        // Every layer's keys are read by that layer alone.
        let mut cache = device.cache(CacheSpec {
            layers: 1,
            pages: batch.spans.iter().map(|span| span.pages.len()).sum(),
            page_size: PAGE_TOKENS,
            kv_heads: config.heads,
            head_dim: self.head_dim,
            dtype: KvDType::Native,
        })?;
        let outputs = batch.outputs.len();
        let mut selected = Selected::new(device, self.widths(), outputs)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let pass = Pass { device, rope: &self.rope, step, cache_layer: 0 };
            if index + 1 < self.layers.len() {
                layer.forward(&pass, &mut cache, &mut activations)?;
            } else {
                layer.forward_selected(outputs, &pass, &mut cache, &mut activations, &mut selected)?;
            }
        }
        let mut selected = selected.residual;
        if let Some(norm) = &self.norm {
            let mut normed = device.tensor(outputs, config.hidden_size)?;
            norm.apply(device, &selected, &mut normed)?;
            selected = normed;
        }
        let Some(head) = head else { return Ok(device.read(&selected)?) };
        let mut logits = device.logits(outputs, head.bias.len())?;
        device.project_logits(&selected, &head.weight, &mut logits)?;
        let mut values = device.read_logits(&logits)?;
        for row in values.chunks_exact_mut(head.bias.len()) {
            row.iter_mut().zip(&head.bias).for_each(|(value, bias)| *value += bias);
        }
        Ok(values)
    }

    fn widths(&self) -> Widths {
        let config = &self.config;
        Widths {
            hidden: config.hidden_size,
            qkv: 3 * config.heads * self.head_dim,
            q: config.heads * self.head_dim,
            gate_up: config.activation.columns(config.intermediate_size),
            intermediate: config.intermediate_size,
        }
    }

    /// Activations for `rows` tokens, the residual stream filled in.
    fn embed(&self, rows: usize, step: &D::Step, patches: Option<&[f32]>) -> Result<Activations<D>> {
        let device = &*self.device;
        let mut activations = Activations::new(device, self.widths(), rows)?;
        match &self.input {
            Input::Tokens { table, places, norm } => {
                device.embed_sum(table, places, step, &mut activations.residual)?;
                activations.norm_residual(device, norm)?;
            }
            Input::Patches { places, projection, unfolded } => {
                device.embed(places, step, &mut activations.residual)?;
                let mut x = device.tensor(rows, *unfolded)?;
                device.write(patches.unwrap_or_default(), &mut x)?;
                device.linear_residual(&x, projection, None, &mut activations.residual)?;
            }
        }
        Ok(activations)
    }
}
