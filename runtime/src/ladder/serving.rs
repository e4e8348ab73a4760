//! Drafts of a smaller model, and continuous batching.

use std::time::Instant;

use super::trace::{Arrival, TraceSpec, answer_tokens, serve};
use super::{Bench, Claim, Rate, Rung, in_turns};
use crate::engine::{Batching, DraftLength, Engine, EngineConfig, Request, Speculation};
use crate::{Model, Result};

/// Drafts a step at most.
const DRAFTS: usize = 4;
/// Rust as the demo models were trained on.
const PROMPT: &str = "impl<T> Stack<T> {\n    pub fn new() -> Self {\n";
/// Sequences at a time.
const RUNNING: usize = 16;

pub(super) fn speculation(bench: &Bench<'_>) -> Result<Vec<Rung>> {
    const NAME: &str = "speculative decoding";
    const CLAIM: &str = "2 to 4 times at 80% acceptance";
    if !bench.options.draft.exists() {
        let limits = Claim::Times { from: 2.0, to: 4.0 };
        let reason = format!("there is no draft model at {}", bench.options.draft.display());
        return Ok(vec![Rung::not_here(NAME, CLAIM, limits, reason)]);
    }
    let draft = Model::load(&bench.options.draft, bench.options.device)?;
    let prompt = match bench.model.tokenizer() {
        Some(tokenizer) => tokenizer.encode(PROMPT)?,
        None => vec![1, 2, 3, 4],
    };
    let engine = |speculation| {
        let config =
            EngineConfig { speculation, max_running: 1, prefix_cache: false, ..EngineConfig::default() };
        Engine::with_draft(bench.model.clone(), &draft, config)
    };
    let plain = engine(Speculation::Off)?;
    let drafted = engine(Speculation::DraftModel(DraftLength::Fixed(DRAFTS)))?;
    let max_tokens = bench.size(160, 12);
    let prompt = &prompt;
    let rate = |engine| -> Rate<'_> {
        let engine: &Engine = engine;
        Box::new(move || {
            let start = Instant::now();
            let request = Request { max_tokens, ignore_eos: true, ..Request::new(prompt.clone()) };
            let tokens = engine.submit(request)?.collect::<Result<Vec<_>>>()?.len();
            Ok(tokens as f64 / start.elapsed().as_secs_f64())
        })
    };
    let found = in_turns(bench.size(5, 1), vec![rate(&plain), rate(&drafted)])?;
    let stats = drafted.shutdown();
    let accepted = 100.0 * stats.accepted as f64 / stats.drafts.max(1) as f64;
    let of = format!(
        "one sequence, greedy, {DRAFTS} drafts a step of the model's draft: {:.1} tok/s without, {:.1} with",
        found[0].rate, found[1].rate
    );
    let rung = Rung::times(NAME, CLAIM, [2.0, 4.0], found[1].ratio(), of).of_rounds(&found[1]);
    let rung = rung.because(format!(
        "{accepted:.0}% of the drafts stood, and where weights lie in caches a step that verifies {} tokens takes longer than one that computes one",
        1 + DRAFTS
    ));
    let each = 1.0 + stats.accepted as f64 / stats.verified.max(1) as f64;
    Ok(vec![
        rung.also("drafts that stood", format!("{accepted:.0}% of {}", stats.drafts))
            .also("tokens of a step with drafts", format!("{each:.2}")),
    ])
}

pub(super) fn batching(bench: &Bench<'_>) -> Result<Vec<Rung>> {
    let spec = match bench.options.quick {
        false => TraceSpec::default(),
        true => TraceSpec { requests: 6, rate: 1000.0, prompt_tokens: (8.0, 16), answer_tokens: (4.0, 12) },
    };
    let trace = spec.draw(bench.model.config().vocab_size);
    let rate = |batching| -> Rate<'_> {
        let trace: &[Arrival] = &trace;
        Box::new(move || {
            let config = EngineConfig {
                batching,
                max_running: RUNNING,
                prefix_cache: false,
                ..EngineConfig::default()
            };
            let engine = Engine::new(bench.model.clone(), config)?;
            let start = Instant::now();
            serve(&engine, trace)?;
            Ok(answer_tokens(trace) as f64 / start.elapsed().as_secs_f64())
        })
    };
    let found = in_turns(bench.size(3, 1), vec![rate(Batching::Static), rate(Batching::Continuous)])?;
    let of = format!(
        "{} requests of mixed lengths, {RUNNING} at a time: {:.1} tok/s in static batches, {:.1} in continuous ones",
        trace.len(),
        found[0].rate,
        found[1].rate
    );
    const CLAIM: &str = "2 to 3 times over static batching";
    let rung = Rung::times("continuous batching", CLAIM, [2.0, 3.0], found[1].ratio(), of);
    Ok(vec![rung.of_rounds(&found[1]).because(
        "a static batch wastes steps on rows that have ended; the less a row adds to a step's time, the less that costs, and the gain depends on how unlike the lengths are",
    )])
}
