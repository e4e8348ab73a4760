//! Transformer inference: Hugging Face checkpoints in, text out, on the CPU or on a GPU whose kernels are written in Rust.
//!
//! ```
//! use tilewright::{DeviceChoice, GenerateParams, Model};
//!
//! # fn main() -> tilewright::Result<()> {
//! let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo/target");
//! let model = Model::load(folder, DeviceChoice::Cpu)?;
//! let params = GenerateParams { max_tokens: 8, ..GenerateParams::default() };
//! let mut text = String::new();
//! for token in model.generate("fn main() {\n    let mut v = Vec::new();\n", &params)? {
//!     text += &token?.text;
//! }
//! assert!(text.starts_with("}\n\nfn "));
//! # Ok(())
//! # }
//! ```
//!
//! | room | what is in it |
//! |---|---|
//! | [`Model`] | the front door: a checkpoint on a device |
//! | [`config`], [`checkpoint`], [`tokenizer`] | what a checkpoint's folder holds |
//! | [`quantise`] | checkpoints quantised: GPTQ, rounding, eight-bit channels |
//! | [`quantized`] | how quantised weights are stored in files |
//! | [`model`] | the decoder, written once against [`tilewright_host::Device`] |
//! | [`cache`] | keys and values |
//! | [`sampling`] | how the next token is chosen |
//! | [`generate`] | a request and the stream of its tokens |
//! | [`engine`] | many requests at once |
//! | [`encoder`] | texts to vectors, images to classes |
//! | [`ladder`] | what each optimisation is worth on this machine |
//! | [`plan`] | what a model takes of a device, and what it can reach, without its weights |
//! | [`doctor`] | whether a checkpoint is what it says |
//! | [`eval`], [`verify`] | how good, and how right, a checkpoint's answers are |
#![warn(missing_docs)]

pub mod cache;
pub mod checkpoint;
pub mod config;
mod device;
pub mod doctor;
pub mod encoder;
pub mod engine;
mod error;
pub mod eval;
mod front;
pub mod generate;
pub mod ladder;
pub mod model;
pub mod plan;
pub mod quantise;
pub mod quantized;
pub mod sampling;
pub mod tokenizer;
pub mod verify;

pub use device::DeviceChoice;
pub use encoder::{EmbedOptions, Embedder, Embeddings, ImageClassifier, Pooling};
pub use engine::Engine;
pub use error::{Error, Result};
pub use front::Model;
pub use generate::{FinishReason, GenerateParams, Generation, Prompt, Timings, Token};
pub use sampling::{Logprobs, Penalties, SamplingParams};
pub use tilewright_host::KvDType;
