//! The engine over small checkpoints on the CPU.

mod harness;
mod invariance;
mod outbox;
mod requests;
mod service;
mod speculation;
