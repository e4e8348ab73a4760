//! Benchmarks: every kernel alone, and beside its peers on the same GPU in the same run.
//!
//! | part | what is in it |
//! |---|---|
//! | [`problem`] | what is timed, as numbers, and what it costs |
//! | [`cells`] | the problems of the side-by-side run, by name |
//! | [`kernels`] | one file a kernel family: buffers, parameters, grid |
//! | [`check`](mod@check) | the oracle's word on a kernel before it is timed |
//! | [`dump`](mod@dump) | inputs and outputs in files, for programs that check them |
//! | [`e2e`] | whole models through the engine |
//! | `measure`, `runner` | timing on a CUDA device, with the feature `cuda` |
//! | [`peers`] | the Python program that times the peers |
//! | [`report`] | the table, the JSON and the charts |

pub mod cells;
pub mod check;
pub mod dump;
pub mod e2e;
mod error;
pub mod kernels;
pub mod machine;
#[cfg(feature = "cuda")]
pub mod measure;
pub mod peers;
pub mod prepared;
pub mod problem;
pub mod random;
pub mod report;
#[cfg(feature = "cuda")]
pub mod runner;
pub mod stats;

pub use error::{Error, Result};
