//! One kernel, one case, under emulation: what it did, in numbers.

use std::{fmt::Write as _, sync::Arc};

use tilewright_simt::{Order, Report};

use crate::{
    emulated::{Emulated, Launched},
    harness::Harness,
    runner::Suite,
    shape::{Parameter, Shape},
    suites,
};

/// What to run, and how.
#[derive(Debug)]
pub struct Request {
    /// The stem of a kernel.
    pub kernel: String,
    /// The case.
    pub shape: Shape,
    /// The order of lanes.
    pub order: Order,
    /// Whether to count memory requests, which takes time.
    pub counts: bool,
    /// Whether to end after the kernel's first launch, unchecked.
    pub launch_only: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// The case in words.
    pub case: String,
    /// Every launch that went well, the kernel's own first.
    pub launched: Vec<Launched>,
    /// The first fault, or what else was wrong.
    pub failure: Option<String>,
}

/// The suites that cases can be named for, by their kernels' stems.
pub fn kernels() -> impl Iterator<Item = (&'static str, Vec<Parameter>)> {
    suites::all::<Emulated>().into_iter().filter_map(|suite| {
        let mut shape = Shape::default();
        (suite.shaped)(&mut shape)?;
        Some((suite.kernel, shape.finish().ok()?))
    })
}

/// Runs the case as the kernel's suite does: with its launches, its oracle and its checks.
///
/// # Errors
/// A kernel without a suite, or a shape that isn't one of its.
pub fn emulate(request: Request) -> Result<Outcome, String> {
    let Request { kernel, mut shape, order, counts, launch_only } = request;
    let suite = find(&kernel)?;
    let case = (suite.shaped)(&mut shape).ok_or_else(|| unknown(&kernel))?;
    shape.finish().map_err(|wrong| format!("{kernel}: {wrong}"))?;
    let mut driver = Emulated::new(order);
    if counts {
        driver = driver.counting();
    }
    if launch_only {
        driver = driver.for_one_launch();
    }
    let driver = Arc::new(driver);
    let checked = (case.check)(&Harness::checked(driver.clone()));
    let launched = driver.take_launched();
    // Whoever asked for one launch alone has got it.
    let failure = checked.err().filter(|_| !launch_only || launched.is_empty());
    Ok(Outcome { case: case.words, launched, failure })
}

fn find(kernel: &str) -> Result<Suite<Emulated>, String> {
    suites::all().into_iter().find(|suite| suite.kernel == kernel).ok_or_else(|| unknown(kernel))
}

fn unknown(kernel: &str) -> String {
    let known: Vec<&str> = kernels().map(|(kernel, _)| kernel).collect();
    format!("kernel: expected one of {}, found '{kernel}'", known.join(", "))
}

/// A launch in numbers, a line each.
pub fn in_words(launched: &Launched, counts: bool) -> String {
    let Launched { kernel, grid, threads, report, seconds } = launched;
    let mut text = format!("{kernel}: {grid:?} blocks of {threads} threads\n");
    let mut line = |name: &str, value: String| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {name:28}{value:>16}");
    };
    for (name, count) in counters(report) {
        line(name, grouped(count));
    }
    if counts {
        let per = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        for (kind, requests, sectors) in [
            ("global load", report.global_load_requests, report.global_load_sectors),
            ("global store", report.global_store_requests, report.global_store_sectors),
        ] {
            line(&format!("{kind} requests"), grouped(requests));
            line(&format!("{kind} sectors a request"), format!("{:.2}", per(sectors, requests)));
        }
        line("shared requests", grouped(report.shared_requests));
        line("bank conflicts", grouped(report.bank_conflicts));
        line(
            "bank conflicts a request",
            format!("{:.2}", per(report.bank_conflicts, report.shared_requests)),
        );
    }
    line("seconds", format!("{seconds:.3}"));
    line("lane-steps a second", grouped((report.lane_steps as f64 / seconds) as u64));
    text
}

fn counters(report: &Report) -> [(&'static str, u64); 5] {
    [
        ("lane-steps", report.lane_steps),
        ("barriers", report.barriers),
        ("async copies of 16 bytes", report.async_copies),
        ("mma, a warp each", report.mma),
        ("ldmatrix, a warp each", report.ldmatrix),
    ]
}

/// With a comma before every third digit from the end.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kernel: &str, shape: &str) -> Request {
        Request {
            kernel: kernel.to_string(),
            shape: shape.parse().unwrap(),
            order: Order::Deterministic,
            counts: true,
            launch_only: false,
        }
    }

    #[test]
    fn every_suite_has_a_default_shape_that_passes() {
        assert_eq!(kernels().count(), suites::all::<Emulated>().len());
        for (kernel, _) in kernels() {
            let outcome = emulate(request(kernel, "")).unwrap();
            assert_eq!(outcome.failure, None, "{kernel}: {}", outcome.case);
            assert!(
                outcome.launched[0].kernel.starts_with(kernel),
                "{kernel}: {}",
                outcome.launched[0].kernel
            );
        }
    }

    #[test]
    fn the_counters_are_those_of_the_shape() {
        let outcome = emulate(request("gather_rows", "rows=3,cols=1024,table_rows=9")).unwrap();
        // The launch and its repetition.
        assert_eq!(outcome.launched.len(), 2);
        let report = &outcome.launched[0].report;
        // A warp stores 512 bytes a request: 16 sectors, 4 requests a row.
        assert_eq!((report.blocks, report.global_store_requests, report.global_store_sectors), (3, 12, 192));
        let text = in_words(&outcome.launched[0], true);
        assert!(text.starts_with("gather_rows: [3, 1, 1] blocks of 128 threads\n"), "{text}");
        let says = |name: &str, value: &str| {
            text.lines().any(|line| line.trim().strip_prefix(name).is_some_and(|rest| rest.trim() == value))
        };
        assert!(
            says("global store requests", "12") && says("global store sectors a request", "16.00"),
            "{text}"
        );
    }

    #[test]
    fn one_launch_is_one_launch() {
        let one = Request { launch_only: true, ..request("attention_decode", "keys=600") };
        let outcome = emulate(one).unwrap();
        assert_eq!((outcome.launched.len(), outcome.failure), (1, None));
    }

    #[test]
    fn what_there_is_not_is_refused_in_a_line() {
        let refused = |kernel, shape| emulate(request(kernel, shape)).unwrap_err();
        assert!(refused("softmax", "").starts_with("kernel: expected one of gemm_bf16, "));
        assert_eq!(refused("rms_norm", "cols=4"), "rms_norm: cols: expected a multiple of 8, found '4'");
        assert!(refused("rms_norm", "colls=8").ends_with("found 'colls'"));
    }

    #[test]
    fn digits_come_in_threes() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
