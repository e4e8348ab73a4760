//! `doctor`: whether this machine, or a checkpoint, is sound.

mod machine;

use std::path::Path;
use std::process::ExitCode;

use tilewright::doctor::{CheckpointReport, examine};

use crate::args::DoctorArgs;
use crate::load::check_dir;
use crate::output::{Failure, print_json, print_line};

pub fn run(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    match &args.dir {
        Some(dir) => checkpoint(args, dir),
        None => machine::run(args),
    }
}

fn checkpoint(args: &DoctorArgs, dir: &Path) -> Result<ExitCode, Failure> {
    check_dir("DIR", dir)?;
    let report = examine(dir, args.device)?;
    if args.json {
        print_json(&report)?;
    } else {
        print_line(&in_words(&report))?;
    }
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn in_words(report: &CheckpointReport) -> String {
    let mut lines = vec![
        format!("device:  {}", report.device),
        match &report.quantization {
            Some(config) => {
                let group = config.group_size.map_or("a row".to_string(), |size| size.to_string());
                format!("weights: {:?}, {} bits, groups of {group}", config.format, config.bits)
            }
            None => "weights: not quantised".to_string(),
        },
    ];
    match &report.fault {
        Some(fault) => lines.push(format!("load:    {fault}")),
        None => lines.push(format!("load:    {} tensors, every one used", report.tensors)),
    }
    lines.extend(report.checks.iter().map(|check| {
        format!(
            "{} {:?}: worst error {:.1e} of its terms at output {} (expected {:.6}, found {:.6}), bound {:.1e}: {}",
            check.name,
            check.shape,
            check.worst_error,
            check.output,
            check.expected,
            check.found,
            check.bound,
            if check.passed { "ok" } else { "WRONG" }
        )
    }));
    lines.push(if report.passed { "healthy" } else { "FAULTY" }.to_string());
    lines.join("\n")
}
