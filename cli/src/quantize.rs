use std::fmt::Display;
use std::io::IsTerminal;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tilewright::quantise::{Method, QuantiseOptions, QuantiseReport, quantise};

use crate::args::QuantizeArgs;
use crate::load::default_model_dir;
use crate::output::{Failure, bytes_in_words, print_json, print_line};

pub fn run(args: &QuantizeArgs) -> Result<ExitCode, Failure> {
    let dir = args.model.clone().unwrap_or_else(default_model_dir);
    let options = options(args)?;
    let bar = ProgressBar::no_length();
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("quantising {bar:30} {pos}/{len} {elapsed}") {
        bar.set_style(style);
    }
    let report = quantise(&dir, &args.out, &options, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let report = report?;
    if args.json {
        print_json(&report)?;
    } else {
        print_line(&in_words(&report, args))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn options(args: &QuantizeArgs) -> Result<QuantiseOptions, Failure> {
    let calibration = match &args.calib {
        None => None,
        Some(path) => {
            let wrong = |error: &dyn Display| Failure::Message(format!("{}: {error}", path.display()));
            let bytes = std::fs::read(path).map_err(|error| wrong(&error))?;
            let text = String::from_utf8(bytes)
                .map_err(|error| wrong(&format!("expected UTF-8 text, found {}", error.utf8_error())))?;
            Some(text)
        }
    };
    let group = match args.group {
        -1 => None,
        group => Some(usize::try_from(group).map_err(|_| {
            Failure::Message(format!("group: expected -1 or a number from 1, found {group}"))
        })?),
    };
    let bits = args.bits.unwrap_or(if args.method == Method::Int8 { 8 } else { 4 });
    Ok(QuantiseOptions {
        method: args.method,
        bits,
        group,
        symmetric: args.sym,
        act_order: args.act_order,
        corrected: !args.uncorrected,
        damp: args.damp,
        samples: args.samples,
        context: args.ctx,
        calibration,
        device: args.device,
    })
}

fn in_words(report: &QuantiseReport, args: &QuantizeArgs) -> String {
    let resumed = match report.resumed_layers {
        0 => String::new(),
        resumed => format!(" ({resumed} of them by an earlier run)"),
    };
    let calibrated = match report.calibration_tokens {
        0 => String::new(),
        tokens => format!(", calibrated on {tokens} tokens"),
    };
    format!(
        "{}: {} layers{resumed} in {:.1} s{calibrated}; {} became {}, {:.2}x smaller",
        args.out.display(),
        report.layers,
        report.seconds,
        bytes_in_words(report.bytes_before),
        bytes_in_words(report.bytes_after),
        report.bytes_before as f64 / report.bytes_after.max(1) as f64
    )
}
