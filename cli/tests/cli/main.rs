//! The binary as its user meets it.

mod common;
mod encoders;
mod generate;
mod quantise;
mod refusals;
