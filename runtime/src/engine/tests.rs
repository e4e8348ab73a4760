//! The engine over small checkpoints on the CPU.

mod harness;
mod invariance;
mod requests;
mod service;
mod speculation;
