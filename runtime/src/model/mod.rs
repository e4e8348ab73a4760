//! Decoder-only transformers, written once against [`tilewright_host::Device`], and the layers that encoders share with them.

mod decoder;
mod layer;
mod load;
mod parts;
mod runner;
mod sequence;

pub use decoder::{Decoder, Scratch};
pub(crate) use layer::{Activations, Layer, NormPlace, Pass, Selected, Widths};
pub(crate) use load::{Loader, Tensors, projections};
pub(crate) use parts::Norm;
pub(crate) use runner::{DecoderRunner, Runner, RunnerSizes};
pub use sequence::{DecoderSequence, Sequence};
