//! Runs CUDA-style kernels on the host: blocks, warps and lanes, shared memory and asynchronous copies, with every access
//! checked.

mod clock;
mod collective;
mod context;
mod device;
mod element;
mod fault;
mod global;
pub mod intrinsic;
mod matrix;
mod problem;
mod random;
mod report;
mod requests;
mod scheduler;
mod shadow;
mod shared;
mod site;

pub use device::{Device, Launch, Order};
pub use element::{AtomicElement, Element};
pub use fault::{Fault, FaultKind, Place};
pub use report::Report;
