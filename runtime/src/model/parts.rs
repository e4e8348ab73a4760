use tilewright_host::{Device, Gelu};

use crate::Result;
use crate::config::{Activation, NormKind};

/// A norm over the elements of a row.
pub(crate) enum Norm<D: Device> {
    /// By the root mean square.
    Rms {
        /// `[hidden]`.
        weight: D::Vector,
        /// Added to the mean square.
        eps: f32,
    },
    /// By mean and deviation.
    Layer {
        /// `[hidden]`.
        weight: D::Vector,
        /// `[hidden]`.
        bias: D::Vector,
        /// Added to the variance.
        eps: f32,
    },
}

impl<D: Device> Norm<D> {
    /// The norm of each row of `x`.
    pub fn apply(&self, device: &D, x: &D::Tensor, out: &mut D::Tensor) -> Result<()> {
        match self {
            Norm::Rms { weight, eps } => device.rms_norm(x, weight, *eps, out)?,
            Norm::Layer { weight, bias, eps } => device.layer_norm(x, weight, Some(bias), *eps, out)?,
        }
        Ok(())
    }

    /// The same, of rows that `reader` alone multiplies.
    pub fn apply_for(
        &self,
        device: &D,
        x: &D::Tensor,
        reader: &D::Matrix,
        out: &mut D::Tensor,
    ) -> Result<()> {
        match self {
            Norm::Rms { weight, eps } => Ok(device.rms_norm_for(x, weight, *eps, reader, out)?),
            Norm::Layer { .. } => self.apply(device, x, out),
        }
    }
}

impl NormKind {
    /// The name of its weight, and of its bias where it has one, in a checkpoint.
    pub(crate) fn names(self, stem: &str) -> (String, Option<String>) {
        let bias = match self {
            NormKind::Rms => None,
            NormKind::Layer => Some(format!("{stem}.bias")),
        };
        (format!("{stem}.weight"), bias)
    }
}

impl Activation {
    /// Columns of the MLP's first matrix, of whose product [`Activation::apply`] makes `intermediate` columns.
    pub(crate) fn columns(self, intermediate: usize) -> usize {
        match self {
            Activation::SwiGlu => 2 * intermediate,
            Activation::Gelu | Activation::GeluTanh => intermediate,
        }
    }

    /// The input of the MLP's second matrix.
    pub(crate) fn apply<D: Device>(self, device: &D, x: &D::Tensor, out: &mut D::Tensor) -> Result<()> {
        match self {
            Activation::SwiGlu => device.silu_mul(x, out)?,
            Activation::Gelu => device.gelu(x, Gelu::Erf, out)?,
            Activation::GeluTanh => device.gelu(x, Gelu::Tanh, out)?,
        }
        Ok(())
    }
}
