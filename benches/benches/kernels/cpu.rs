//! The CPU device's operations, each checked against the oracle on a small problem before it is timed.

use criterion::{BenchmarkId, Criterion, Throughput};
use tilewright_benches::{
    Result,
    cpu::{cells, operation},
    problem::Problem,
};
use tilewright_host::{Device, cpu::CpuDevice};

/// A group an operation.
pub fn benchmarks(criterion: &mut Criterion) -> Result<()> {
    let device = CpuDevice::new();
    eprintln!("{}", device.describe());
    for cell in cells() {
        let problem = cell.problem;
        // The operation's answer on a small problem, in full.
        drop(operation(&device, &problem.small(), true)?);
        let mut run = operation(&device, &problem, false)?;
        let cost = problem.cost();
        let (name, parameters) = cell.key.split_once('/').unwrap_or((&cell.key, ""));
        let mut group = criterion.benchmark_group(name);
        group.throughput(match problem.is_compute() || matches!(problem, Problem::Decode(_)) {
            true => Throughput::Elements(cost.flops),
            false => Throughput::Bytes(cost.bytes),
        });
        let mut failed = None;
        group.bench_function(BenchmarkId::new("cpu", parameters), |bencher| {
            bencher.iter(|| {
                if let Err(error) = run() {
                    failed = Some(error);
                }
            });
        });
        group.finish();
        if let Some(error) = failed {
            return Err(error.into());
        }
    }
    Ok(())
}
