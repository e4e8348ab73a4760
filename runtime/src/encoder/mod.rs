//! Encoders: BERT-like models that turn texts into vectors, and ViT, which tells what an image shows. Their layers are those of
//! [`crate::model`], their attention that of every model, without a causal mask.
//!
//! Texts of different lengths go through together, one behind the other, so that nothing is padded and nothing needs a mask.

mod batch;
mod embedder;
mod forward;
mod images;
mod load;
mod pooling;

pub use embedder::{EmbedOptions, Embedder, Embeddings};
pub(crate) use forward::{AnyEncoder, Want};
pub use images::ImageClassifier;
pub(crate) use load::{LoadedEncoder, load, load_on};
pub use pooling::Pooling;
