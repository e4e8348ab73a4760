//! Whether what a device computes is what the oracle says: each kernel, or operation, on a small problem of each kind that it solves.

use std::collections::HashSet;

use tilewright_host::{cpu::CpuDevice, gpu::Driver};

use crate::{
    cells,
    check::check_small,
    cpu::{self, operation},
    error::Error,
    kernels,
    problem::{Gemm, GemmWeights, Problem},
};

/// What became of one kernel.
#[derive(Debug)]
pub struct Tested {
    /// The kernel's stem, or the operation.
    pub name: &'static str,
    /// The problems it was given.
    pub problems: usize,
    /// The first that it failed.
    pub fault: Option<Error>,
}

/// Every operation of the CPU device.
pub fn cpu_operations() -> Vec<Tested> {
    let device = CpuDevice::new();
    let mut problems: Vec<Problem> = cpu::cells().iter().map(|cell| cell.problem.small()).collect();
    let products = [GemmWeights::Int8, GemmWeights::Int4];
    problems.extend(products.map(|weights| Problem::Gemm(Gemm { weights, m: 3, n: 1, k: 1 }).small()));
    collect(problems.iter().map(|problem| (cpu::name(problem), operation(&device, problem, true).map(drop))))
}

/// Every kernel that is timed, on a driver: those that this device doesn't take have no problems.
pub fn gpu_kernels<D: Driver>(driver: &D) -> Vec<Tested> {
    let mut tested = Vec::new();
    for kernel in kernels::all::<D>() {
        let mut seen = HashSet::new();
        let small = cells::all().into_iter().filter(|cell| kernel.takes(&cell.problem, driver.info()));
        let small = small.filter(|cell| seen.insert(cell.problem.small()));
        let results = small.map(|cell| (kernel.name(), check_small(kernel.as_ref(), driver, &cell.problem)));
        let found = collect(results);
        match found.is_empty() {
            true => tested.push(Tested { name: kernel.name(), problems: 0, fault: None }),
            false => tested.extend(found),
        }
    }
    tested
}

/// The GPU of that index and its kernels, all of which its driver compiles on the way.
///
/// # Errors
/// A GPU that isn't there, or whose driver refuses a kernel.
#[cfg(feature = "cuda")]
pub fn gpu(index: usize) -> Result<(tilewright_host::gpu::GpuInfo, Vec<Tested>), Error> {
    let driver = tilewright_host::gpu::cuda::CudaDriver::open(index)?;
    driver.prepare_all()?;
    Ok((driver.info().clone(), gpu_kernels(&driver)))
}

/// Results by name, in the order in which names come.
fn collect(results: impl Iterator<Item = (&'static str, Result<(), Error>)>) -> Vec<Tested> {
    let mut all: Vec<Tested> = Vec::new();
    for (name, result) in results {
        let at = all.iter().position(|tested| tested.name == name).unwrap_or_else(|| {
            all.push(Tested { name, problems: 0, fault: None });
            all.len() - 1
        });
        all[at].problems += 1;
        if let Err(error) = result {
            all[at].fault.get_or_insert(error);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_passes() {
        let tested = cpu_operations();
        let names: Vec<&str> = tested.iter().map(|tested| tested.name).collect();
        for name in
            ["attention", "rope_append", "linear", "add_rms_norm", "silu_mul", "embed", "argmax", "sample"]
        {
            assert!(names.contains(&name), "{name}");
        }
        assert!(tested.iter().all(|tested| tested.fault.is_none() && tested.problems > 0), "{tested:?}");
    }

    #[test]
    fn the_first_fault_is_kept() {
        let wrong = |what: &str| Err(Error::Wrong { kernel: "x", problem: "p".into(), what: what.into() });
        let results = [("x", Ok(())), ("x", wrong("first")), ("y", Ok(())), ("x", wrong("second"))];
        let tested = collect(results.into_iter());
        assert_eq!((tested.len(), tested[0].problems, tested[1].problems), (2, 3, 1));
        assert!(tested[0].fault.as_ref().is_some_and(|fault| fault.to_string().ends_with("first")));
        assert!(tested[1].fault.is_none());
    }
}
