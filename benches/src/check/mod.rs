//! No kernel is timed unchecked: its launches, on a small problem of the same options, against the float64 oracle in full; then the
//! very launches that are timed, their output complete and finite, and a few elements of it against the oracle.
//!
//! A check knows nothing of a kernel but the names of its buffers.

mod attention;
mod matrix;
mod rope;
mod rows;

pub(crate) use rows::sample_settings;

use tilewright_host::gpu::Driver;
use tilewright_reference::{Bound, Floor, bf16_bits, bf16_from_bits, compare, f16_bits, f16_from_bits};

use crate::{
    error::{Error, Result},
    kernels::Kernel,
    prepared::Prepared,
    problem::Problem,
    random::draw,
};

/// Outputs of a large problem that are held to the oracle.
const SAMPLED: usize = 6;
/// The seed of small problems.
const SEED: u64 = 11;

/// How much of an output is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Every element.
    All,
    /// A few rows or vectors.
    Sampled,
}

impl Extent {
    /// Which of `count` outputs: all, or a few, the first and the last among them.
    fn of(self, count: usize) -> Vec<usize> {
        if self == Extent::All || count <= SAMPLED {
            return (0..count).collect();
        }
        let stride = count / SAMPLED;
        let mut chosen: Vec<usize> =
            (1..SAMPLED - 1).map(|nth| nth * stride + draw((count + nth) as u64, stride)).collect();
        chosen.extend([0, count - 1]);
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }
}

/// Why an output is wrong, or what the device said.
#[derive(Debug)]
enum Failure {
    Wrong(String),
    Device(tilewright_host::Error),
}

impl From<tilewright_host::Error> for Failure {
    fn from(error: tilewright_host::Error) -> Failure {
        Failure::Device(error)
    }
}

impl From<tilewright_reference::Mismatch> for Failure {
    fn from(mismatch: tilewright_reference::Mismatch) -> Failure {
        Failure::Wrong(mismatch.to_string())
    }
}

/// Runs a kernel on the small problem that stands for `problem` and compares all of its output with the oracle.
///
/// # Errors
/// [`Error::Wrong`] with the worst element; the device's.
pub fn check_small<D: Driver>(kernel: &dyn Kernel<D>, driver: &D, problem: &Problem) -> Result<()> {
    let small = problem.small();
    let prepared = kernel.prepare(driver, &small, SEED)?;
    prepared.run()?;
    check(kernel.name(), &prepared, &small, Extent::All)
}

/// Compares what launches that have run left behind with the oracle.
///
/// # Errors
/// [`Error::Wrong`] with the worst element; the device's.
pub fn check<D: Driver>(
    kernel: &'static str,
    prepared: &Prepared<'_, D>,
    problem: &Problem,
    extent: Extent,
) -> Result<()> {
    let checked = match problem {
        Problem::Prefill(problem) => attention::prefill(prepared, problem, extent),
        Problem::Decode(problem) => attention::decode(prepared, problem, extent),
        Problem::RopeAppend(problem) => rope::check(prepared, problem, extent),
        Problem::Gemm(problem) => matrix::check(prepared, problem, extent),
        Problem::RmsNorm(shape) => rows::rms_norm(prepared, shape, extent),
        Problem::SiluMul(shape) => rows::silu_mul(prepared, shape, extent),
        Problem::GatherRows(shape) => rows::gather_rows(prepared, shape, extent),
        Problem::Argmax(shape) => rows::argmax(prepared, shape, extent),
        Problem::Sample(shape) => rows::sample(prepared, shape, extent),
    };
    checked.map_err(|failure| match failure {
        Failure::Wrong(what) => Error::Wrong { kernel, problem: format!("{problem:?}"), what },
        Failure::Device(error) => Error::Device(error),
    })
}

/// A format of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Bf16,
    F16,
}

impl Half {
    fn value(self, bits: u16) -> f32 {
        if self == Half::Bf16 { bf16_from_bits(bits) } else { f16_from_bits(bits) }
    }

    /// The nearest of its numbers.
    fn round(self, value: f32) -> f32 {
        self.value(if self == Half::Bf16 { bf16_bits(value) } else { f16_bits(value) })
    }

    fn floor(self) -> Floor {
        if self == Half::Bf16 { Floor::BF16 } else { Floor::F16 }
    }
}

/// The values of a whole output, refused if one of them isn't finite: the poison of what nobody wrote is a NaN.
fn finite<D: Driver>(prepared: &Prepared<'_, D>, name: &str, half: Half) -> Result<Vec<u16>, Failure> {
    let bytes = prepared.bytes(name, 0, prepared.len_bytes(name)?)?;
    let words: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    match words.iter().position(|&word| !half.value(word).is_finite()) {
        None => Ok(words),
        Some(at) => Err(Failure::Wrong(format!("element {at} of '{name}' is {}", half.value(words[at])))),
    }
}

/// [`finite`], of bf16.
fn finite_bf16<D: Driver>(prepared: &Prepared<'_, D>, name: &str) -> Result<Vec<u16>, Failure> {
    finite(prepared, name, Half::Bf16)
}

/// The inputs `range` of a buffer.
fn inputs<D: Driver>(
    prepared: &Prepared<'_, D>,
    name: &str,
    range: std::ops::Range<usize>,
) -> Result<Vec<f32>, Failure> {
    let elements = prepared.elements(name)?;
    Ok(range.map(|index| elements.value(index)).collect())
}

/// One vector of bf16 against the truth, by what the plain computation is off.
fn compare_bf16(
    name: &str,
    actual: &[u16],
    truth: &[f64],
    plain: &[f32],
    floor: Floor,
) -> Result<(), Failure> {
    compare_half(Half::Bf16, name, actual, truth, plain, floor)
}

/// As [`compare_bf16`], of another format.
fn compare_half(
    half: Half,
    name: &str,
    actual: &[u16],
    truth: &[f64],
    plain: &[f32],
    floor: Floor,
) -> Result<(), Failure> {
    let actual: Vec<f32> = actual.iter().map(|&bits| half.value(bits)).collect();
    let bound = Bound::from_plain(&[1, truth.len()], truth, plain, floor);
    compare(name, &actual, truth, &bound)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_reach_both_ends() {
        assert_eq!(Extent::All.of(3), [0, 1, 2]);
        assert_eq!(Extent::Sampled.of(0), [0usize; 0]);
        for count in [7, 100, 1_000_003] {
            let chosen = Extent::Sampled.of(count);
            assert!(chosen.len() > SAMPLED / 2 && chosen.len() <= SAMPLED, "{chosen:?}");
            assert!(chosen[0] == 0 && chosen[chosen.len() - 1] == count - 1, "{chosen:?}");
        }
    }
}
