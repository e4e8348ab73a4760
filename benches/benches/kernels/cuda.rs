use std::time::Duration;

use criterion::{Criterion, Throughput};
use tilewright_benches::{
    Result, cells,
    check::{Extent, check, check_small},
    kernels::{self, Kernel},
    prepared::Prepared,
    problem::Problem,
};
use tilewright_host::gpu::{Driver, cuda::CudaDriver};

/// Events in flight at a time.
const CHUNK: u64 = 500;

/// A group a kernel, a benchmark a cell that it solves.
pub fn benchmarks(criterion: &mut Criterion) -> Result<()> {
    let driver = CudaDriver::open(0)?;
    for kernel in kernels::all::<CudaDriver>() {
        let mut group = criterion.benchmark_group(kernel.name());
        for cell in cells::all() {
            if !kernel.takes(&cell.problem, driver.info()) {
                continue;
            }
            let cost = cell.problem.cost();
            group.throughput(if cell.problem.is_compute() {
                Throughput::Elements(cost.flops)
            } else {
                Throughput::Bytes(cost.bytes)
            });
            // Made at the first call, which a benchmark that wasn't asked for never has.
            let mut checked: Option<Result<Prepared<'_, CudaDriver>>> = None;
            group.bench_function(cell.key.as_str(), |bencher| {
                let prepared =
                    checked.get_or_insert_with(|| prepare(kernel.as_ref(), &driver, &cell.problem));
                let Ok(prepared) = prepared else { return bencher.iter_custom(|_| Duration::from_nanos(1)) };
                let mut failed = None;
                bencher.iter_custom(|runs| {
                    elapsed(&driver, prepared, runs).unwrap_or_else(|error| {
                        failed = Some(error);
                        Duration::from_nanos(1)
                    })
                });
                if let Some(error) = failed {
                    checked = Some(Err(error));
                }
            });
            if let Some(Err(error)) = checked {
                return Err(error);
            }
        }
        group.finish();
    }
    Ok(())
}

fn prepare<'d>(
    kernel: &dyn Kernel<CudaDriver>,
    driver: &'d CudaDriver,
    problem: &Problem,
) -> Result<Prepared<'d, CudaDriver>> {
    check_small(kernel, driver, problem)?;
    let prepared = kernel.prepare(driver, problem, 1)?;
    prepared.run()?;
    check(kernel.name(), &prepared, problem, Extent::Sampled)?;
    Ok(prepared)
}

/// What the device says `runs` runs took it.
fn elapsed(driver: &CudaDriver, prepared: &Prepared<'_, CudaDriver>, runs: u64) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for first in (0..runs).step_by(CHUNK as usize) {
        let chunk = (runs - first).min(CHUNK) as usize;
        total += driver.time_each(chunk, |_| prepared.run())?.into_iter().sum::<Duration>();
    }
    Ok(total.max(Duration::from_nanos(1)))
}
