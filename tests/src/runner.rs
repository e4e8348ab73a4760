//! Runs a suite's corners, its stored regressions and as many random cases as asked for.

use std::{cell::RefCell, fmt::Debug, time::Instant};

use proptest::{
    strategy::BoxedStrategy,
    test_runner::{Config, FileFailurePersistence, TestCaseError, TestError, TestRunner},
};
use tilewright_host::gpu::Driver;

use crate::harness::{Failure, Harness};

/// What holds of a kernel for every case.
pub trait Property: 'static {
    /// The kernel's stem.
    const KERNEL: &'static str;
    /// Random cases under emulation unless `PROPTEST_CASES` says otherwise.
    const EMULATED_CASES: u32;
    /// A few numbers; buffers are filled from its seed.
    type Case: Debug + Clone + 'static;

    /// Random cases.
    fn cases() -> BoxedStrategy<Self::Case>;
    /// Cases that are always run: the edges that a random draw may miss.
    fn corners() -> Vec<Self::Case>;
    /// Runs one case and compares it with the oracle.
    fn check<D: Driver>(harness: &Harness<D>, case: &Self::Case) -> Result<(), Failure>;
}

/// One property, ready to run on one driver.
pub struct Suite<D: Driver> {
    pub kernel: &'static str,
    pub emulated_cases: u32,
    pub run: fn(&Harness<D>, u32) -> Result<u32, Failure>,
}

impl<D: Driver> Suite<D> {
    pub fn of<P: Property>() -> Suite<D> {
        Suite { kernel: P::KERNEL, emulated_cases: P::EMULATED_CASES, run: run::<P, D> }
    }
}

/// The number of random cases: `PROPTEST_CASES`, or `default`.
pub fn case_count(default: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|count| count.parse().ok()).unwrap_or(default)
}

/// Runs corners, regressions and `cases` random cases, and returns how many ran.
fn run<P: Property, D: Driver>(harness: &Harness<D>, cases: u32) -> Result<u32, Failure> {
    let corners = P::corners();
    for corner in &corners {
        let began = Instant::now();
        P::check(harness, corner).map_err(|failure| format!("{failure}\ncorner: {corner:?}"))?;
        report_time(corner, began);
    }
    let regressions = concat!(env!("CARGO_MANIFEST_DIR"), "/regressions");
    let path: &'static str = Box::leak(format!("{regressions}/{}.txt", P::KERNEL).into_boxed_str());
    let defaults = Config::default();
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(path))),
        max_shrink_time: if defaults.max_shrink_time == 0 { 60_000 } else { defaults.max_shrink_time },
        max_shrink_iters: 200,
        verbose: 0,
        ..defaults
    };
    let ran = RefCell::new(corners.len() as u32);
    let outcome = TestRunner::new(config).run(&P::cases(), |case| {
        let began = Instant::now();
        *ran.borrow_mut() += 1;
        let outcome = P::check(harness, &case).map_err(TestCaseError::fail);
        report_time(&case, began);
        outcome
    });
    match outcome {
        Ok(()) => Ok(ran.into_inner()),
        Err(TestError::Fail(reason, case)) => Err(format!("{}\ncase: {case:?}", reason.message())),
        Err(TestError::Abort(reason)) => Err(format!("gave up: {}", reason.message())),
    }
}

/// With `TILEWRIGHT_CASE_TIMES` set, names every case and what it took.
fn report_time(case: &impl Debug, began: Instant) {
    if std::env::var_os("TILEWRIGHT_CASE_TIMES").is_some() {
        eprintln!("{:8.1} ms  {case:?}", began.elapsed().as_secs_f64() * 1e3);
    }
}
