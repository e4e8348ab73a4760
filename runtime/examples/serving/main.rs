//! What the engine is worth, measured: continuous against static batching on a trace of mixed lengths; drafts of a smaller model,
//! and of what was said before, by their number.
//!
//! ```sh
//! cargo run --release -p tilewright --example serving            # all of it
//! cargo run --release -p tilewright --example serving trace
//! cargo run --release -p tilewright --example serving drafts 20  # of so many rounds, 5 where not given
//! cargo run --release -p tilewright --example serving drafts 20 640  # and of so many tokens an answer, 160 where not given
//! ```
//!
//! Environment: `TARGET`, `DRAFT` (folders; the demo models by default), `DEVICE` (cpu by default).

mod drafts;
mod trace;

use std::path::PathBuf;

use tilewright::{DeviceChoice, Error, Model, Result};

/// Rounds of drafts, and tokens of an answer, where their numbers aren't given. A GPU wants more of both: 160 tokens are 30 ms there.
const ROUNDS: usize = 5;
const TOKENS: usize = 160;

/// The folder that a variable names, or one of the demo models.
fn folder(variable: &str, demo: &str) -> PathBuf {
    let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/demo").join(demo);
    std::env::var_os(variable).map_or(demo, PathBuf::from)
}

/// The number that an argument is.
fn number(what: &'static str, argument: Option<String>, otherwise: usize) -> Result<usize> {
    let Some(text) = argument else { return Ok(otherwise) };
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(Error::Request { what, expected: "a number from 1".into(), found: text }),
    }
}

fn main() -> Result<()> {
    let what = std::env::args().nth(1);
    let rounds = number("rounds", std::env::args().nth(2), ROUNDS)?;
    let tokens = number("tokens", std::env::args().nth(3), TOKENS)?;
    let device: DeviceChoice = std::env::var("DEVICE").as_deref().unwrap_or("cpu").parse()?;
    let target = Model::load(folder("TARGET", "target"), device)?;
    println!("{}", target.device());
    if what.as_deref() != Some("drafts") {
        trace::measure(&target)?;
    }
    if what.as_deref() != Some("trace") {
        let draft = Model::load(folder("DRAFT", "draft"), device)?;
        drafts::measure(&target, &draft, drafts::Size { rounds, tokens })?;
    }
    Ok(())
}
