//! Criterion benchmarks, a group a kernel, each kernel checked against the oracle before it is timed.
//!
//! `cargo bench -p tilewright-benches`: the CPU device, small shapes. With `--features cuda`: every kernel on every cell of the
//! side-by-side run that it solves, on the GPU, timed by its events. Arguments after `--` select by name.

#[cfg(not(feature = "cuda"))]
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

#[cfg(not(feature = "cuda"))]
use cpu::benchmarks;
#[cfg(feature = "cuda")]
use cuda::benchmarks;

use std::{process::ExitCode, time::Duration};

use criterion::Criterion;

fn main() -> ExitCode {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    match benchmarks(&mut criterion) {
        Ok(()) => {
            criterion.final_summary();
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
