//! Timing on a CUDA device.

use std::time::Duration;

use tilewright_host::{
    Result,
    gpu::cuda::{CudaDriver, CudaGraph},
};

use crate::{cells::Mode, prepared::Prepared};

/// Runs that a graph holds at least, so that what starts a replay is spread thin.
const GRAPH_RUNS: usize = 20;
/// Runs that warm up at most, however short they are.
const MOST_WARM_RUNS: usize = 5000;

/// How often, and after what.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Timings.
    pub iters: usize,
    /// Work before the first timing, so that clocks are up and the host is ahead of the device.
    pub warm: Duration,
}

/// Timings in microseconds of one run, `effort.iters` of them, rotating over `sets`.
///
/// # Errors
/// The device's.
pub fn times_us(
    driver: &CudaDriver,
    sets: &[Prepared<'_, CudaDriver>],
    mode: Mode,
    effort: Effort,
) -> Result<Vec<f64>> {
    let run = |index: usize| sets[index % sets.len()].run();
    match mode {
        // A GPU has a clock of its own.
        Mode::Events | Mode::Clock => {
            let times = after_warming(driver, effort, run)?;
            Ok(times.into_iter().map(microseconds).collect())
        }
        Mode::Graph => {
            let runs = sets.len().max(GRAPH_RUNS);
            let graph: CudaGraph = driver.capture(|| (0..runs).try_for_each(run))?;
            let times = after_warming(driver, effort, |_| graph.replay())?;
            Ok(times.into_iter().map(|time| microseconds(time) / runs as f64).collect())
        }
    }
}

fn after_warming(
    driver: &CudaDriver,
    effort: Effort,
    work: impl Fn(usize) -> Result<()>,
) -> Result<Vec<Duration>> {
    if !effort.warm.is_zero() {
        // The first run loads the kernel, the second says how long one takes.
        work(0)?;
        let ((), once) = driver.elapsed(|| work(1))?;
        let runs = effort.warm.as_secs_f64() / once.as_secs_f64().max(1e-7);
        (0..(runs.ceil() as usize).clamp(3, MOST_WARM_RUNS)).try_for_each(&work)?;
    }
    driver.time_each(effort.iters, work)
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
