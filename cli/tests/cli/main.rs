//! The binary as its user meets it.

mod common;
mod generate;
mod refusals;
