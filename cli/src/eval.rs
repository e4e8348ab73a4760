use std::io::IsTerminal;
use std::process::ExitCode;

use tilewright::eval::evaluate_with;

use crate::args::EvalArgs;
use crate::load::load;
use crate::output::{Failure, print_json, print_line};

pub fn run(args: &EvalArgs) -> Result<ExitCode, Failure> {
    let in_file =
        |error: &dyn std::fmt::Display| Failure::Message(format!("{}: {error}", args.file.display()));
    let bytes = std::fs::read(&args.file).map_err(|error| in_file(&error))?;
    let text = String::from_utf8(bytes)
        .map_err(|error| in_file(&format!("expected UTF-8 text, found {}", error.utf8_error())))?;
    let model = load(&args.model)?;
    let context = args.ctx.unwrap_or(model.config().context);
    let bar = indicatif::ProgressBar::no_length();
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let evaluation = evaluate_with(&model, &text, context, args.kv_dtype, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let evaluation = evaluation?;
    if args.json {
        print_json(&evaluation)?;
    } else {
        print_line(&format!(
            "nll {:.4} nats a token, perplexity {:.3}, over {} tokens in {} windows of {}",
            evaluation.nll, evaluation.perplexity, evaluation.tokens, evaluation.windows, evaluation.context
        ))?;
        eprintln!(
            "{}: {:.1} s, {:.1} tok/s",
            model.device(),
            evaluation.seconds,
            evaluation.tokens as f64 / evaluation.seconds
        );
    }
    Ok(ExitCode::SUCCESS)
}
