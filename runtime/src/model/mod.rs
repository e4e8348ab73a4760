//! Decoder-only transformers, written once against [`tilewright_host::Device`].

mod decoder;
mod layer;
mod load;
mod runner;
mod sequence;

pub use decoder::{Decoder, Scratch};
pub(crate) use layer::Layer;
pub(crate) use load::{Loader, projections};
pub(crate) use runner::{DecoderRunner, Runner, RunnerSizes};
pub use sequence::{DecoderSequence, Sequence};
