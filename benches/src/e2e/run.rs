//! Requests through the engine, timed.

use std::time::Instant;

use serde::Serialize;
use tilewright::{
    Engine, Model, Penalties, SamplingParams,
    engine::{EngineConfig, EngineStats, Request},
    ladder::{WIDEST_SPREAD, quantile, spread},
};

use super::shape::{token_bytes, weight_bytes};
use crate::{Error, Result};

/// Tokens a page.
const PAGE_SIZE: usize = 16;
/// Rows of a step, at least: prompts of a batch are computed in few steps.
const STEP_TOKENS: usize = 2048;

/// What is asked of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Requests at a time.
    pub batches: Vec<usize>,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens of each answer.
    pub new_tokens: usize,
    /// Timings, of which the median is told.
    pub runs: usize,
    /// Bytes a second that the device reads at most, if known.
    pub read_bytes_per_second: f64,
    /// How each token is chosen.
    pub choice: Choice,
}

/// How tokens are chosen. The default is greedy.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Choice {
    pub sampling: SamplingParams,
    pub penalties: Penalties,
}

/// What a batch came to. Times are medians.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// Requests at a time.
    pub batch: usize,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens of each answer.
    pub new_tokens: usize,
    /// From the first request to the last answer's end: prompts, then tokens.
    pub seconds: f64,
    /// The same of answers of one token.
    pub prompt_seconds: f64,
    /// Tokens of all answers, a second of `seconds`.
    pub tokens_per_second: f64,
    /// Tokens of all answers but their first, a second of what `seconds` is more than `prompt_seconds`.
    pub decode_tokens_per_second: f64,
    /// Of a step that decodes.
    pub milliseconds_per_step: f64,
    /// `decode_tokens_per_second` if a step took no longer than to read the weights once.
    pub wall_tokens_per_second: f64,
    /// The part of the wall that decoding reaches.
    pub of_wall: f64,
    /// The same of a wall that counts the keys and values that a step reads.
    pub of_wall_with_cache: f64,
    /// Of the time of all steps, that in which the device had nothing to do for certain: planning, committing, and telling with no step
    /// under way.
    pub host_share: f64,
    /// Launches a step that decodes; 0 where they aren't counted.
    pub launches_per_step: f64,
    /// Of them those that went to the device one by one, not as part of a graph.
    pub single_launches_per_step: f64,
    /// How far apart the outer tenths of `seconds` or of `prompt_seconds` are, whichever are farther, as a part of the median.
    pub spread: f64,
    /// Whether that is so far that the machine must have done something else: then this is no result.
    pub disturbed: bool,
}

/// Launches so far: all of them, and those outside of graphs.
pub type Launches<'a> = &'a dyn Fn() -> [u64; 2];

struct Run {
    seconds: f64,
    answers: Vec<Vec<u32>>,
    steps: usize,
    /// As [`EngineStats::host_seconds`].
    host_seconds: f64,
    /// Of whole steps.
    step_seconds: f64,
    launches: [u64; 2],
}

/// Measures each batch of a plan. The first request of every batch is the same, and so must its answer be: `alone`, once it is known.
///
/// # Errors
/// A plan without tokens; the engine's own; an answer that depends on its batch, or on the run.
pub fn measure(
    model: &Model,
    plan: &Plan,
    launches: Launches<'_>,
    alone: &mut Option<Vec<u32>>,
) -> Result<Vec<Cell>> {
    if plan.prompt == 0 || plan.new_tokens < 2 || plan.runs == 0 || plan.batches.contains(&0) {
        return Err(Error::Plan("expected a prompt, at least 2 new tokens, a run and batches above 0"));
    }
    let mut cells = Vec::new();
    for &batch in &plan.batches {
        let (cell, answer) = measure_batch(model, plan, batch, launches)?;
        let expected = alone.get_or_insert_with(|| answer.clone());
        if *expected != answer {
            return Err(different(format!("in a batch of {batch}"), expected, &answer));
        }
        cells.push(cell);
    }
    Ok(cells)
}

/// Also returns the answer of the first request.
fn measure_batch(
    model: &Model,
    plan: &Plan,
    batch: usize,
    launches: Launches<'_>,
) -> Result<(Cell, Vec<u32>)> {
    let engine = engine(model, plan.prompt, batch, plan.new_tokens)?;
    let run = |new_tokens| run(&engine, plan.prompt, batch, new_tokens, plan.choice, launches);
    let mut prompts = Vec::new();
    let mut whole = Vec::new();
    // One more than asked for: the first warms up.
    for _ in 0..=plan.runs {
        prompts.push(run(1)?);
        whole.push(run(plan.new_tokens)?);
    }
    let answers = whole[0].answers.clone();
    for other in &whole[1..] {
        if let Some(at) = (0..batch).find(|&at| other.answers[at] != answers[at]) {
            return Err(different("in another run".into(), &answers[at], &other.answers[at]));
        }
    }
    let (timed, timed_prompt) = (&whole[1], &prompts[1]);
    let decode_steps = timed.steps.saturating_sub(timed_prompt.steps).max(1) as f64;
    let a_step = |which: usize| {
        timed.launches[which].saturating_sub(timed_prompt.launches[which]) as f64 / decode_steps
    };
    let (seconds, of_whole) = median_and_spread(&whole[1..]);
    let (prompt_seconds, of_prompts) = median_and_spread(&prompts[1..]);
    let spread = of_whole.max(of_prompts);
    // Prompts are timed by themselves: on a busy machine they may seem to take longer than prompts and answers did.
    let decoding = if seconds > prompt_seconds { seconds - prompt_seconds } else { seconds };
    let config = model.config();
    let decode_tokens_per_second = (batch * (plan.new_tokens - 1)) as f64 / decoding;
    let wall = |bytes: f64| batch as f64 * plan.read_bytes_per_second / bytes;
    let wall_tokens_per_second = wall(weight_bytes(config));
    let mean_len = plan.prompt as f64 + plan.new_tokens as f64 / 2.0;
    let with_cache = wall(weight_bytes(config) + batch as f64 * mean_len * token_bytes(config));
    let cell = Cell {
        batch,
        prompt: plan.prompt,
        new_tokens: plan.new_tokens,
        seconds,
        prompt_seconds,
        tokens_per_second: (batch * plan.new_tokens) as f64 / seconds,
        decode_tokens_per_second,
        milliseconds_per_step: decoding * 1e3 / (plan.new_tokens - 1) as f64,
        wall_tokens_per_second,
        of_wall: decode_tokens_per_second / wall_tokens_per_second,
        of_wall_with_cache: decode_tokens_per_second / with_cache,
        host_share: timed.host_seconds / timed.step_seconds.max(f64::MIN_POSITIVE),
        launches_per_step: a_step(0),
        single_launches_per_step: a_step(1),
        spread,
        disturbed: spread > WIDEST_SPREAD,
    };
    Ok((cell, answers.into_iter().next().unwrap_or_default()))
}

/// One run of a batch; returns how many steps it took.
///
/// # Errors
/// The engine's own.
pub fn once(model: &Model, prompt: usize, batch: usize, new_tokens: usize, choice: Choice) -> Result<usize> {
    let engine = engine(model, prompt, batch, new_tokens)?;
    Ok(run(&engine, prompt, batch, new_tokens, choice, &|| [0; 2])?.steps)
}

/// An engine with room for a batch.
fn engine(model: &Model, prompt: usize, batch: usize, new_tokens: usize) -> Result<Engine> {
    let tokens = (prompt + new_tokens).next_multiple_of(PAGE_SIZE) * batch;
    let config = EngineConfig {
        cache_tokens: tokens,
        page_size: PAGE_SIZE,
        step_tokens: STEP_TOKENS.max(batch + prompt),
        chunk_tokens: STEP_TOKENS,
        max_running: batch,
        prefix_cache: false,
        ..EngineConfig::default()
    };
    Ok(Engine::new(model.clone(), config)?)
}

/// A batch of requests, from an idle engine until it's idle again.
fn run(
    engine: &Engine,
    prompt: usize,
    batch: usize,
    new_tokens: usize,
    Choice { sampling, penalties }: Choice,
    launches: Launches<'_>,
) -> Result<Run> {
    let vocab = engine.model().config().vocab_size;
    let (before, stats_before) = (launches(), engine.stats());
    let began = Instant::now();
    let mut streams = Vec::with_capacity(batch);
    for request in 0..batch {
        let prompt = (0..prompt).map(|at| ((request * 7919 + at * 104_729 + 1) % vocab) as u32);
        let prompt: Vec<u32> = prompt.collect();
        let request =
            Request { max_tokens: new_tokens, ignore_eos: true, sampling, penalties, ..Request::new(prompt) };
        streams.push(engine.submit(request)?);
    }
    let mut answers = Vec::with_capacity(batch);
    for stream in streams {
        let ids = stream.map(|output| output.map(|output| output.id));
        answers.push(ids.collect::<tilewright::Result<Vec<u32>>>()?);
    }
    let seconds = began.elapsed().as_secs_f64();
    // The last token is out before its step is counted.
    let mut stats = engine.stats();
    while stats.tokens < stats_before.tokens + batch * new_tokens {
        std::thread::yield_now();
        stats = engine.stats();
    }
    let after = launches();
    let since = |seconds: fn(&EngineStats) -> f64| seconds(&stats) - seconds(&stats_before);
    Ok(Run {
        seconds,
        answers,
        steps: stats.steps - stats_before.steps,
        host_seconds: since(EngineStats::host_seconds),
        step_seconds: since(EngineStats::step_seconds),
        launches: [0, 1].map(|which| after[which] - before[which]),
    })
}

/// Of what runs took.
fn median_and_spread(runs: &[Run]) -> (f64, f64) {
    let mut seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    (quantile(&seconds, 0.5), spread(&seconds))
}

fn different(which: String, expected: &[u32], found: &[u32]) -> Error {
    let at = expected.iter().zip(found).position(|(a, b)| a != b).unwrap_or(expected.len().min(found.len()));
    Error::Wrong {
        kernel: "the engine",
        problem: format!("a request {which}"),
        what: format!("token {at} is {:?}, not {:?}", found.get(at), expected.get(at)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::{self, Weights};
    use super::*;
    use tilewright::DeviceChoice;

    #[test]
    fn a_tiny_model_is_measured_on_the_cpu() {
        for weights in [Weights::Bf16, Weights::Int4, Weights::W8a8] {
            let config = shape::config("tiny", weights).expect("a shape");
            let model = Model::random(config, 7, DeviceChoice::Cpu).expect("a model");
            let plan = Plan {
                batches: vec![1, 3],
                prompt: 20,
                new_tokens: 5,
                runs: 1,
                read_bytes_per_second: 1e10,
                choice: Choice::default(),
            };
            let cells = measure(&model, &plan, &|| [0; 2], &mut None).expect("measured");
            assert_eq!(cells.iter().map(|cell| cell.batch).collect::<Vec<_>>(), [1, 3]);
            for cell in cells {
                assert!(cell.seconds > 0.0 && cell.prompt_seconds > 0.0, "{cell:?}");
                let tokens = (cell.batch * 5) as f64;
                assert!((cell.tokens_per_second * cell.seconds / tokens - 1.0).abs() < 1e-9, "{cell:?}");
                // Of one run there is nothing to compare it with.
                assert!(cell.spread == 0.0 && !cell.disturbed, "{cell:?}");
                assert!(cell.of_wall.is_finite() && cell.of_wall_with_cache > cell.of_wall, "{cell:?}");
            }
        }
    }

    #[test]
    fn times_have_a_median_and_a_spread() {
        let run = |seconds| Run {
            seconds,
            answers: Vec::new(),
            steps: 1,
            host_seconds: 0.0,
            step_seconds: 0.0,
            launches: [0; 2],
        };
        let of = |seconds: &[f64]| {
            median_and_spread(&seconds.iter().map(|&seconds| run(seconds)).collect::<Vec<_>>())
        };
        assert_eq!(of(&[2.0]), (2.0, 0.0));
        assert_eq!(of(&[3.0, 1.0]).0, 2.0);
        let (median, spread) = of(&[1.0, 4.0, 2.0]);
        assert!(median == 2.0 && (spread - 1.2).abs() < 1e-12, "{spread}");
    }

    #[test]
    fn a_plan_of_nothing_is_refused() {
        let config = shape::config("tiny", Weights::Bf16).expect("a shape");
        let model = Model::random(config, 7, DeviceChoice::Cpu).expect("a model");
        let plan = Plan {
            batches: vec![0],
            prompt: 1,
            new_tokens: 2,
            runs: 1,
            read_bytes_per_second: 1.0,
            choice: Choice::default(),
        };
        assert!(measure(&model, &plan, &|| [0; 2], &mut None).is_err());
    }
}
