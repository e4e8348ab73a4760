mod speculate;

use std::io::{StdoutLock, Write};
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;
use tilewright::engine::{EngineConfig, Speculation};
use tilewright::{FinishReason, GenerateParams, Model, Prompt, Timings};

use crate::args::RunArgs;
use crate::load::{check_dir, load, load_beside, read_stdin};
use crate::output::{Failure, print_json};
use speculate::Drafted;

#[derive(Serialize)]
struct Report<'a> {
    prompt_ids: &'a [u32],
    output_ids: &'a [u32],
    text: String,
    finish_reason: Option<FinishReason>,
    device: String,
    timings: JsonTimings,
    #[serde(skip_serializing_if = "Option::is_none")]
    speculation: Option<Drafted>,
}

#[derive(Serialize)]
struct JsonTimings {
    load_seconds: f64,
    #[serde(flatten)]
    timings: Timings,
    prompt_tokens_per_second: f64,
    decode_tokens_per_second: f64,
}

pub fn run(args: &RunArgs) -> Result<ExitCode, Failure> {
    let params = GenerateParams {
        max_tokens: args.max_tokens,
        sampling: args.sampling(),
        stop: args.stop.clone(),
        ignore_eos: args.ignore_eos,
        recompute: args.no_kv_cache,
        kv_dtype: args.kv_dtype,
        ..GenerateParams::default()
    };
    // Before the weights are loaded: a slip in a flag is answered at once.
    params.validate()?;
    EngineConfig { speculation: args.speculation(), max_running: 1, ..EngineConfig::default() }.validate()?;
    if let Some(dir) = &args.draft {
        check_dir("--draft", dir)?;
    }
    let text = match &args.prompt {
        Some(text) => text.clone(),
        None => read_stdin()?,
    };
    let ids = if args.ids { Some(parse_ids(&text)?) } else { None };
    let start = Instant::now();
    let model = load(&args.model)?;
    let draft = args.draft.as_ref().map(|dir| load_beside(dir, args.model.device)).transpose()?;
    let load_seconds = start.elapsed().as_secs_f64();
    let prompt = match &ids {
        Some(ids) => Prompt::Ids(ids),
        None => Prompt::Text(&text),
    };
    if args.speculation() != Speculation::Off {
        return speculate::run(args, &params, (&model, draft.as_ref()), prompt, load_seconds);
    }
    let mut generation = model.generate(prompt, &params)?;
    if args.json {
        let mut text = String::new();
        for token in &mut generation {
            text += &token?.text;
        }
        print_json(&Report {
            prompt_ids: generation.prompt_ids(),
            output_ids: generation.output_ids(),
            text,
            finish_reason: generation.finish_reason(),
            device: model.device(),
            timings: JsonTimings::of(load_seconds, generation.timings()),
            speculation: None,
        })?;
    } else {
        let has_text = model.tokenizer().is_some();
        let mut out = Printer::new(has_text);
        for token in &mut generation {
            let token = token?;
            out.print(token.id, &token.text)?;
        }
        out.finish()?;
        tell_end(&model, args, generation.finish_reason(), generation.output_ids().len());
        tell_speed(&model, generation.timings());
    }
    Ok(ExitCode::SUCCESS)
}

impl JsonTimings {
    fn of(load_seconds: f64, timings: Timings) -> JsonTimings {
        JsonTimings {
            load_seconds,
            timings,
            prompt_tokens_per_second: timings.prompt_rate(),
            decode_tokens_per_second: timings.decode_rate(),
        }
    }
}

/// Prints each token as it comes: its text, or its id where there's no tokenizer.
struct Printer {
    out: StdoutLock<'static>,
    has_text: bool,
}

impl Printer {
    fn new(has_text: bool) -> Printer {
        Printer { out: std::io::stdout().lock(), has_text }
    }

    fn print(&mut self, id: u32, text: &str) -> Result<(), Failure> {
        if self.has_text {
            self.out.write_all(text.as_bytes())?;
        } else {
            write!(self.out, "{id} ")?;
        }
        Ok(self.out.flush()?)
    }

    fn finish(&mut self) -> Result<(), Failure> {
        writeln!(self.out)?;
        Ok(self.out.flush()?)
    }
}

/// A line where the text ended before it was as long as asked, and no token says why.
fn tell_end(model: &Model, args: &RunArgs, finish: Option<FinishReason>, tokens: usize) {
    if finish == Some(FinishReason::Context) {
        let (context, asked) = (model.config().context, args.max_tokens);
        eprintln!(
            "note: the model's context of {context} tokens ended the text after {tokens} of the {asked} asked for"
        );
    }
}

fn tell_speed(model: &Model, timings: Timings) {
    eprintln!(
        "{}: prompt {} tokens, {:.1} tok/s; decode {} tokens, {:.1} tok/s",
        model.device(),
        timings.prompt_tokens,
        timings.prompt_rate(),
        timings.decode_tokens,
        timings.decode_rate()
    );
}

/// Token ids separated by commas or spaces.
pub fn parse_ids(text: &str) -> Result<Vec<u32>, Failure> {
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse().map_err(|_| {
                Failure::Message(format!(
                    "prompt: expected token ids separated by commas or spaces, found {part:?}"
                ))
            })
        })
        .collect()
}
