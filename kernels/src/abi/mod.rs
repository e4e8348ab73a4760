//! What both sides of a launch agree on: entry names, launch bounds, shared-memory sizes and `#[repr(C)]` parameters.
//!
//! Addresses are device addresses (`u64`), 0 meaning "absent" where a field says it is optional. Sizes and strides are in
//! elements unless a name says otherwise. Matrices are row-major.

mod attention;
mod cache;
mod gemm;
mod layers;
mod pages;
mod sampling;
mod spec;
mod tensor_map;

pub use attention::*;
pub use cache::*;
pub use gemm::*;
pub use layers::*;
pub use pages::*;
pub use sampling::*;
pub use spec::*;
pub use tensor_map::*;
