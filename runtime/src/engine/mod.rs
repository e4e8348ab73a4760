//! temporary
mod config;
mod memory;
mod pages;
mod prefix;
mod schedule;
mod track;
pub use config::{Batching, DraftLength, EngineConfig, Speculation};
