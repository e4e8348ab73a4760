use std::process::ExitCode;

use tilewright::eval::evaluate_with;

use crate::args::EvalArgs;
use crate::load::{load, read_text, with_bar};
use crate::output::{Failure, print_json, print_line};

pub fn run(args: &EvalArgs) -> Result<ExitCode, Failure> {
    let text = read_text("FILE", &args.file)?;
    let model = load(&args.model)?;
    let context = args.ctx.unwrap_or(model.config().context);
    let evaluation = with_bar("{wide_bar} {pos}/{len}", |progress| {
        evaluate_with(&model, &text, context, args.kv_dtype, progress)
    });
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
