//! Runs a suite's corners, its stored regressions and as many random cases as asked for.

use std::{cell::RefCell, fmt::Debug, time::Instant};

use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, FileFailurePersistence, TestCaseError, TestError, TestRunner},
};
use tilewright_host::gpu::Driver;

use crate::{
    agreement::Scalar,
    harness::{Failure, Harness},
    shape::Shape,
};

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
    /// What a buffer of a case's results is made of, by its name.
    fn scalar(_: &Self::Case, _: &str) -> Scalar {
        Scalar::Bf16
    }
    /// The case that a shape names, where cases can be named.
    fn shaped(_: &mut Shape) -> Option<Self::Case> {
        None
    }
    /// Runs one case and compares it with the oracle.
    fn check<D: Driver>(harness: &Harness<D>, case: &Self::Case) -> Result<(), Failure>;
}

/// One property, ready to run on one driver.
pub struct Suite<D: Driver> {
    pub kernel: &'static str,
    pub emulated_cases: u32,
    pub run: fn(&Harness<D>, u32) -> Result<u32, Failure>,
    /// The corners and as many random cases, the same ones at every call.
    pub examples: fn(u32) -> Vec<Example<D>>,
    /// The case of a shape, where the suite knows shapes.
    pub shaped: fn(&mut Shape) -> Option<Example<D>>,
}

/// Checks a case on a driver.
type Check<D> = dyn Fn(&Harness<D>) -> Result<(), Failure>;

/// One case, ready to run on one driver.
pub struct Example<D: Driver> {
    /// The case in words.
    pub words: String,
    /// What its results are made of, by the names of buffers.
    pub scalar: Box<dyn Fn(&str) -> Scalar>,
    /// Checks it, as the suite does.
    pub check: Box<Check<D>>,
}

impl<D: Driver> Suite<D> {
    pub fn of<P: Property>() -> Suite<D> {
        Suite {
            kernel: P::KERNEL,
            emulated_cases: P::EMULATED_CASES,
            run: run::<P, D>,
            examples: examples::<P, D>,
            shaped: shaped::<P, D>,
        }
    }
}

fn shaped<P: Property, D: Driver>(shape: &mut Shape) -> Option<Example<D>> {
    P::shaped(shape).map(example::<P, D>)
}

fn examples<P: Property, D: Driver>(cases: u32) -> Vec<Example<D>> {
    let (strategy, mut runner) = (P::cases(), TestRunner::deterministic());
    let random = (0..cases).filter_map(|_| Some(strategy.new_tree(&mut runner).ok()?.current()));
    P::corners().into_iter().chain(random).map(example::<P, D>).collect()
}

fn example<P: Property, D: Driver>(case: P::Case) -> Example<D> {
    let of_buffers = case.clone();
    Example {
        words: format!("{case:?}"),
        scalar: Box::new(move |buffer| P::scalar(&of_buffers, buffer)),
        check: Box::new(move |harness| P::check(harness, &case)),
    }
}

/// The number of random cases: `PROPTEST_CASES`, or `default`.
pub fn case_count(default: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|count| count.parse().ok()).unwrap_or(default)
}

/// Runs corners, regressions and `cases` random cases, and returns how many ran.
fn run<P: Property, D: Driver>(harness: &Harness<D>, cases: u32) -> Result<u32, Failure> {
    let corners = P::corners();
    for (index, corner) in corners.iter().enumerate() {
        check_ordered::<P, D>(harness, corner, None)
            .map_err(|failure| format!("{failure}\ncorner: {corner:?}"))?;
        if harness.can_reorder() && index % 4 == 0 {
            let seed = index as u64;
            check_ordered::<P, D>(harness, corner, Some(seed)).map_err(|failure| {
                format!("{failure}\ncorner: {corner:?}, {}", order_in_words(Some(seed)))
            })?;
        }
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
    let outcome =
        TestRunner::new(config).run(&(P::cases(), orders(harness.can_reorder())), |(case, seed)| {
            *ran.borrow_mut() += 1;
            check_ordered::<P, D>(harness, &case, seed).map_err(TestCaseError::fail)
        });
    match outcome {
        Ok(()) => Ok(ran.into_inner()),
        Err(TestError::Fail(reason, (case, seed))) => {
            Err(format!("{}\ncase: {case:?}, {}", reason.message(), order_in_words(seed)))
        }
        Err(TestError::Abort(reason)) => Err(format!("gave up: {}", reason.message())),
    }
}

/// The order of lanes that goes with a random case: a quarter of them have a seed. It is part of the case, so that it is stored,
/// replayed and simplified with it.
fn orders(can_reorder: bool) -> BoxedStrategy<Option<u64>> {
    match can_reorder {
        true => prop_oneof![3 => Just(None), 1 => any::<u64>().no_shrink().prop_map(Some)].boxed(),
        false => Just(None).boxed(),
    }
}

fn order_in_words(seed: Option<u64>) -> String {
    seed.map_or("lanes in ascending order".to_string(), |seed| format!("lanes in the order of seed {seed}"))
}

/// Checks a case with lanes in the order of a seed.
fn check_ordered<P: Property, D: Driver>(
    harness: &Harness<D>,
    case: &P::Case,
    seed: Option<u64>,
) -> Result<(), Failure> {
    let began = Instant::now();
    harness.set_order(seed);
    let outcome = P::check(harness, case);
    report_time(case, seed, began);
    outcome
}

/// With `TILEWRIGHT_CASE_TIMES` set, names every case and what it took.
fn report_time(case: &impl Debug, seed: Option<u64>, began: Instant) {
    if std::env::var_os("TILEWRIGHT_CASE_TIMES").is_some() {
        eprintln!("{:8.1} ms  {case:?}, {}", began.elapsed().as_secs_f64() * 1e3, order_in_words(seed));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;
    use crate::emulated::Emulated;

    static SEEDED: AtomicBool = AtomicBool::new(false);

    /// Holds in the driver's own order alone.
    struct OrderMatters;

    impl Property for OrderMatters {
        const KERNEL: &'static str = "order_matters";
        const EMULATED_CASES: u32 = 0;
        type Case = u8;

        fn cases() -> BoxedStrategy<u8> {
            any::<u8>().boxed()
        }

        fn corners() -> Vec<u8> {
            vec![7]
        }

        fn check<D: Driver>(_: &Harness<D>, _: &u8) -> Result<(), Failure> {
            if SEEDED.load(Ordering::Relaxed) { Err("out of order".to_string()) } else { Ok(()) }
        }
    }

    #[test]
    fn another_order_of_lanes_is_tried_and_named() {
        let harness = Harness::checked(Arc::new(Emulated::default()));
        assert_eq!(run::<OrderMatters, Emulated>(&harness, 0), Ok(1));
        let harness = harness.reordered_by(|_, seed| SEEDED.store(seed.is_some(), Ordering::Relaxed));
        let failure = run::<OrderMatters, Emulated>(&harness, 0).unwrap_err();
        assert_eq!(failure, "out of order\ncorner: 7, lanes in the order of seed 0");
    }
}
