//! Devices whose operations are kernel launches.
//!
//! | part | what is in it |
//! |---|---|
//! | [`Driver`] | the little a device needs from below: memory, copies, launches |
//! | [`GpuDevice`] | [`crate::Device`] over any driver: bf16 activations and caches, f32 accumulation and logits |
//! | `launch` | a layer's launches, their shape checks and parameters |
//! | `ahead` | weights of the product that follows, brought to the L2 meanwhile |
//! | `append` | the append of keys and the attention that follows it as one launch |
//! | `chain` | products that follow each other as one launch |
//! | `choose`, `pages` | tokens of logits; copies of pages |
//! | `encoders` | what models without rotary positions and gates need beside that: layer norms, activations, learned positions |
//! | `decode` | decode attention: its work list, its scratch, its launch |
//! | `gated` | gates and what they gate, in turn, for the products that join them |
//! | `gemm` | matrix products: which kernel computes which rows, the launches |
//! | `prefill` | prefill attention: its work lists, which kernel serves, its launch |
//! | `replay` | steps like earlier ones, whose launches are made as one |
//! | `quantized` | how quantised weights are kept |
//! | `scores` | the softmax of scores that were written down |
//! | [`select_tile`] | which tile of the baseline's GEMM a product runs on |
//! | `cuda` | the driver of NVIDIA GPUs, with the feature `cuda` |
//!
//! A `cuda` build opens `libcuda.so.1`, which comes with NVIDIA's driver, when a GPU is asked for. Without that library, or
//! without a GPU, the answer is [`crate::Error::Unavailable`].

mod ahead;
mod append;
mod chain;
mod choose;
#[cfg(feature = "cuda")]
pub mod cuda;
mod decode;
mod device;
mod driver;
mod encoders;
mod gated;
mod gemm;
mod int4;
mod int8;
mod launch;
mod pages;
mod prefill;
mod quantized;
mod ready;
mod replay;
mod scores;
mod scratch;
mod select;
mod step;
mod storage;

pub use device::GpuDevice;
pub use driver::*;
pub use replay::GpuReplays;
pub use select::select_tile;
pub use step::GpuStep;
pub use storage::{GpuCache, GpuLogits, GpuMatrix, GpuRope, GpuTensor, GpuVector};
