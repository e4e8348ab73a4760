use std::sync::Arc;

use tilewright_host::{Batch, Device, Pace};

use super::layer::{Activations, Layer, Pass, Selected, Widths};
use super::parts::Norm;
use crate::Result;
use crate::config::ModelConfig;

/// A decoder's weights on a device.
pub struct Decoder<D: Device> {
    pub(super) device: Arc<D>,
    pub(super) config: ModelConfig,
    pub(super) embedding: D::Matrix,
    /// Where positions are learned.
    pub(super) positions: Option<D::Matrix>,
    pub(super) layers: Vec<Layer<D>>,
    pub(super) norm: Norm<D>,
    /// Where it isn't the embedding table.
    pub(super) lm_head: Option<D::Matrix>,
    pub(super) rope: D::Rope,
}

/// Activations of one step, reused by all.
pub struct Scratch<D: Device> {
    pub(super) activations: Activations<D>,
    /// The rows whose logits are wanted.
    pub(super) selected: Selected<D>,
    pub(super) selected_normed: D::Tensor,
    /// Where [`Decoder::forward`] leaves them.
    pub logits: D::Logits,
    /// Of one cache.
    replays: D::Replays,
}

impl<D: Device> Decoder<D> {
    /// The device that holds the weights.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Activations for steps of up to `max_rows` tokens that want logits of up to `max_outputs` of them.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn scratch(&self, max_rows: usize, max_outputs: usize) -> Result<Scratch<D>> {
        let config = &self.config;
        let device = &*self.device;
        let widths = Widths {
            hidden: config.hidden_size,
            qkv: config.qkv_rows(),
            q: config.q_heads * config.head_dim,
            gate_up: config.activation.columns(config.intermediate_size),
            intermediate: config.intermediate_size,
        };
        Ok(Scratch {
            activations: Activations::new(device, widths, max_rows)?,
            selected: Selected::new(device, widths, max_outputs)?,
            selected_normed: device.tensor(max_outputs, config.hidden_size)?,
            logits: device.logits(max_outputs, config.vocab_size)?,
            replays: D::Replays::default(),
        })
    }

    /// Runs a step: appends its keys and values to the cache and leaves the logits that it wants in `scratch`. Whoever calls it has one
    /// cache for each scratch: steps like earlier ones may be done by what those left there.
    ///
    /// # Errors
    /// If the step doesn't fit scratch or cache, or the device fails.
    pub fn forward(&self, batch: &Batch, cache: &mut D::Cache, scratch: &mut Scratch<D>) -> Result<Pace> {
        let mut replays = std::mem::take(&mut scratch.replays);
        let wanted = batch.outputs.len();
        let done =
            self.device.run_step(batch, &mut replays, |step| self.compute(step, wanted, cache, scratch));
        scratch.replays = replays;
        let pace = done?;
        if wanted > 0 {
            self.device.set_logit_rows(&mut scratch.logits, wanted)?;
        }
        Ok(pace)
    }

    /// A step's operations; logits of `wanted` rows.
    fn compute(
        &self,
        step: &D::Step,
        wanted: usize,
        cache: &mut D::Cache,
        scratch: &mut Scratch<D>,
    ) -> Result<()> {
        let device = &*self.device;
        let activations = &mut scratch.activations;
        match &self.positions {
            None => device.embed(&self.embedding, step, &mut activations.residual)?,
            Some(places) => device.embed_sum(&self.embedding, places, step, &mut activations.residual)?,
        }
        for (cache_layer, layer) in self.layers.iter().enumerate() {
            let pass = Pass { device, rope: &self.rope, step, cache_layer };
            if cache_layer + 1 < self.layers.len() {
                layer.forward(&pass, cache, activations)?;
            } else {
                layer.forward_selected(wanted, &pass, cache, activations, &mut scratch.selected)?;
            }
        }
        if wanted == 0 {
            return Ok(());
        }
        self.norm.apply(device, &scratch.selected.residual, &mut scratch.selected_normed)?;
        let lm_head = self.lm_head.as_ref().unwrap_or(&self.embedding);
        device.project_logits(&scratch.selected_normed, lm_head, &mut scratch.logits)?;
        Ok(())
    }
}
