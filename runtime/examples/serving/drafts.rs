//! What drafts are worth, by their number and by the number of sequences.

use std::time::Instant;

use tilewright::engine::{DraftLength, Engine, EngineConfig, EngineStats, Request, Speculation};
use tilewright::{Model, Result};

/// Code of the kind that the demo models were trained on.
const CODE: [&str; 4] = [
    "impl<T> Stack<T> {\n    pub fn new() -> Self {\n",
    "fn main() {\n    let mut v = Vec::new();\n",
    "#[derive(Debug, Clone)]\npub struct Config {\n",
    "use std::collections::HashMap;\n\nfn count(words: &[&str]) -> ",
];
/// Code that repeats itself.
const REPETITIVE: &str = "match token {\n    Token::Plus => Op::Plus,\n    Token::Minus => Op::Minus,\n    Token::Star => Op::Star,\n    Token::Slash => Op::Slash,\n    Token::Percent => Op::Percent,\n    Token::Caret => Op::Caret,\n    Token::And => Op::And,\n    Token::Or => Op::Or,\n    Token::";
const TOKENS: usize = 160;
/// Runs of which the best counts.
const RUNS: usize = 3;

struct Measured {
    tokens_per_second: f64,
    stats: EngineStats,
}

fn run(target: &Model, draft: &Model, prompts: &[Vec<u32>], speculation: Speculation) -> Result<Measured> {
    let config =
        EngineConfig { speculation, max_running: 16, prefix_cache: false, ..EngineConfig::default() };
    let engine = Engine::with_draft(target.clone(), draft, config)?;
    let mut best = 0.0f64;
    for _ in 0..RUNS {
        let began = Instant::now();
        let request = |prompt: &Vec<u32>| Request {
            max_tokens: TOKENS,
            ignore_eos: true,
            ..Request::new(prompt.clone())
        };
        let streams =
            prompts.iter().map(|prompt| engine.submit(request(prompt))).collect::<Result<Vec<_>>>()?;
        let mut tokens = 0;
        for stream in streams {
            for output in stream {
                output?;
                tokens += 1;
            }
        }
        best = best.max(tokens as f64 / began.elapsed().as_secs_f64());
    }
    Ok(Measured { tokens_per_second: best, stats: engine.shutdown() })
}

fn table(
    target: &Model,
    draft: &Model,
    what: &str,
    prompts: &[Vec<u32>],
    of: fn(DraftLength) -> Speculation,
) -> Result<()> {
    println!("{what}, {} sequences, {TOKENS} tokens each, greedy", prompts.len());
    let off = run(target, draft, prompts, Speculation::Off)?;
    println!("  off        {:7.1} tok/s", off.tokens_per_second);
    let lengths = [1, 2, 3, 4, 6, 8].map(DraftLength::Fixed);
    for length in lengths.into_iter().chain([DraftLength::Adaptive(8)]) {
        let Measured { tokens_per_second, stats } = run(target, draft, prompts, of(length))?;
        println!(
            "  {:10} {tokens_per_second:7.1} tok/s, {:.2}x; {:3.0}% of {} drafts stood, {:.2} tokens a step with drafts",
            match length {
                DraftLength::Fixed(drafts) => format!("K = {drafts}"),
                DraftLength::Adaptive(_) => "adaptive".to_string(),
            },
            tokens_per_second / off.tokens_per_second,
            100.0 * stats.accepted as f64 / stats.drafts.max(1) as f64,
            stats.drafts,
            1.0 + stats.accepted as f64 / stats.verified.max(1) as f64,
        );
    }
    Ok(())
}

/// The tables of both kinds of drafts.
pub fn measure(target: &Model, draft: &Model) -> Result<()> {
    let Some(tokenizer) = target.tokenizer() else { return Ok(()) };
    let encode = |text: &str| tokenizer.encode(text);
    let code = CODE.iter().map(|text| encode(text)).collect::<Result<Vec<_>>>()?;
    let many: Vec<_> = code.iter().cycle().take(16).cloned().collect();
    let repetitive = [encode(REPETITIVE)?];
    for prompts in [&code[..1], &code, &many] {
        table(target, draft, "drafts of the draft model", prompts, Speculation::DraftModel)?;
    }
    table(target, draft, "drafts by lookup, repetitive code", &repetitive, Speculation::NGram)?;
    table(target, draft, "drafts by lookup, code", &code[..1], Speculation::NGram)?;
    Ok(())
}
