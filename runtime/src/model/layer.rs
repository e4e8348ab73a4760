use tilewright_host::{AttentionSpec, Device, RopeAppend};

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
        device.attention(&s.q, cache, index, step, &self.attention, &mut s.attended)?;
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
