//! Property tests of every kernel. Each suite is written once over [`tilewright_host::gpu::Driver`], so that the very same
//! cases run under emulation everywhere and on a CUDA device where there is one. Under emulation a quarter of the cases run their
//! lanes in an order drawn from a seed, which is part of the case, and every launch of such a case in another one.

pub mod agreement;
pub mod emulate;
pub mod emulated;
pub mod harness;
pub mod idle;
pub mod random;
pub mod runner;
pub mod shape;
pub mod suites;
