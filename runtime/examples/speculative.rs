//! Speculative decoding: a small model drafts, the large one checks several drafts in one step. The answer is the large model's own.
//!
//! ```sh
//! cargo run --release -p tilewright --example speculative
//! ```

use std::time::Instant;

use tilewright::engine::{DraftLength, Engine, EngineConfig, Request, Speculation};
use tilewright::{DeviceChoice, Model, Result};

fn main() -> Result<()> {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo");
    let target = Model::load(format!("{demo}/target"), DeviceChoice::Auto)?;
    let draft = Model::load(format!("{demo}/draft"), DeviceChoice::Auto)?;
    let prompt = target.require_tokenizer()?.encode("impl Iterator for ")?;

    let mut answers = Vec::new();
    for speculation in [
        Speculation::Off,
        Speculation::NGram(DraftLength::Fixed(4)),
        Speculation::DraftModel(DraftLength::Fixed(4)),
    ] {
        let config = EngineConfig { speculation, ..EngineConfig::default() };
        let engine = Engine::with_draft(target.clone(), &draft, config)?;
        let start = Instant::now();
        let request = Request { max_tokens: 48, ..Request::new(prompt.clone()) };
        let ids = engine.submit(request)?.map(|output| Ok(output?.id)).collect::<Result<Vec<u32>>>()?;
        let seconds = start.elapsed().as_secs_f64();
        let stats = engine.shutdown();
        println!(
            "{speculation:?}: {} tokens in {} steps, {} of {} drafts stood, {:.0} tok/s",
            ids.len(),
            stats.steps,
            stats.accepted,
            stats.drafts,
            ids.len() as f64 / seconds
        );
        answers.push(ids);
    }
    // A greedy answer is the same with any drafts, or none.
    assert!(answers.iter().all(|ids| *ids == answers[0]));
    Ok(())
}
