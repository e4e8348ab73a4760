//! A trace of requests, and how an engine serves it: lengths log-normal, arrivals Poisson.

use std::time::{Duration, Instant};

use crate::engine::{Engine, Request};
use crate::{Error, Result};

/// What a trace is drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TraceSpec {
    /// Requests.
    pub requests: usize,
    /// Requests a second.
    pub rate: f64,
    /// Tokens of a prompt: median and most.
    pub prompt_tokens: (f64, usize),
    /// Tokens of an answer: median and most.
    pub answer_tokens: (f64, usize),
}

impl Default for TraceSpec {
    /// Ninety-six requests, faster than a demo model on a CPU serves them.
    fn default() -> Self {
        TraceSpec { requests: 96, rate: 40.0, prompt_tokens: (48.0, 512), answer_tokens: (32.0, 320) }
    }
}

/// A request and when it comes.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// Seconds from the trace's start.
    pub seconds: f64,
    /// The request.
    pub request: Request,
}

/// Numbers of the distributions that a trace takes.
struct Numbers(u64);

impl Numbers {
    /// Uniform in (0, 1).
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Log-normal of that median and spread, within bounds.
    fn length(&mut self, (median, most): (f64, usize), sigma: f64) -> usize {
        // Box and Muller, 1958.
        let normal = (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos();
        ((median * (sigma * normal).exp()) as usize).clamp(1, most)
    }
}

/// Requests come so many times as fast as they were served: slower, and their coming would be what is measured.
const OFFERED: f64 = 2.0;

impl TraceSpec {
    /// All requests at once.
    pub fn at_once(self) -> TraceSpec {
        TraceSpec { rate: 1e9, ..self }
    }

    /// Requests that come at least twice as fast as an engine that served them in `seconds` when they came at once.
    pub fn offered(self, seconds: f64) -> TraceSpec {
        TraceSpec { rate: self.rate.max(OFFERED * self.requests as f64 / seconds), ..self }
    }

    /// The same requests each time, of tokens below `vocab`.
    pub fn draw(&self, vocab: usize) -> Vec<Arrival> {
        let mut numbers = Numbers(7);
        let mut seconds = 0.0;
        let arrival = |_| {
            seconds += -numbers.uniform().ln() / self.rate;
            let len = numbers.length(self.prompt_tokens, 0.8);
            let prompt: Vec<u32> = (0..len).map(|_| (numbers.uniform() * vocab as f64) as u32).collect();
            let max_tokens = numbers.length(self.answer_tokens, 1.0);
            Arrival { seconds, request: Request { max_tokens, ignore_eos: true, ..Request::new(prompt) } }
        };
        (0..self.requests).map(arrival).collect()
    }
}

/// Tokens of all answers.
pub fn answer_tokens(trace: &[Arrival]) -> usize {
    trace.iter().map(|arrival| arrival.request.max_tokens).sum()
}

/// Serves a trace as it comes; of each request the seconds from its arrival to each token.
///
/// # Errors
/// A request that is refused or fails.
pub fn serve(engine: &Engine, trace: &[Arrival]) -> Result<Vec<Vec<f64>>> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let mut readers = Vec::with_capacity(trace.len());
        for arrival in trace {
            let at = Duration::from_secs_f64(arrival.seconds);
            std::thread::sleep(at.saturating_sub(began.elapsed()));
            let stream = engine.submit(arrival.request.clone())?;
            readers.push(scope.spawn(move || {
                let seconds =
                    |token: Result<_>| token.map(|_| began.elapsed().saturating_sub(at).as_secs_f64());
                stream.map(seconds).collect::<Result<Vec<f64>>>()
            }));
        }
        // A reader that panicked has nothing to tell; none does.
        readers.into_iter().map(|reader| reader.join().unwrap_or(Err(Error::Stopped))).collect()
    })
}

/// Of what [`serve`] answers, in ascending order: the seconds from each request's arrival to its first token, and those from each token to the
/// next.
pub fn latencies(tokens: &[Vec<f64>]) -> [Vec<f64>; 2] {
    let first = tokens.iter().filter_map(|of| of.first().copied()).collect();
    let between = tokens.iter().flat_map(|of| of.windows(2).map(|two| two[1] - two[0])).collect();
    [first, between].map(|mut seconds: Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        seconds
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_the_same_each_time_and_within_bounds() {
        let spec = TraceSpec::default();
        let trace = spec.draw(100);
        assert_eq!(trace, spec.draw(100));
        assert_eq!(trace.len(), 96);
        assert!(trace.windows(2).all(|two| two[0].seconds < two[1].seconds));
        for Arrival { request, .. } in &trace {
            assert!((1..=512).contains(&request.prompt.len()) && (1..=320).contains(&request.max_tokens));
            assert!(request.prompt.iter().all(|&token| token < 100));
        }
        assert_eq!(spec.offered(100.0), spec);
        assert!((spec.offered(0.1).rate - 1920.0).abs() < 1e-6);
        assert!(spec.at_once().draw(100).last().is_some_and(|last| last.seconds < 1e-3));
        let mean = trace.last().map_or(0.0, |last| last.seconds) / 96.0;
        assert!((mean * spec.rate - 1.0).abs() < 0.3, "{mean}");
    }

    #[test]
    fn latencies_are_told_apart_and_sorted() {
        let [first, between] = latencies(&[vec![0.5, 0.75, 1.5], vec![], vec![0.25]]);
        assert_eq!((&first[..], &between[..]), (&[0.25, 0.5][..], &[0.25, 0.75][..]));
    }
}
