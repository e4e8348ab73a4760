//! Property tests of every kernel. Each suite is written once over [`tilewright_host::gpu::Driver`], so that the very same
//! cases run under emulation everywhere and on a CUDA device where there is one.

pub mod emulated;
pub mod harness;
pub mod random;
pub mod runner;
pub mod suites;
