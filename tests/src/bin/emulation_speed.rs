//! How fast the emulator is on real kernels: the largest attention and matrix product that it ends within a time, found by doubling.
//!
//! `cargo run --release -p tilewright-tests --bin emulation_speed [-- SECONDS]`, 10 seconds unless told. Races are looked for, as
//! in the tests. `cargo run --release -p tilewright-simt --example speed` measures single instructions.

use std::process::ExitCode;

use tilewright_simt::Order;
use tilewright_tests::{
    emulate::{Request, emulate, grouped},
    emulated::Launched,
    shape::Shape,
};

/// A kernel, where to begin, and what to double in turn.
struct Search {
    kernel: &'static str,
    fixed: &'static str,
    /// Names that are doubled together, and their first value.
    doubled: &'static [(&'static [&'static str], usize)],
}

const SEARCHES: [Search; 8] = [
    Search {
        kernel: "attention_prefill",
        fixed: "head_dim=128,kv_heads=1,group=1",
        doubled: &[(&["queries", "keys"], 128)],
    },
    Search {
        kernel: "attention_prefill",
        fixed: "head_dim=128,kv_heads=2,group=4",
        doubled: &[(&["queries", "keys"], 64)],
    },
    Search {
        kernel: "attention_prefill_sm90",
        fixed: "head_dim=128,kv_heads=1,group=1",
        doubled: &[(&["queries", "keys"], 256)],
    },
    Search {
        kernel: "attention_decode",
        fixed: "head_dim=128,kv_heads=2,group=4",
        doubled: &[(&["keys"], 1024)],
    },
    Search {
        kernel: "gemm_bf16",
        fixed: "block_m=128",
        doubled: &[(&["m"], 128), (&["n"], 128), (&["k"], 128)],
    },
    Search {
        kernel: "gemm_sm90",
        fixed: "block_n=256",
        doubled: &[(&["m"], 128), (&["n"], 256), (&["k"], 256)],
    },
    Search { kernel: "gemm_few", fixed: "kind=0,tokens=8,m=8", doubled: &[(&["n"], 512), (&["k"], 512)] },
    Search { kernel: "gemm_few", fixed: "kind=2,tokens=8,m=8", doubled: &[(&["n"], 512), (&["k"], 512)] },
];

fn main() -> ExitCode {
    let limit_s =
        match std::env::args().nth(1).map(|text| text.parse::<f64>().ok().filter(|s| *s > 0.0).ok_or(text)) {
            None => 10.0,
            Some(Ok(seconds)) => seconds,
            Some(Err(found)) => {
                eprintln!("error: seconds: expected a number above 0, found '{found}'");
                return ExitCode::from(2);
            }
        };
    println!(
        "| kernel | largest shape within {limit_s} s | seconds | lane-steps | lane-steps a second |\n|---|---|---|---|---|"
    );
    for search in &SEARCHES {
        match search.run(limit_s) {
            Ok(Some((shape, Launched { report, seconds, .. }))) => println!(
                "| {} | {} | {seconds:.1} | {} | {} |",
                search.kernel,
                shape.replace(',', ", "),
                grouped(report.lane_steps),
                grouped((report.lane_steps as f64 / seconds) as u64)
            ),
            Ok(None) => println!("| {} | none | | | |", search.kernel),
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

impl Search {
    /// The last shape that ended in time, and its launch.
    fn run(&self, limit_s: f64) -> Result<Option<(String, Launched)>, String> {
        let mut values: Vec<usize> = self.doubled.iter().map(|(_, first)| *first).collect();
        let mut best = None;
        for turn in 0.. {
            let shape = self.shape(&values);
            let launched = match self.launch(&shape) {
                // Larger than `emulate` takes: the last one was the largest.
                Err(refused) if best.is_some() && refused.contains("shape: expected tensors of at most") => {
                    break;
                }
                launched => launched?,
            };
            eprintln!("{}: {shape}: {:.2} s", self.kernel, launched.seconds);
            let next = turn % values.len();
            // Keys times queries, where both are doubled.
            let expected_s = launched.seconds * f64::from(1 << self.doubled[next].0.len());
            if launched.seconds > limit_s {
                break;
            }
            best = Some((shape, launched));
            // Far beyond the limit there is nothing to find out.
            if expected_s > 2.0 * limit_s {
                break;
            }
            values[next] *= 2;
        }
        Ok(best)
    }

    fn shape(&self, values: &[usize]) -> String {
        let named = self.doubled.iter().zip(values);
        let doubled =
            named.flat_map(|((names, _), value)| names.iter().map(move |name| format!(",{name}={value}")));
        self.fixed.to_string() + &doubled.collect::<String>()
    }

    fn launch(&self, shape: &str) -> Result<Launched, String> {
        let shape: Shape = shape.parse()?;
        let outcome = emulate(Request {
            kernel: self.kernel.to_string(),
            shape,
            order: Order::Deterministic,
            counts: false,
            launch_only: true,
        })?;
        match (outcome.launched.into_iter().next(), outcome.failure) {
            (Some(launched), None) => Ok(launched),
            (_, failure) => Err(format!("{}: {}", self.kernel, failure.unwrap_or_default())),
        }
    }
}
