//! Continuous against static batching.

use std::time::Instant;

use tilewright::engine::{Batching, Engine, EngineConfig, EngineStats};
use tilewright::ladder::quantile;
use tilewright::ladder::trace::{TraceSpec, answer_tokens, latencies, serve};
use tilewright::{Model, Result};

/// Rounds in which both ways have their turn.
const ROUNDS: usize = 3;

fn report(name: &str, seconds: f64, tokens: &[Vec<f64>], stats: &EngineStats) {
    let count: usize = tokens.iter().map(Vec::len).sum();
    let [first, between] = latencies(tokens);
    let ms = |sorted: &[f64]| [0.5, 0.9, 0.99].map(|share| 1e3 * quantile(sorted, share));
    let share = |seconds: f64| 100.0 * seconds / stats.step_seconds().max(f64::MIN_POSITIVE);
    println!(
        "{name:10} {:7.1} tok/s   first token p50/p90/p99 {:6.0} {:6.0} {:6.0} ms   between tokens {:5.1} {:5.1} {:5.1} ms   of a step {:.2}% planned, {:.2}% committed, {:.2}% delivered ({:.2}% beside the device), {:.2}% run, {:.1} rows a step",
        count as f64 / seconds,
        ms(&first)[0],
        ms(&first)[1],
        ms(&first)[2],
        ms(&between)[0],
        ms(&between)[1],
        ms(&between)[2],
        share(stats.schedule_seconds),
        share(stats.commit_seconds),
        share(stats.deliver_seconds),
        share(stats.hidden_seconds),
        share(stats.run_seconds),
        stats.rows as f64 / stats.steps.max(1) as f64,
    );
}

/// Serves the same trace both ways.
pub fn measure(model: &Model) -> Result<()> {
    let (spec, vocab) = (TraceSpec::default(), model.config().vocab_size);
    let config =
        |batching| EngineConfig { batching, max_running: 16, prefix_cache: false, ..EngineConfig::default() };
    let at_once = spec.at_once().draw(vocab);
    let seconds = || {
        let began = Instant::now();
        serve(&Engine::new(model.clone(), config(Batching::Continuous))?, &at_once)?;
        Ok::<_, tilewright::Error>(began.elapsed().as_secs_f64())
    };
    // The first time a GPU's kernels may have to be compiled.
    let spec = spec.offered(f64::min(seconds()?, seconds()?));
    let trace = spec.draw(vocab);
    let prompt: usize = trace.iter().map(|arrival| arrival.request.prompt.len()).sum();
    let answer = answer_tokens(&trace);
    println!(
        "{} requests, {:.0} a second, {prompt} prompt and {answer} answer tokens; 16 at a time",
        spec.requests, spec.rate
    );
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let mut rates = Vec::new();
        for (name, batching) in [("static", Batching::Static), ("continuous", Batching::Continuous)] {
            let engine = Engine::new(model.clone(), config(batching))?;
            let began = Instant::now();
            let tokens = serve(&engine, &trace)?;
            let seconds = began.elapsed().as_secs_f64();
            report(name, seconds, &tokens, &engine.shutdown());
            rates.push(answer as f64 / seconds);
        }
        ratios.push(rates[1] / rates[0]);
    }
    ratios.sort_by(f64::total_cmp);
    println!("continuous / static: {:.2}x, the median of {ROUNDS} rounds", quantile(&ratios, 0.5));
    Ok(())
}
