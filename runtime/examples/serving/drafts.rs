//! What drafts are worth, by their number and by the number of sequences.

use std::time::Instant;

use tilewright::engine::{DraftLength, Engine, EngineConfig, Request, Speculation};
use tilewright::ladder::quantile;
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
/// As many drafts a step as are tried beside as many as pay.
const FIXED: [usize; 6] = [1, 2, 3, 4, 6, 8];
/// At most so many, where as many as pay are drafted.
const MOST: usize = 8;

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Size {
    pub rounds: usize,
    /// Of an answer.
    pub tokens: usize,
}

fn engine(target: &Model, draft: &Model, speculation: Speculation) -> Result<Engine> {
    let config =
        EngineConfig { speculation, max_running: 16, prefix_cache: false, ..EngineConfig::default() };
    Engine::with_draft(target.clone(), draft, config)
}

/// Tokens a second over all prompts at once.
fn rate(engine: &Engine, prompts: &[Vec<u32>], max_tokens: usize) -> Result<f64> {
    let began = Instant::now();
    let request =
        |prompt: &Vec<u32>| Request { max_tokens, ignore_eos: true, ..Request::new(prompt.clone()) };
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
    quantile(&values, 0.5)
}

/// A number of drafts, and its tokens a second over none's, of each round.
struct Column {
    engine: Engine,
    ratios: Vec<f64>,
}

impl Column {
    fn new([target, draft]: [&Model; 2], speculation: Speculation) -> Result<Column> {
        Ok(Column { engine: engine(target, draft, speculation)?, ratios: Vec::new() })
    }

    /// The median round's, and what became of its drafts.
    fn print(self) {
        let stats = self.engine.shutdown();
        let stood = 100.0 * stats.accepted as f64 / stats.drafts.max(1) as f64;
        let tokens = 1.0 + stats.accepted as f64 / stats.verified.max(1) as f64;
        print!(" {:.2}x, {stood:.0}%, {tokens:.2} |", median(self.ratios));
    }
}

/// A row of the table: texts to go on with, and who drafts. In a round every number of drafts has its turn, and none two, before and after
/// as many as pay: ratios are of the same round, so that whatever else the machine does falls on all alike. The median counts; of as many
/// as pay all rounds' time, too, in which is what was tried in vain.
fn row(
    models: [&Model; 2],
    what: &str,
    prompts: &[Vec<u32>],
    of: fn(DraftLength) -> Speculation,
    size: Size,
) -> Result<()> {
    let none = engine(models[0], models[1], Speculation::Off)?;
    let column = |length| Column::new(models, of(length));
    let mut fixed = FIXED.map(DraftLength::Fixed).map(column).into_iter().collect::<Result<Vec<_>>>()?;
    let mut adaptive = column(DraftLength::Adaptive(MOST))?;
    let mut rates = Vec::new();
    let rate = |engine: &Engine| rate(engine, prompts, size.tokens);
    for _ in 0..size.rounds {
        let fixed_rates = fixed.iter().map(|it| rate(&it.engine)).collect::<Result<Vec<_>>>()?;
        let before = rate(&none)?;
        let adaptive_rate = rate(&adaptive.engine)?;
        let off = 2.0 / (1.0 / before + 1.0 / rate(&none)?);
        for (column, rate) in fixed.iter_mut().zip(fixed_rates) {
            column.ratios.push(rate / off);
        }
        adaptive.ratios.push(adaptive_rate / off);
        rates.push(off);
    }
    let seconds = |rates: Vec<f64>| rates.iter().map(|rate| 1.0 / rate).sum::<f64>();
    let adaptive_rates = adaptive.ratios.iter().zip(&rates).map(|(ratio, off)| ratio * off).collect();
    let whole = seconds(rates.clone()) / seconds(adaptive_rates);
    print!("| {what} | {:.0} |", median(rates));
    fixed.into_iter().for_each(Column::print);
    adaptive.print();
    println!(" {whole:.2}x |");
    Ok(())
}

/// The table of both kinds of drafts, a row once it is measured.
pub fn measure(target: &Model, draft: &Model, size: Size) -> Result<()> {
    let Some(tokenizer) = target.tokenizer() else { return Ok(()) };
    let encode = |text: &str| tokenizer.encode(text);
    let code = CODE.iter().map(|text| encode(text)).collect::<Result<Vec<_>>>()?;
    let many: Vec<_> = code.iter().cycle().take(16).cloned().collect();
    let repetitive = [encode(REPETITIVE)?];
    println!("greedy, {} tokens a sequence, {} rounds", size.tokens, size.rounds);
    println!("speed over no drafts, share of drafts that stood, tokens of a step that had some");
    let fixed = FIXED.map(|drafts| format!(" K = {drafts} |")).concat();
    println!(
        "| drafts | off, tok/s |{fixed} adaptive | all rounds |\n|---|---|{}---|---|",
        "---|".repeat(FIXED.len())
    );
    for prompts in [&code[..1], &code, &many] {
        let what = format!("model, {}", prompts.len());
        row([target, draft], &what, prompts, Speculation::DraftModel, size)?;
    }
    row([target, draft], "lookup, repetitive code", &repetitive, Speculation::NGram, size)?;
    row([target, draft], "lookup, code", &code[..1], Speculation::NGram, size)
}
