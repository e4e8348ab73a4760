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

fn counters(report: &Report) -> [(&'static str, u64); 9] {
    [
        ("lane-steps", report.lane_steps),
        ("barriers", report.barriers),
        ("async copies of 16 bytes", report.async_copies),
        ("mma, a warp each", report.mma),
        ("ldmatrix, a warp each", report.ldmatrix),
        ("wgmma, a warpgroup each", report.wgmma),
        ("bulk copies", report.bulk_copies),
        ("bytes of bulk copies", report.bulk_bytes),
        ("mbarrier waits, a lane each", report.mbarrier_waits),
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
    fn copies_and_products_of_hopper_are_counted() {
        let shape = "queries=128,keys=128,kv_heads=1,group=1,head_dim=64,causal=0";
        let outcome = emulate(request("attention_prefill_sm90", shape)).unwrap();
        let report = &outcome.launched[0].report;
        // Queries, keys and values of 128 rows of 128 bytes each.
        assert_eq!(report.bulk_bytes, 3 * 128 * 128);
        assert!(report.bulk_copies >= 3 && report.mbarrier_waits > 0, "{report:?}");
        let text = in_words(&outcome.launched[0], false);
        for (name, count) in [
            ("bytes of bulk copies", report.bulk_bytes),
            ("bulk copies", report.bulk_copies),
            ("wgmma, a warpgroup each", report.wgmma),
            ("mbarrier waits, a lane each", report.mbarrier_waits),
        ] {
            let says = |line: &str| line.trim().strip_prefix(name).map(|rest| rest.trim() == grouped(count));
            assert!(text.lines().any(|line| says(line) == Some(true)), "{name} {count}: {text}");
        }
    }

    #[test]
    fn a_shape_beyond_memory_is_refused_at_once() {
        for (kernel, parameters) in kernels() {
            // As large as each number may be on its own, where it is not one of a few.
            let mut shape = Shape::default();
            for parameter in
                parameters.iter().filter(|p| p.about.contains("at least 1") || p.about.contains("a multiple"))
            {
                if !["head_dim", "keys", "page_size"].contains(&parameter.name) {
                    shape.set(parameter.name, 1 << 24);
                }
            }
            let refused = emulate(Request { shape, ..request(kernel, "") }).unwrap_err();
            assert!(refused.contains("expected") && refused.contains("found"), "{kernel}: {refused}");
            assert!(!refused.contains('\n'), "{kernel}: {refused}");
        }
        let refused = |kernel, shape| emulate(request(kernel, shape)).unwrap_err();
        for shape in ["keys=16777216,page_size=16777216", "seqs=16777216,queries=1"] {
            for kernel in ["attention_prefill", "attention_prefill_sm90", "attention_decode"] {
                let error = refused(kernel, shape);
                assert!(error.contains("of them in keys and values"), "{kernel}: {error}");
            }
        }
        assert!(refused("gemm_bf16", "m=16000000,n=16000000").contains("of them in out"));
        assert!(refused("page_copy", "tensors=16000000").contains("of them in pages"));
        assert!(refused("gather_rows", "table_rows=16000000").contains("of them in table"));
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
