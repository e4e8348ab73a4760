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
/// Rounds in which every number of drafts has its turn: ratios are of the same round, so that whatever else the machine does
/// falls on all alike. The median counts.
const ROUNDS: usize = 5;

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

fn table(
    target: &Model,
    draft: &Model,
    what: &str,
    prompts: &[Vec<u32>],
    of: fn(DraftLength) -> Speculation,
) -> Result<()> {
    println!("{what}, {} sequences, {TOKENS} tokens each, greedy", prompts.len());
    let lengths = [1, 2, 3, 4, 6, 8].map(|drafts| (format!("K = {drafts}"), of(DraftLength::Fixed(drafts))));
    let adaptive = ("adaptive".to_string(), of(DraftLength::Adaptive(8)));
    let cells: Vec<_> =
        [("off".to_string(), Speculation::Off)].into_iter().chain(lengths).chain([adaptive]).collect();
    let engines = cells
        .iter()
        .map(|(_, speculation)| engine(target, draft, *speculation))
        .collect::<Result<Vec<_>>>()?;
    let mut rates = vec![Vec::new(); cells.len()];
    for _ in 0..ROUNDS {
        for (engine, rates) in engines.iter().zip(&mut rates) {
            rates.push(rate(engine, prompts)?);
        }
    }
    for ((name, _), (engine, found)) in cells.iter().zip(engines.into_iter().zip(&rates)) {
        let ratios = found.iter().zip(&rates[0]).map(|(rate, off)| rate / off).collect();
        let stats = engine.shutdown();
        println!(
            "  {name:10} {:7.1} tok/s, {:.2}x; {:3.0}% of {} drafts stood, {:.2} tokens a step with drafts",
            median(found.clone()),
            median(ratios),
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
