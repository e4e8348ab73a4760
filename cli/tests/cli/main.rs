//! The binary as its user meets it.

mod common;
mod encoders;
mod generate;
mod measure;
mod plan;
mod quantise;
mod refusals;
#[cfg(unix)]
mod serve;
#[cfg(target_os = "linux")]
mod templates;
