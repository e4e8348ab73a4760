use std::process::ExitCode;

use tilewright::config::FrequencyPrecision;
use tilewright::verify::{GreedyVerdict, Verification, verify};

use crate::args::VerifyArgs;
use crate::load::{check_dir, tell_why_no_gpu};
use crate::output::{Failure, print_json, print_line};

pub fn run(args: &VerifyArgs) -> Result<ExitCode, Failure> {
    check_dir("DIR", &args.dir)?;
    let expected = args.expected.as_deref();
    let verification = verify(&args.dir, expected, args.device).map_err(|error| {
        match expected.is_some() && error.path() == expected {
            true => Failure::Message(format!("--expected: {error}")),
            false => Failure::from(error),
        }
    })?;
    tell_why_no_gpu(verification.no_gpu.as_deref());
    if args.json {
        print_json(&verification)?;
    } else {
        print_line(&in_words(&verification))?;
    }
    Ok(if verification.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn in_words(verification: &Verification) -> String {
    let mut lines =
        vec![format!("device: {}", verification.device), format!("bound:  {}", verification.bound)];
    if verification.rope_frequencies == FrequencyPrecision::Bf16 {
        lines.push(
            "rope:   the expected values come of frequencies rounded to bf16 (model.to(bfloat16)); so do these"
                .to_string(),
        );
    }
    for tensor in &verification.tensors {
        lines.push(format!(
            "{} {:?}: worst error {:.3e} at {:?} (expected {}, found {}), bound {:.3e}: {}",
            tensor.name,
            tensor.shape,
            tensor.worst_error,
            tensor.coordinate,
            tensor.expected,
            tensor.found,
            tensor.bound,
            verdict(tensor.passed)
        ));
    }
    lines.extend(verification.greedy.iter().map(greedy_line));
    lines.push(if verification.passed { "passed" } else { "FAILED" }.to_string());
    lines.join("\n")
}

fn greedy_line(greedy: &GreedyVerdict) -> String {
    let limit = match greedy.gap {
        Some(gap) => format!(
            "; decided up to step {}, where the two best logits lie only {gap:.4} apart",
            greedy.decided_steps
        ),
        None => String::new(),
    };
    format!(
        "greedy {}: {} of {} steps equal{limit}: {}",
        greedy.row,
        greedy.equal_steps,
        greedy.steps,
        verdict(greedy.passed)
    )
}

fn verdict(passed: bool) -> &'static str {
    if passed { "ok" } else { "WRONG" }
}
