//! Runs one kernel on one case under emulation and prints what it did: `cargo xtask emulate KERNEL --shape name=value,...`.

use std::{fmt::Write as _, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use tilewright_simt::Order;
use tilewright_tests::{
    emulate::{Request, emulate, in_words, kernels},
    shape::Shape,
};

/// Run one kernel on random inputs under emulation, as its suite does, and print what it did
#[derive(Debug, Parser)]
#[command(name = "cargo xtask emulate")]
struct Args {
    /// The kernel's stem, one of those below
    kernel: String,
    /// The case, as name=value,...; names and defaults are below
    #[arg(long, default_value = "", hide_default_value = true, value_name = "SHAPE")]
    shape: String,
    /// Lanes in ascending order, or in an order drawn from a seed
    #[arg(long, value_enum)]
    order: Option<OrderKind>,
    /// The seed of that order
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// End after the kernel's first launch, without comparing with the oracle
    #[arg(long)]
    launch_only: bool,
    /// Leave requests and bank conflicts uncounted, which is faster
    #[arg(long)]
    no_counts: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OrderKind {
    Ascending,
    Seeded,
}

fn main() -> ExitCode {
    let matches = Args::command().after_help(shapes_in_words()).get_matches();
    let args = match Args::from_arg_matches(&matches) {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    match run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: Args) -> Result<ExitCode, String> {
    let order = match (args.order, args.seed) {
        (Some(OrderKind::Ascending), Some(_)) => {
            return Err("order: expected seeded where there is a seed, found ascending".to_string());
        }
        (Some(OrderKind::Ascending) | None, None) => Order::Deterministic,
        (_, seed) => Order::Seeded(seed.unwrap_or(0)),
    };
    let shape: Shape = args.shape.parse()?;
    let counts = !args.no_counts;
    let request = Request { kernel: args.kernel, shape, order, counts, launch_only: args.launch_only };
    let outcome = emulate(request)?;
    println!("{}, lanes in order {order:?}", outcome.case);
    if let Some(first) = outcome.launched.first() {
        print!("{}", in_words(first, counts));
    }
    match outcome.failure {
        Some(failure) => {
            eprintln!("failed at launch {}: {failure}", outcome.launched.len() + 1);
            Ok(ExitCode::FAILURE)
        }
        None => {
            let verdict = if args.launch_only { "not checked" } else { "passed its suite's checks" };
            println!("{verdict}, {} launches", outcome.launched.len());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The kernels, and what their shapes are made of.
fn shapes_in_words() -> String {
    let mut text = String::from("Kernels and their shapes:");
    for (kernel, parameters) in kernels() {
        // Writing to a String does not fail.
        let _ = write!(text, "\n  {kernel}");
        for parameter in parameters {
            let setting = format!("{}={}", parameter.name, parameter.default);
            let _ = write!(text, "\n    {setting:20} {}", parameter.about);
        }
    }
    text
}
