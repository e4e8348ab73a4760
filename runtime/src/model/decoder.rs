use std::sync::Arc;

use tilewright_host::{Batch, Device};

use super::layer::Layer;
use crate::Result;
use crate::config::ModelConfig;

/// A decoder's weights on a device.
pub struct Decoder<D: Device> {
    pub(super) device: Arc<D>,
    pub(super) config: ModelConfig,
    pub(super) embedding: D::Matrix,
    pub(super) layers: Vec<Layer<D>>,
    pub(super) norm: D::Vector,
    /// Where it isn't the embedding table.
    pub(super) lm_head: Option<D::Matrix>,
    pub(super) rope: D::Rope,
}

/// Activations of one step, reused by all.
pub struct Scratch<D: Device> {
    pub(super) residual: D::Tensor,
    pub(super) normed: D::Tensor,
    pub(super) qkv: D::Tensor,
    pub(super) q: D::Tensor,
    pub(super) attended: D::Tensor,
    pub(super) gate_up: D::Tensor,
    pub(super) activated: D::Tensor,
    /// The rows whose logits are wanted.
    pub(super) selected: D::Tensor,
    pub(super) selected_attended: D::Tensor,
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
        let q_cols = config.q_heads * config.head_dim;
        Ok(Scratch {
            residual: device.tensor(max_rows, config.hidden_size)?,
            normed: device.tensor(max_rows, config.hidden_size)?,
            qkv: device.tensor(max_rows, config.qkv_rows())?,
            q: device.tensor(max_rows, q_cols)?,
            attended: device.tensor(max_rows, q_cols)?,
            gate_up: device.tensor(max_rows, 2 * config.intermediate_size)?,
            activated: device.tensor(max_rows, config.intermediate_size)?,
            selected: device.tensor(max_outputs, config.hidden_size)?,
            selected_attended: device.tensor(max_outputs, q_cols)?,
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
    pub fn forward(&self, batch: &Batch, cache: &mut D::Cache, scratch: &mut Scratch<D>) -> Result<()> {
        let mut replays = std::mem::take(&mut scratch.replays);
        let wanted = batch.outputs.len();
        let done =
            self.device.run_step(batch, &mut replays, |step| self.compute(step, wanted, cache, scratch));
        scratch.replays = replays;
        done?;
        if wanted > 0 {
            self.device.set_logit_rows(&mut scratch.logits, wanted)?;
        }
        Ok(())
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
        device.embed(&self.embedding, step, &mut scratch.residual)?;
        for (index, layer) in self.layers.iter().enumerate() {
            if index + 1 < self.layers.len() {
                layer.forward(index, self, step, cache, scratch)?;
            } else {
                layer.forward_selected(index, wanted, self, step, cache, scratch)?;
            }
        }
        if wanted == 0 {
            return Ok(());
        }
        let eps = self.config.rms_norm_eps;
        device.rms_norm(&scratch.selected, &self.norm, eps, &mut scratch.selected_normed)?;
        let lm_head = self.lm_head.as_ref().unwrap_or(&self.embedding);
        device.project_logits(&scratch.selected_normed, lm_head, &mut scratch.logits)?;
        Ok(())
    }
}
