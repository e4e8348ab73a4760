//! Decoder-only transformers, written once against [`tilewright_host::Device`].

mod decoder;
mod layer;
mod load;
mod sequence;

pub use decoder::{Decoder, Scratch};
pub use sequence::{DecoderSequence, Sequence};
