//! Holds the emulator to the GPU: the same cases on both, and how far apart their results are, kernel by kernel.
//!
//! `cargo run --release -p tilewright-tests --features cuda --bin against_hardware [-- --cases N] [KERNEL...]` runs the corners and
//! N random cases of every suite, or of those named, checked on both sides as the suites do. Exits 1 if one fails on either, or if all
//! suites together leave out an entry of the GPU's module.

use std::process::ExitCode;

use clap::Parser;

/// Run the suites' cases on the emulator and on the GPU, and print how far apart the results are
#[derive(Debug, Parser)]
#[command(name = "against_hardware")]
struct Args {
    /// Stems of kernels [default: all]
    kernels: Vec<String>,
    /// Random cases of each, besides the corners
    #[arg(long, default_value_t = 20, value_name = "N")]
    cases: u32,
}

fn main() -> ExitCode {
    run(&Args::parse())
}

#[cfg(feature = "cuda")]
fn run(args: &Args) -> ExitCode {
    use std::sync::Arc;

    use tilewright_host::gpu::{Driver as _, cuda::CudaDriver};
    use tilewright_tests::{
        agreement::{compare, in_words, left_out},
        harness::Harness,
    };

    let driver = match CudaDriver::open(0) {
        Ok(driver) => driver,
        Err(error) => return skipped(args, &error.to_string()),
    };
    let info = driver.info();
    let capability = info.compute_capability;
    let (major, minor) = capability;
    println!("{}, compute capability {major}.{minor}, beside the emulator\n", info.name);
    let harness = Harness::unchecked(Arc::new(driver)).recording();
    let mut failures = 0;
    let differences = compare(&harness, &args.kernels, args.cases, &mut |failure| {
        eprintln!("failed: {failure}");
        failures += 1;
    });
    print!("{}", in_words(&differences));
    if differences.is_empty() && failures == 0 {
        eprintln!("error: kernels: expected stems that have suites, found {}", args.kernels.join(", "));
        return ExitCode::from(2);
    }
    let left_out = match args.kernels.is_empty() {
        true => left_out(&differences, capability),
        false => Vec::new(),
    };
    for kernel in &left_out {
        eprintln!("not compared: {kernel}");
    }
    if failures > 0 || !left_out.is_empty() {
        eprintln!("{failures} cases failed, {} kernels not compared", left_out.len());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

#[cfg(not(feature = "cuda"))]
fn run(args: &Args) -> ExitCode {
    skipped(args, "built without the feature 'cuda'")
}

fn skipped(args: &Args, reason: &str) -> ExitCode {
    let suites = if args.kernels.is_empty() { "all suites".to_string() } else { args.kernels.join(", ") };
    println!("skipped: nothing compared of {suites}, which needs a GPU and '--features cuda': {reason}");
    ExitCode::SUCCESS
}
