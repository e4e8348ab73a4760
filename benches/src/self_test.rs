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

impl Tested {
    /// One kernel's results, each of a problem.
    fn of(name: &'static str, results: impl Iterator<Item = Result<(), Error>>) -> Tested {
        let mut tested = Tested { name, problems: 0, fault: None };
        for result in results {
            tested.problems += 1;
            tested.fault = tested.fault.or(result.err());
        }
        tested
    }
}

/// Every operation of the CPU device, each tested when it is asked for.
pub fn cpu_operations() -> impl Iterator<Item = Tested> {
    let device = CpuDevice::new();
    let products = [GemmWeights::Int8, GemmWeights::Int4];
    let products = products.map(|weights| Problem::Gemm(Gemm { weights, m: 3, n: 1, k: 1 }));
    let mut by_name: Vec<(&'static str, Vec<Problem>)> = Vec::new();
    for problem in cpu::cells().into_iter().map(|cell| cell.problem).chain(products) {
        let name = cpu::name(&problem);
        match by_name.iter_mut().find(|(known, _)| *known == name) {
            Some((_, problems)) => problems.push(problem.small()),
            None => by_name.push((name, vec![problem.small()])),
        }
    }
    by_name.into_iter().map(move |(name, problems)| {
        Tested::of(name, problems.iter().map(|problem| operation(&device, problem, true).map(drop)))
    })
}

/// Every kernel that is timed, on a driver, each tested when it is asked for: those that this device doesn't take have no problems.
pub fn gpu_kernels<D: Driver>(driver: &D) -> impl Iterator<Item = Tested> {
    kernels::all::<D>().into_iter().map(move |kernel| {
        let mut seen = HashSet::new();
        let problems = cells::all().into_iter().map(|cell| cell.problem);
        let small =
            problems.filter(|problem| kernel.takes(problem, driver.info()) && seen.insert(problem.small()));
        Tested::of(kernel.name(), small.map(|problem| check_small(kernel.as_ref(), driver, &problem)))
    })
}

/// A GPU under test.
#[cfg(feature = "cuda")]
pub struct Gpu(tilewright_host::gpu::cuda::CudaDriver);

#[cfg(feature = "cuda")]
impl Gpu {
    /// The GPU of that index, in the driver's order.
    ///
    /// # Errors
    /// A GPU that isn't there or is too old.
    pub fn open(index: usize) -> Result<Gpu, Error> {
        Ok(Gpu(tilewright_host::gpu::cuda::CudaDriver::open(index)?))
    }

    /// What it is.
    pub fn info(&self) -> &tilewright_host::gpu::GpuInfo {
        self.0.info()
    }

    /// Has its driver compile all that it is ever given; `progress` gets how many kernels of how many are done.
    ///
    /// # Errors
    /// A kernel that the driver refuses.
    pub fn compile(&self, progress: &mut (dyn FnMut(usize, usize) + Send)) -> Result<(), Error> {
        Ok(self.0.prepare_all(progress)?)
    }

    /// Its kernels, each tested when it is asked for.
    pub fn kernels(&self) -> impl Iterator<Item = Tested> {
        gpu_kernels(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_passes() {
        let tested: Vec<Tested> = cpu_operations().collect();
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
        let tested = Tested::of("x", [Ok(()), wrong("first"), wrong("second")].into_iter());
        assert_eq!(tested.problems, 3);
        assert!(tested.fault.is_some_and(|fault| fault.to_string().ends_with("first")));
        let none = Tested::of("y", [Ok(())].into_iter());
        assert!(none.problems == 1 && none.fault.is_none());
    }
}
