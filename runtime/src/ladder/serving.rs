//! Drafts of a smaller model, and continuous batching.

use std::cell::RefCell;
use std::time::Instant;

use super::trace::{Arrival, TraceSpec, answer_tokens, latencies, serve};
use super::{Bench, Claim, Rate, Rung, in_turns, quantile};
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
    let limits = Claim::Times { from: 2.0, to: 4.0 };
    let dir = &bench.options.draft;
    if !dir.exists() {
        let reason = format!("there is no draft model at {}", dir.display());
        return Ok(vec![Rung::not_here(NAME, CLAIM, limits, reason)]);
    }
    let draft = Model::load(dir, bench.options.device)?;
    let [of_draft, of_model] = [&draft, bench.model].map(|model| model.config().vocab_size);
    if of_draft != of_model {
        let reason = format!(
            "the draft model at {} has a vocabulary of {of_draft} tokens, the model one of {of_model}",
            dir.display()
        );
        return Ok(vec![Rung::not_here(NAME, CLAIM, limits, reason)]);
    }
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

/// A trace served by one kind of batching: seconds in all, and of each request the seconds from its arrival to its tokens.
fn served(bench: &Bench<'_>, batching: Batching, trace: &[Arrival]) -> Result<(f64, Vec<Vec<f64>>)> {
    let config =
        EngineConfig { batching, max_running: RUNNING, prefix_cache: false, ..EngineConfig::default() };
    let engine = Engine::new(bench.model.clone(), config)?;
    let start = Instant::now();
    let tokens = serve(&engine, trace)?;
    Ok((start.elapsed().as_secs_f64(), tokens))
}

/// "9.0 ms (99 of 100: 27.1 ms)" of sorted times in seconds.
fn in_words(sorted: &[f64]) -> String {
    let [median, most] = [0.5, 0.99].map(|share| 1e3 * quantile(sorted, share));
    format!("{median:.1} ms (99 of 100: {most:.1} ms)")
}

pub(super) fn batching(bench: &Bench<'_>) -> Result<Vec<Rung>> {
    let spec = match bench.options.quick {
        false => TraceSpec::default(),
        true => TraceSpec { requests: 6, rate: 1000.0, prompt_tokens: (8.0, 16), answer_tokens: (4.0, 12) },
    };
    let vocab = bench.model.config().vocab_size;
    // The first time a GPU's kernels may have to be compiled.
    let at_once = spec.at_once().draw(vocab);
    let (first, _) = served(bench, Batching::Continuous, &at_once)?;
    let (second, _) = served(bench, Batching::Continuous, &at_once)?;
    let spec = spec.offered(first.min(second));
    let trace = spec.draw(vocab);
    let latest = [const { RefCell::new(Vec::new()) }; 2];
    let rate = |batching, latest| -> Rate<'_> {
        let (trace, latest): (&[Arrival], &RefCell<_>) = (&trace, latest);
        Box::new(move || {
            let (seconds, tokens) = served(bench, batching, trace)?;
            latest.replace(tokens);
            Ok(answer_tokens(trace) as f64 / seconds)
        })
    };
    let turns = vec![rate(Batching::Static, &latest[0]), rate(Batching::Continuous, &latest[1])];
    let found = in_turns(bench.size(3, 1), turns)?;
    let [in_static, in_continuous] =
        latest.map(|tokens| latencies(&tokens.into_inner()).map(|sorted| in_words(&sorted)));
    let of = format!(
        "{} requests of mixed lengths, {RUNNING} at a time: {:.1} tok/s in static batches, {:.1} in continuous ones",
        trace.len(),
        found[0].rate,
        found[1].rate
    );
    const CLAIM: &str = "2 to 3 times over static batching";
    let rung = Rung::times("continuous batching", CLAIM, [2.0, 3.0], found[1].ratio(), of)
        .also("requests a second that come", format!("{:.0}", spec.rate))
        .also("to the first token", format!("{} in static batches, {}", in_static[0], in_continuous[0]))
        .also(
            "from one token to the next",
            format!("{} in static batches, {}", in_static[1], in_continuous[1]),
        );
    Ok(vec![rung.of_rounds(&found[1]).because(
        "a static batch wastes steps on rows that have ended; the less a row adds to a step's time, the less that costs, and the gain depends on how unlike the lengths are",
    )])
}
