//! The CPU device: f32 compute over bf16, f16, f32, int8 or int4 weights, vectorised by what the machine is found to have.
//!
//! Work is spread over rayon's pool: the one that the caller runs in, or the global one.

mod accumulate;
mod attention;
mod attention_tile;
mod buffer;
mod cache;
mod ceilings;
mod codes;
mod encoders;
mod isa;
mod layers;
mod linear;
mod linear_many;
mod matrix;
mod ops;
mod parallel;
#[cfg(any(test, not(target_arch = "x86_64")))]
mod portable;
mod quantized;
mod sampling;
mod scores;
mod seen;
mod tensor;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use cache::{CpuCache, CpuRope, CpuStep};
pub use ceilings::{Ceilings, READ_BYTES};
pub use matrix::CpuMatrix;
pub use tensor::{CpuLogits, CpuTensor, CpuVector};

use crate::Error;

/// What activations are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Nothing is rounded: f32 throughout.
    #[default]
    F32,
    /// Weights, the output of every operation, cache entries and attention weights are rounded to bf16; sums, norms' weights,
    /// biases and logits stay f32. The plain bf16 computation by which GPU results are judged.
    Bf16,
}

/// A CPU as a [`crate::Device`].
///
/// ```
/// use tilewright_host::{DType, Device, HostMatrix, cpu::CpuDevice};
///
/// let device = CpuDevice::new();
/// let identity = [1.0_f32, 0.0, 0.0, 1.0].map(f32::to_le_bytes).concat();
/// let matrix = device.matrix(&HostMatrix { parts: vec![(2, &identity)], cols: 2, dtype: DType::F32 })?;
/// # let _ = matrix;
/// # Ok::<(), tilewright_host::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct CpuDevice {
    level: isa::Level,
    precision: Precision,
}

impl CpuDevice {
    /// A device that computes in f32.
    pub fn new() -> Self {
        Self::with_precision(Precision::F32)
    }

    /// A device that rounds as asked.
    pub fn with_precision(precision: Precision) -> Self {
        CpuDevice { level: isa::Level::detect(), precision }
    }

    fn rounds(&self) -> bool {
        self.precision == Precision::Bf16
    }
}

impl Default for CpuDevice {
    fn default() -> Self {
        Self::new()
    }
}

fn shape(op: &'static str, what: &'static str, expected: impl ToString, found: impl ToString) -> Error {
    Error::Shape { op, what, expected: expected.to_string(), found: found.to_string() }
}
