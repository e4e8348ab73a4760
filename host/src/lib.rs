//! Devices of tilewright: one interface at the level of whole operations over a CPU and CUDA GPUs.
//!
//! | room | what is in it |
//! |---|---|
//! | [`Device`] | the interface a model is written against |
//! | [`HostQuantized`] | quantised weights of any file format, as a device takes them over |
//! | [`Batch`] | what one step works on: tokens, positions, sequences, pages |
//! | [`LogitChanges`] | penalties and biases of rows of logits |
//! | [`cpu`] | f32 compute over bf16 weights, on any machine |
//! | [`gpu`] | the same operations as kernel launches, over a [`gpu::Driver`] (CUDA; in tests, the emulator) |
#![warn(missing_docs)]

mod batch;
pub mod cpu;
mod device;
mod error;
pub mod gpu;
mod logit_changes;
mod quantized;

pub use batch::*;
pub use device::*;
pub use error::*;
pub use logit_changes::LogitChanges;
pub use quantized::*;
