//! Every suite, on every device there is. What cannot run is counted as ignored, with the reason.

use std::{process::ExitCode, sync::Arc, time::Instant};

use libtest_mimic::{Arguments, Trial};
use tilewright_host::gpu::Driver;
use tilewright_tests::{
    emulated::Emulated,
    harness::Harness,
    runner::{Suite, case_count},
    suites,
};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for suite in suites::all::<Emulated>() {
        trials.push(Trial::test(format!("emulated::{}", suite.kernel), move || {
            let harness = Harness::checked(Arc::new(Emulated::default())).reordered_by(Emulated::set_order);
            let cases = case_count(suite.emulated_cases);
            run("emulated", &suite, &harness, cases).map_err(Into::into)
        }));
    }
    let reason = add_cuda(&mut trials);
    let skipped = trials.iter().filter(|trial| trial.has_ignored_flag()).count();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(reason) = reason {
        println!("skipped: {skipped} GPU suites, which need a GPU and '--features cuda': {reason}\n");
    }
    conclusion.exit_code()
}

fn run<D: Driver>(device: &str, suite: &Suite<D>, harness: &Harness<D>, cases: u32) -> Result<(), String> {
    let began = Instant::now();
    let ran = (suite.run)(harness, cases)?;
    println!("{device}::{}: {ran} cases in {:.1} s", suite.kernel, began.elapsed().as_secs_f64());
    Ok(())
}

/// The suites on a CUDA device, or, as ignored trials, what they would have been and why they are not.
#[cfg(feature = "cuda")]
fn add_cuda(trials: &mut Vec<Trial>) -> Option<String> {
    use tilewright_host::gpu::cuda::CudaDriver;

    /// Random cases a suite where a case takes milliseconds.
    const CASES: u32 = 300;
    match CudaDriver::open(0) {
        Ok(driver) => {
            let harness = Arc::new(Harness::unchecked(Arc::new(driver)));
            for suite in suites::all::<CudaDriver>() {
                let harness = harness.clone();
                trials.push(Trial::test(format!("cuda::{}", suite.kernel), move || {
                    run("cuda", &suite, &harness, case_count(CASES)).map_err(Into::into)
                }));
            }
            None
        }
        Err(error) => {
            ignore_cuda(trials);
            Some(error.to_string())
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn add_cuda(trials: &mut Vec<Trial>) -> Option<String> {
    ignore_cuda(trials);
    Some("built without the feature 'cuda'".to_string())
}

fn ignore_cuda(trials: &mut Vec<Trial>) {
    for suite in suites::all::<Emulated>() {
        let missing = || Err("there is no CUDA device to run this on".into());
        trials.push(Trial::test(format!("cuda::{}", suite.kernel), missing).with_ignored_flag(true));
    }
}
