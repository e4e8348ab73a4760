use tilewright_host::{AttentionSpec, Device, RopeAppend, Tensor};

use super::{Decoder, Scratch};
use crate::Result;

/// One decoder layer's weights. Query, key and value are one matrix; gate and up another, [`Device::gated`] unless there is a bias.
pub(crate) struct Layer<D: Device> {
    pub input_norm: D::Vector,
    pub qkv: D::Matrix,
    pub qkv_bias: Option<D::Vector>,
    pub qk_norm: Option<(D::Vector, D::Vector)>,
    pub output: D::Matrix,
    pub output_bias: Option<D::Vector>,
    pub post_norm: D::Vector,
    pub gate_up: D::Matrix,
    pub gate_up_bias: Option<D::Vector>,
    pub down: D::Matrix,
    pub down_bias: Option<D::Vector>,
    pub attention: AttentionSpec,
}

impl<D: Device> Layer<D> {
    /// Adds the layer's attention and MLP to the residual stream of `s`.
    pub fn forward(
        &self,
        index: usize,
        model: &Decoder<D>,
        step: &D::Step,
        cache: &mut D::Cache,
        s: &mut Scratch<D>,
    ) -> Result<()> {
        self.append(index, model, step, cache, s)?;
        model.device.attention(&s.q, cache, index, step, &self.attention, &mut s.attended)?;
        self.finish(model, s)
    }

    /// As [`Layer::forward`], but of a step's `wanted` rows alone, which are then `selected`: after the last layer nothing reads the
    /// others. All rows' keys and values are appended.
    pub fn forward_selected(
        &self,
        index: usize,
        wanted: usize,
        model: &Decoder<D>,
        step: &D::Step,
        cache: &mut D::Cache,
        s: &mut Scratch<D>,
    ) -> Result<()> {
        let device = &*model.device;
        if wanted == s.residual.rows() {
            self.forward(index, model, step, cache, s)?;
            return Ok(device.select_outputs(&s.residual, step, &mut s.selected)?);
        }
        self.append(index, model, step, cache, s)?;
        if wanted == 0 {
            return Ok(());
        }
        device.attention(&s.q, cache, index, step, &self.attention, &mut s.attended)?;
        // Of attention's output on, a row depends on itself alone.
        device.select_outputs(&s.residual, step, &mut s.selected)?;
        device.select_outputs(&s.attended, step, &mut s.selected_attended)?;
        std::mem::swap(&mut s.residual, &mut s.selected);
        std::mem::swap(&mut s.attended, &mut s.selected_attended);
        let finished = self.finish(model, s);
        std::mem::swap(&mut s.residual, &mut s.selected);
        std::mem::swap(&mut s.attended, &mut s.selected_attended);
        finished
    }

    /// Leaves queries in `s` and appends keys and values to the cache.
    fn append(
        &self,
        index: usize,
        model: &Decoder<D>,
        step: &D::Step,
        cache: &mut D::Cache,
        s: &mut Scratch<D>,
    ) -> Result<()> {
        let device = &*model.device;
        let eps = model.config.rms_norm_eps;

        device.rms_norm(&s.residual, &self.input_norm, eps, &mut s.normed)?;
        device.linear(&s.normed, &self.qkv, self.qkv_bias.as_ref(), &mut s.qkv)?;
        let args = RopeAppend {
            qkv: &s.qkv,
            qk_norm: self.qk_norm.as_ref().map(|(q, k)| (q, k, eps)),
            rope: &model.rope,
            q_heads: model.config.q_heads,
            layer: index,
        };
        device.rope_append(args, step, cache, &mut s.q)?;
        Ok(())
    }

    /// Adds what was attended, then the MLP.
    fn finish(&self, model: &Decoder<D>, s: &mut Scratch<D>) -> Result<()> {
        let device = &*model.device;
        let eps = model.config.rms_norm_eps;

        device.linear_residual(&s.attended, &self.output, self.output_bias.as_ref(), &mut s.residual)?;

        device.rms_norm(&s.residual, &self.post_norm, eps, &mut s.normed)?;
        match &self.gate_up_bias {
            None => device.linear_gated(&s.normed, &self.gate_up, &mut s.gate_up, &mut s.activated)?,
            Some(bias) => {
                device.linear(&s.normed, &self.gate_up, Some(bias), &mut s.gate_up)?;
                device.silu_mul(&s.gate_up, &mut s.activated)?;
            }
        }
        device.linear_residual(&s.activated, &self.down, self.down_bias.as_ref(), &mut s.residual)?;
        Ok(())
    }
}
