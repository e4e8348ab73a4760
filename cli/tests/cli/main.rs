//! The binary as its user meets it.

mod common;
mod generate;
mod quantise;
mod refusals;
#[cfg(unix)]
mod serve;
