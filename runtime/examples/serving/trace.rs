//! Continuous against static batching: lengths log-normal, arrivals Poisson.

use std::time::{Duration, Instant};

use tilewright::engine::{Batching, Engine, EngineConfig, EngineStats, Request};
use tilewright::{Model, Result};

use crate::percentile;

const REQUESTS: usize = 96;
/// Rounds in which both ways have their turn.
const ROUNDS: usize = 3;
/// Requests a second: more than either way of batching serves, so that throughput is the engine's.
const RATE: f64 = 40.0;

/// Numbers of the distributions that a trace takes.
struct Numbers(u64);

impl Numbers {
    /// Uniform in (0, 1).
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Log-normal of that median and spread, within bounds.
    fn length(&mut self, median: f64, sigma: f64, most: usize) -> usize {
        // Box and Muller, 1958.
        let normal = (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos();
        ((median * (sigma * normal).exp()) as usize).clamp(1, most)
    }

    fn pause(&mut self) -> f64 {
        -self.uniform().ln() / RATE
    }
}

struct Arrival {
    seconds: f64,
    request: Request,
}

fn trace(vocab: usize) -> Vec<Arrival> {
    let mut numbers = Numbers(7);
    let mut seconds = 0.0;
    let arrival = |_| {
        seconds += numbers.pause();
        let len = numbers.length(48.0, 0.8, 512);
        let prompt: Vec<u32> = (0..len).map(|_| (numbers.uniform() * vocab as f64) as u32).collect();
        let max_tokens = numbers.length(32.0, 1.0, 320);
        Arrival { seconds, request: Request { max_tokens, ignore_eos: true, ..Request::new(prompt) } }
    };
    (0..REQUESTS).map(arrival).collect()
}

/// Seconds from arrival to each token.
fn serve(engine: &Engine, trace: &[Arrival]) -> Vec<Vec<f64>> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = trace
            .iter()
            .map(|arrival| {
                let at = Duration::from_secs_f64(arrival.seconds);
                std::thread::sleep(at.saturating_sub(began.elapsed()));
                let stream = engine.submit(arrival.request.clone()).expect("a request of the trace");
                scope.spawn(move || {
                    let seconds =
                        |token: Result<_>| token.map(|_| (began.elapsed().saturating_sub(at)).as_secs_f64());
                    stream.map(seconds).collect::<Result<Vec<f64>>>().expect("tokens")
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().expect("a reader")).collect()
    })
}

fn report(name: &str, seconds: f64, tokens: &[Vec<f64>], stats: &EngineStats) {
    let count: usize = tokens.iter().map(Vec::len).sum();
    let mut first: Vec<f64> = tokens.iter().filter_map(|times| times.first().copied()).collect();
    let mut between: Vec<f64> =
        tokens.iter().flat_map(|times| times.windows(2).map(|two| two[1] - two[0])).collect();
    first.sort_by(f64::total_cmp);
    between.sort_by(f64::total_cmp);
    let ms = |sorted: &[f64]| [0.5, 0.9, 0.99].map(|share| 1e3 * percentile(sorted, share));
    println!(
        "{name:10} {:7.1} tok/s   first token p50/p90/p99 {:6.0} {:6.0} {:6.0} ms   between tokens {:5.1} {:5.1} {:5.1} ms   host {:.2}% of a step, {:.1} rows a step",
        count as f64 / seconds,
        ms(&first)[0],
        ms(&first)[1],
        ms(&first)[2],
        ms(&between)[0],
        ms(&between)[1],
        ms(&between)[2],
        100.0 * stats.host_share(),
        stats.rows as f64 / stats.steps.max(1) as f64,
    );
}

/// Serves the same trace both ways.
pub fn measure(model: &Model) -> Result<()> {
    let trace = trace(model.config().vocab_size);
    let [prompt, answer] = [
        trace.iter().map(|arrival| arrival.request.prompt.len()).sum::<usize>(),
        trace.iter().map(|arrival| arrival.request.max_tokens).sum::<usize>(),
    ];
    println!(
        "{REQUESTS} requests, {RATE} a second, {prompt} prompt and {answer} answer tokens; 16 at a time"
    );
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let mut rates = Vec::new();
        for (name, batching) in [("static", Batching::Static), ("continuous", Batching::Continuous)] {
            let config =
                EngineConfig { batching, max_running: 16, prefix_cache: false, ..EngineConfig::default() };
            let engine = Engine::new(model.clone(), config)?;
            let began = Instant::now();
            let tokens = serve(&engine, &trace);
            let seconds = began.elapsed().as_secs_f64();
            report(name, seconds, &tokens, &engine.shutdown());
            rates.push(answer as f64 / seconds);
        }
        ratios.push(rates[1] / rates[0]);
    }
    ratios.sort_by(f64::total_cmp);
    println!("continuous / static: {:.2}x, the median of {ROUNDS} rounds", percentile(&ratios, 0.5));
    Ok(())
}
