//! The binary as its user meets it.

mod common;
mod generate;
mod plan;
mod quantise;
mod refusals;
