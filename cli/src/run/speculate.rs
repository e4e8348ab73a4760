//! A prompt continued with drafts, which takes the engine.

use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;
use tilewright::engine::{Engine, EngineConfig, EngineStats, Request};
use tilewright::{GenerateParams, Model, Prompt, Timings};

use super::{JsonTimings, Printer, Report, tell_end, tell_speed};
use crate::args::RunArgs;
use crate::output::{Failure, print_json};

/// What became of drafts.
#[derive(Serialize)]
pub(super) struct Drafted {
    drafts: usize,
    accepted: usize,
    /// Tokens of a step that verified drafts, on average.
    mean_tokens_per_step: f64,
}

impl Drafted {
    fn of(stats: &EngineStats) -> Drafted {
        let mean = match stats.verified {
            0 => 1.0,
            verified => 1.0 + stats.accepted as f64 / verified as f64,
        };
        Drafted { drafts: stats.drafts, accepted: stats.accepted, mean_tokens_per_step: mean }
    }
}

/// Room for one sequence as long as it may get.
fn config(args: &RunArgs, context: usize, longest: usize) -> EngineConfig {
    let page_size = EngineConfig::default().page_size;
    EngineConfig {
        cache_tokens: longest.min(context).next_multiple_of(page_size),
        max_running: 1,
        prefix_cache: false,
        speculation: args.speculation(),
        kv_dtype: args.kv_dtype,
        ..EngineConfig::default()
    }
}

pub(super) fn run(
    args: &RunArgs,
    params: &GenerateParams,
    (model, draft): (&Model, Option<&Model>),
    prompt: Prompt<'_>,
    load_seconds: f64,
) -> Result<ExitCode, Failure> {
    let prompt = model.encode(prompt)?;
    let longest = prompt.len().saturating_add(params.max_tokens);
    let config = config(args, model.config().context, longest);
    let request = Request {
        max_tokens: params.max_tokens,
        sampling: params.sampling,
        stop: params.stop.clone(),
        ignore_eos: params.ignore_eos,
        ..Request::new(prompt.clone())
    };
    let engine = match draft {
        Some(draft) => Engine::with_draft(model.clone(), draft, config)?,
        None => Engine::new(model.clone(), config)?,
    };
    let began = Instant::now();
    let stream = engine.submit(request)?;
    let mut printer = (!args.json).then(|| Printer::new(model.tokenizer().is_some()));
    let (mut output_ids, mut said, mut finish_reason) = (Vec::new(), String::new(), None);
    let mut timings = Timings { prompt_tokens: prompt.len(), ..Timings::default() };
    for output in stream {
        let output = output?;
        if output_ids.is_empty() {
            timings.prompt_seconds = began.elapsed().as_secs_f64();
        }
        output_ids.push(output.id);
        said += &output.text;
        finish_reason = output.finish;
        if let Some(printer) = &mut printer {
            printer.print(output.id, &output.text)?;
        }
    }
    timings.decode_tokens = output_ids.len().saturating_sub(1);
    timings.decode_seconds = began.elapsed().as_secs_f64() - timings.prompt_seconds;
    let drafted = Drafted::of(&engine.shutdown());
    if let Some(mut printer) = printer {
        printer.finish()?;
        tell_end(model, args, finish_reason, output_ids.len());
        tell_speed(model, timings);
        eprintln!(
            "drafts: {} of {} stood; {:.2} tokens a step that had some",
            drafted.accepted, drafted.drafts, drafted.mean_tokens_per_step
        );
        return Ok(ExitCode::SUCCESS);
    }
    print_json(&Report {
        prompt_ids: &prompt,
        output_ids: &output_ids,
        text: said,
        finish_reason,
        device: model.device(),
        timings: JsonTimings::of(load_seconds, timings),
        speculation: Some(drafted),
    })?;
    Ok(ExitCode::SUCCESS)
}
