//! What drafts are worth, by their number and by the number of sequences.

use std::time::Instant;

use tilewright::engine::{DraftLength, Engine, EngineConfig, Request, Speculation};
use tilewright::ladder::trace::percentile;
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
/// As many drafts a step as are tried beside as many as pay.
const FIXED: [usize; 6] = [1, 2, 3, 4, 6, 8];
/// At most so many, where as many as pay are drafted.
const MOST: usize = 8;

fn engine(target: &Model, draft: &Model, speculation: Speculation) -> Result<Engine> {
    let config =
        EngineConfig { speculation, max_running: 16, prefix_cache: false, ..EngineConfig::default() };
    Engine::with_draft(target.clone(), draft, config)
}

/// Tokens a second over all prompts at once.
fn rate(engine: &Engine, prompts: &[Vec<u32>]) -> Result<f64> {
    let began = Instant::now();
    let request =
        |prompt: &Vec<u32>| Request { max_tokens: TOKENS, ignore_eos: true, ..Request::new(prompt.clone()) };
    let streams = prompts.iter().map(|prompt| engine.submit(request(prompt))).collect::<Result<Vec<_>>>()?;
    let mut tokens = 0;
    for stream in streams {
        for output in stream {
            output?;
            tokens += 1;
        }
    }
    Ok(f64::from(tokens) / began.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    percentile(&values, 0.5)
}

/// A row of the table: texts to go on with, and who drafts. In a round every number of drafts has its turn: ratios are of the same round, so that
/// whatever else the machine does falls on all alike. The median counts.
fn row(
    [target, draft]: [&Model; 2],
    what: &str,
    prompts: &[Vec<u32>],
    of: fn(DraftLength) -> Speculation,
    rounds: usize,
) -> Result<()> {
    let fixed = FIXED.map(|drafts| of(DraftLength::Fixed(drafts)));
    let speculations = [Speculation::Off].into_iter().chain(fixed).chain([of(DraftLength::Adaptive(MOST))]);
    let engines =
        speculations.map(|speculation| engine(target, draft, speculation)).collect::<Result<Vec<_>>>()?;
    let mut rates = vec![Vec::new(); engines.len()];
    for _ in 0..rounds {
        for (engine, rates) in engines.iter().zip(&mut rates) {
            rates.push(rate(engine, prompts)?);
        }
    }
    let off = rates.remove(0);
    print!("| {what} | {:.0} |", median(off.clone()));
    for (engine, rates) in engines.into_iter().skip(1).zip(rates) {
        let ratios = rates.iter().zip(&off).map(|(rate, off)| rate / off).collect();
        let stats = engine.shutdown();
        let stood = 100.0 * stats.accepted as f64 / stats.drafts.max(1) as f64;
        let tokens = 1.0 + stats.accepted as f64 / stats.verified.max(1) as f64;
        print!(" {:.2}x, {stood:.0}%, {tokens:.2} |", median(ratios));
    }
    println!();
    Ok(())
}

/// The table of both kinds of drafts, a row once it is measured.
pub fn measure(target: &Model, draft: &Model, rounds: usize) -> Result<()> {
    let Some(tokenizer) = target.tokenizer() else { return Ok(()) };
    let encode = |text: &str| tokenizer.encode(text);
    let code = CODE.iter().map(|text| encode(text)).collect::<Result<Vec<_>>>()?;
    let many: Vec<_> = code.iter().cycle().take(16).cloned().collect();
    let repetitive = [encode(REPETITIVE)?];
    println!("greedy, {TOKENS} tokens a sequence, {rounds} rounds");
    println!("speed over no drafts, share of drafts that stood, tokens of a step that had some");
    let fixed = FIXED.map(|drafts| format!(" K = {drafts} |")).concat();
    println!("| drafts | off, tok/s |{fixed} adaptive |\n|---|---|{}---|", "---|".repeat(FIXED.len()));
    for prompts in [&code[..1], &code, &many] {
        let what = format!("model, {}", prompts.len());
        row([target, draft], &what, prompts, Speculation::DraftModel, rounds)?;
    }
    row([target, draft], "lookup, repetitive code", &repetitive, Speculation::NGram, rounds)?;
    row([target, draft], "lookup, code", &code[..1], Speculation::NGram, rounds)
}
