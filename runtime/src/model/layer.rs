use tilewright_host::{AttentionSpec, Device, RopeAppend, Tensor};

use super::parts::Norm;
use crate::Result;
use crate::config::Activation;

/// One layer's weights, of a decoder or an encoder. Query, key and value are one matrix; gate and up another, [`Device::gated`] unless
/// there is a bias.
pub(crate) struct Layer<D: Device> {
    /// Of attention.
    pub input_norm: Norm<D>,
    pub qkv: D::Matrix,
    pub qkv_bias: Option<D::Vector>,
    /// RMS norms of query and key heads, and their epsilon.
    pub qk_norm: Option<(D::Vector, D::Vector, f32)>,
    pub output: D::Matrix,
    pub output_bias: Option<D::Vector>,
    /// Of the MLP.
    pub post_norm: Norm<D>,
    /// Gate and up, or up alone where the MLP has no gate.
    pub gate_up: D::Matrix,
    pub gate_up_bias: Option<D::Vector>,
    pub activation: Activation,
    pub down: D::Matrix,
    pub down_bias: Option<D::Vector>,
    pub attention: AttentionSpec,
    pub norms: NormPlace,
}

/// Where a layer's norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormPlace {
    /// Before attention and before the MLP; the residual stream isn't normed. As in Llama, GPT-2, ViT.
    Before,
    /// After attention and after the MLP, of the residual stream itself. As in BERT.
    After,
}

/// Columns of a layer's activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Widths {
    pub hidden: usize,
    pub qkv: usize,
    pub q: usize,
    pub gate_up: usize,
    pub intermediate: usize,
}

/// Activations of a layer, reused by all.
pub(crate) struct Activations<D: Device> {
    pub(crate) residual: D::Tensor,
    normed: D::Tensor,
    qkv: D::Tensor,
    q: D::Tensor,
    attended: D::Tensor,
    gate_up: D::Tensor,
    activated: D::Tensor,
}

impl<D: Device> Activations<D> {
    /// Of up to `max_rows` tokens.
    pub fn new(device: &D, widths: Widths, max_rows: usize) -> Result<Activations<D>> {
        Ok(Activations {
            residual: device.tensor(max_rows, widths.hidden)?,
            normed: device.tensor(max_rows, widths.hidden)?,
            qkv: device.tensor(max_rows, widths.qkv)?,
            q: device.tensor(max_rows, widths.q)?,
            attended: device.tensor(max_rows, widths.q)?,
            gate_up: device.tensor(max_rows, widths.gate_up)?,
            activated: device.tensor(max_rows, widths.intermediate)?,
        })
    }

    /// Norms the residual stream itself.
    pub fn norm_residual(&mut self, device: &D, norm: &Norm<D>) -> Result<()> {
        norm.apply(device, &self.residual, &mut self.normed)?;
        std::mem::swap(&mut self.residual, &mut self.normed);
        Ok(())
    }
}

/// The rows of a step whose outputs are wanted.
pub(crate) struct Selected<D: Device> {
    pub residual: D::Tensor,
    q: D::Tensor,
    attended: D::Tensor,
}

impl<D: Device> Selected<D> {
    /// Of up to `max_outputs` rows.
    pub fn new(device: &D, widths: Widths, max_outputs: usize) -> Result<Selected<D>> {
        Ok(Selected {
            residual: device.tensor(max_outputs, widths.hidden)?,
            q: device.tensor(max_outputs, widths.q)?,
            attended: device.tensor(max_outputs, widths.q)?,
        })
    }

    fn swap(&mut self, s: &mut Activations<D>) {
        std::mem::swap(&mut s.residual, &mut self.residual);
        std::mem::swap(&mut s.attended, &mut self.attended);
    }
}

/// What a layer's pass needs beside its weights.
pub(crate) struct Pass<'a, D: Device> {
    pub device: &'a D,
    pub rope: &'a D::Rope,
    pub step: &'a D::Step,
    /// The layer of the cache.
    pub cache_layer: usize,
}

impl<D: Device> Layer<D> {
    /// Adds the layer's attention and MLP to the residual stream of `s`.
    pub fn forward(&self, pass: &Pass<'_, D>, cache: &mut D::Cache, s: &mut Activations<D>) -> Result<()> {
        self.append(pass, cache, s)?;
        self.attend(pass, cache, s)?;
        self.finish(pass.device, s)
    }

    /// As [`Layer::forward`], but of a step's `wanted` rows alone, which are then `selected`: after the last layer nothing reads the
    /// others. All rows' keys and values are appended.
    pub fn forward_selected(
        &self,
        wanted: usize,
        pass: &Pass<'_, D>,
        cache: &mut D::Cache,
        s: &mut Activations<D>,
        selected: &mut Selected<D>,
    ) -> Result<()> {
        let Pass { device, step, .. } = *pass;
        if wanted == s.residual.rows() {
            self.forward(pass, cache, s)?;
            return Ok(device.select_outputs(&s.residual, step, &mut selected.residual)?);
        }
        self.append(pass, cache, s)?;
        if wanted == 0 {
            return Ok(());
        }
        // A query depends on no other, and of attention's output on, a row on itself alone.
        if let Some(alone) = device.wanted_alone(step)? {
            device.select_outputs(&s.q, step, &mut selected.q)?;
            let (q, attended) = (&selected.q, &mut selected.attended);
            device.attention(q, cache, pass.cache_layer, &alone, &self.attention, attended)?;
        } else {
            self.attend(pass, cache, s)?;
            device.select_outputs(&s.attended, step, &mut selected.attended)?;
        }
        device.select_outputs(&s.residual, step, &mut selected.residual)?;
        selected.swap(s);
        let finished = self.finish(device, s);
        selected.swap(s);
        finished
    }

    /// Leaves queries in `s` and appends keys and values to the cache.
    fn append(&self, pass: &Pass<'_, D>, cache: &mut D::Cache, s: &mut Activations<D>) -> Result<()> {
        let Pass { device, rope, step, cache_layer } = *pass;
        let x = self.normed(device, &self.input_norm, &s.residual, &self.qkv, &mut s.normed)?;
        device.linear(x, &self.qkv, self.qkv_bias.as_ref(), &mut s.qkv)?;
        let args = RopeAppend {
            qkv: &s.qkv,
            qk_norm: self.qk_norm.as_ref().map(|(q, k, eps)| (q, k, *eps)),
            rope,
            q_heads: self.attention.q_heads,
            layer: cache_layer,
        };
        Ok(device.rope_append(args, step, cache, &mut s.q)?)
    }

    fn attend(&self, pass: &Pass<'_, D>, cache: &D::Cache, s: &mut Activations<D>) -> Result<()> {
        let Pass { device, step, cache_layer, .. } = *pass;
        Ok(device.attention(&s.q, cache, cache_layer, step, &self.attention, &mut s.attended)?)
    }

    /// Adds what was attended, then the MLP.
    fn finish(&self, device: &D, s: &mut Activations<D>) -> Result<()> {
        device.linear_residual(&s.attended, &self.output, self.output_bias.as_ref(), &mut s.residual)?;
        if self.norms == NormPlace::After {
            s.norm_residual(device, &self.input_norm)?;
        }

        let x = self.normed(device, &self.post_norm, &s.residual, &self.gate_up, &mut s.normed)?;
        self.activate(device, x, &mut s.gate_up, &mut s.activated)?;
        device.linear_residual(&s.activated, &self.down, self.down_bias.as_ref(), &mut s.residual)?;
        if self.norms == NormPlace::After {
            // The second time: residual stream and normed rows have changed places and changed back.
            s.norm_residual(device, &self.post_norm)?;
        }
        Ok(())
    }

    /// The MLP up to its second matrix; `gate_up` is room for the product of its first.
    pub fn activate(
        &self,
        device: &D,
        x: &D::Tensor,
        gate_up: &mut D::Tensor,
        activated: &mut D::Tensor,
    ) -> Result<()> {
        match (self.activation, &self.gate_up_bias) {
            (Activation::SwiGlu, None) => Ok(device.linear_gated(x, &self.gate_up, gate_up, activated)?),
            (activation, bias) => {
                device.linear(x, &self.gate_up, bias.as_ref(), gate_up)?;
                activation.apply(device, gate_up, activated)
            }
        }
    }

    /// What attention or the MLP reads, the first product of which is with `reader`: the residual stream, normed where norms come before.
    fn normed<'t>(
        &self,
        device: &D,
        norm: &Norm<D>,
        residual: &'t D::Tensor,
        reader: &D::Matrix,
        normed: &'t mut D::Tensor,
    ) -> Result<&'t D::Tensor> {
        if self.norms == NormPlace::After {
            return Ok(residual);
        }
        norm.apply_for(device, residual, reader, normed)?;
        Ok(normed)
    }
}
