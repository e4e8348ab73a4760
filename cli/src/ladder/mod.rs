//! `ladder`: what each optimisation is worth on this machine.

mod page;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use tilewright::DeviceChoice;
use tilewright::ladder::{Claim, Ladder, LadderOptions, Rung, measure};
use tilewright_benches::machine::{Machine, commit, driver_version, now};

use crate::load::{check_dir, default_draft_dir, measuring, model_dir, model_name};
use crate::output::{Failure, check_writable, print_and_write, print_json, print_line};

#[derive(Debug, Args)]
pub struct LadderArgs {
    /// Folder of a checkpoint that isn't quantised [default: the bundled demo model]
    #[arg(short, long = "model", value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Folder of a smaller model of the same vocabulary [default: the bundled draft model]
    #[arg(long, value_name = "DIR")]
    pub draft: Option<PathBuf>,
    /// auto, cpu, cpu-bf16 (rounds as a GPU does), cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// A trial in seconds: short texts, one round each, four-bit weights rounded instead of calibrated
    #[arg(long)]
    pub quick: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Write a page with a chart, which needs nothing beside it
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

pub fn run(args: &LadderArgs) -> Result<ExitCode, Failure> {
    let options = LadderOptions {
        target: model_dir(args.model.as_ref())?,
        draft: args.draft.clone().unwrap_or_else(default_draft_dir),
        device: args.device,
        quick: args.quick,
    };
    // One that isn't there costs its rung alone.
    if options.draft.exists() {
        check_dir("--draft", &options.draft)?;
    }
    check_writable(args.html.as_deref())?;
    let (commit, date) = (commit(None), now());
    let ladder = measure(&options, &mut |what| measuring(what))?;
    let report = Report::new(ladder, commit, date);
    let model = model_name(args.model.as_ref());
    let page = match &args.html {
        Some(path) => Some((&**path, page::page(&report, &model)?)),
        None => None,
    };
    let print = || if args.json { print_json(&report) } else { print_line(&in_words(&report, &model)) };
    print_and_write(print, page)?;
    Ok(ExitCode::SUCCESS)
}

/// What was measured, and on what and when.
#[derive(Serialize)]
struct Report {
    /// As `bench` calls it: a CPU's is "none".
    driver: String,
    commit: String,
    /// When it began, UTC.
    date: String,
    #[serde(flatten)]
    ladder: Ladder,
}

impl Report {
    fn new(ladder: Ladder, commit: String, date: String) -> Report {
        let driver = match device_name(&ladder) {
            CPU => "none".to_string(),
            _ => driver_version().unwrap_or_else(|| "unknown".into()),
        };
        Report { driver, commit, date, ladder }
    }

    fn origin(&self) -> String {
        let machine = Machine { driver: self.driver.clone(), ..Machine::default() };
        machine.origin(&self.commit, &self.date)
    }
}

/// The name of what isn't a GPU.
const CPU: &str = "CPU";

/// What a heading has room for of the device's description.
fn device_name(ladder: &Ladder) -> &str {
    ladder.device.split(", ").next().unwrap_or(&ladder.device)
}

/// What a reader needs who divides one figure by the other.
const ROUNDS: &str = "Both sides of a comparison take turns; a gain is the median of the rounds' ratios, and rates are medians of their own.";

/// The measurement as it stands beside a claim.
fn measured(rung: &Rung) -> String {
    match (rung.measured, rung.limits) {
        (None, _) => "-".to_string(),
        (Some(times), Claim::Times { .. }) => format!("{times:.2}x"),
        (Some(percent), Claim::LossBelow { .. }) => format!("{percent:+.2}%"),
    }
}

fn in_words(report: &Report, model: &str) -> String {
    let ladder = &report.ladder;
    let mut lines = vec![
        ladder.device.clone(),
        report.origin(),
        format!("model: {model}{}", trial(ladder)),
        String::new(),
    ];
    let width = |of: &dyn Fn(&Rung) -> usize| ladder.rungs.iter().map(of).max().unwrap_or(0);
    let (names, claims) = (width(&|rung| rung.name.len()), width(&|rung| rung.claim.len()));
    lines.push(format!("{:names$}  {:claims$}  {:>9}  verdict", "", "claim", "measured"));
    for rung in &ladder.rungs {
        lines.push(format!(
            "{:names$}  {:claims$}  {:>9}  {}",
            rung.name,
            rung.claim,
            measured(rung),
            rung.verdict.name()
        ));
    }
    for rung in &ladder.rungs {
        lines.push(String::new());
        lines.push(format!("{}: {}", rung.name, if rung.of.is_empty() { "not measured" } else { &rung.of }));
        lines.extend(rung.also.iter().map(|also| format!("  {}: {}", also.what, also.value)));
        lines.extend(rung.reason.iter().map(|reason| format!("  {}: {reason}", rung.verdict.name())));
    }
    lines.push(String::new());
    lines.push(ROUNDS.to_string());
    lines.push(format!("measured in {:.0} s", ladder.seconds));
    lines.join("\n")
}

fn trial(ladder: &Ladder) -> &'static str {
    if ladder.quick { "; a quick trial, no measurement to quote" } else { "" }
}
