use std::process::ExitCode;

use tilewright::quantise::{Method, QuantiseOptions, QuantiseReport, quantise};

use crate::args::QuantizeArgs;
use crate::load::{model_dir, read_text, with_bar};
use crate::output::{Failure, bytes_in_words, print_json, print_line};

pub fn run(args: &QuantizeArgs) -> Result<ExitCode, Failure> {
    let dir = model_dir(args.model.as_ref())?;
    let options = options(args)?;
    let report = with_bar("quantising {bar:30} {pos}/{len} {elapsed}", |progress| {
        quantise(&dir, &args.out, &options, progress)
    });
    let report = report?;
    if args.json {
        print_json(&report)?;
    } else {
        print_line(&in_words(&report, args))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn options(args: &QuantizeArgs) -> Result<QuantiseOptions, Failure> {
    let calibration = args.calib.as_deref().map(|path| read_text("--calib", path)).transpose()?;
    let group = match args.group {
        -1 => None,
        group => Some(
            usize::try_from(group)
                .map_err(|_| Failure::expected("group", "-1 or a number from 1", &group))?,
        ),
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
