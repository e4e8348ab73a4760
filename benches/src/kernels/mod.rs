//! One file a kernel family: buffers, parameters and grid for a problem. To time another kernel, write such a file and list it
//! in [`all`].
//!
//! The checks find buffers by name: `q`, `k_cache`, `v_cache`, `block_table`, `out` of attention (`k_scale` and `v_scale` beside a
//! quantised cache), and as each family's file says.

mod decode;
mod decode_append;
mod gemm;
mod gemm_few;
mod gemm_sm90;
mod gemm_whole;
mod prefill;
mod prefill_sm90;
mod rope_append;
mod rows;

pub use rows::{EPS, sample_row};

use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo},
};

use crate::{error::Error, prepared::Prepared, problem::Problem};

/// A kernel, or a few that are launched together, as the runner sees it.
pub trait Kernel<D: Driver>: Sync {
    /// Its stem.
    fn name(&self) -> &'static str;
    /// Whether it solves `problem` on such a device.
    fn takes(&self, problem: &Problem, info: &GpuInfo) -> bool;
    /// Buffers with contents of `seed`, and the launches. Called only for problems it takes.
    ///
    /// # Errors
    /// The driver's.
    fn prepare<'d>(&self, driver: &'d D, problem: &Problem, seed: u64) -> Result<Prepared<'d, D>>;
}

/// Every kernel that is timed.
pub fn all<D: Driver>() -> Vec<Box<dyn Kernel<D>>> {
    vec![
        Box::new(prefill::Baseline),
        Box::new(prefill_sm90::Hopper),
        Box::new(decode::TAKEN),
        Box::new(rope_append::Baseline),
        Box::new(gemm::Baseline),
        Box::new(gemm_sm90::Hopper),
        Box::new(gemm_few::Few),
        Box::new(gemm_whole::Whole),
        Box::new(rows::RmsNorm),
        Box::new(rows::SiluMul),
        Box::new(rows::GatherRows),
        Box::new(rows::Argmax),
        Box::new(rows::Sample),
    ]
}

/// Kernels under settings that were not taken, to be timed beside those that were, and attention with what goes before it. [`select`] alone finds them.
pub fn trials<D: Driver>() -> Vec<Box<dyn Kernel<D>>> {
    let rules = decode::TRIALS.into_iter().map(|trial| Box::new(trial) as Box<dyn Kernel<D>>);
    let appends = decode_append::TRIALS.into_iter().map(|trial| Box::new(trial) as Box<dyn Kernel<D>>);
    rules.chain(appends).collect()
}

/// The kernels of those stems, trials among them; all but trials if none is named.
///
/// # Errors
/// [`Error::UnknownKernel`] for a stem that no kernel has.
pub fn select<D: Driver>(names: &[String]) -> Result<Vec<Box<dyn Kernel<D>>>, Error> {
    let mut kernels = all::<D>();
    if !names.is_empty() {
        kernels.extend(trials::<D>());
    }
    if let Some(unknown) = names.iter().find(|name| kernels.iter().all(|kernel| kernel.name() != **name)) {
        let known = kernels.iter().map(|kernel| kernel.name()).collect::<Vec<_>>().join(", ");
        return Err(Error::UnknownKernel { name: unknown.clone(), known });
    }
    kernels.retain(|kernel| names.is_empty() || names.iter().any(|name| name == kernel.name()));
    Ok(kernels)
}
