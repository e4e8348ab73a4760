//! The CPU device against plain loops in f64.
mod attention;
mod isa;
mod layers;
mod linear;
mod quantized;
mod sampling;

use super::isa::Level;
use super::{CpuDevice, CpuTensor, Precision};
use crate::{DType, Device, HostMatrix, Tensor};

/// Numbers that look random and are the same on every run.
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as u32
    }

    /// In [-1, 1).
    pub(super) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next() as f32 / 2f32.powi(31) - 1.0).collect()
    }
}

/// Every vector width of this machine.
fn levels() -> Vec<Level> {
    let mut levels = vec![Level::Portable];
    #[cfg(target_arch = "x86_64")]
    levels.extend([Level::Sse2].into_iter().chain(super::x86::Avx2::detect().map(Level::Avx2)));
    levels.push(Level::detect());
    levels.dedup();
    levels
}

/// One device a vector width of this machine, and one that rounds.
pub(super) fn devices() -> Vec<CpuDevice> {
    let mut devices: Vec<_> =
        levels().into_iter().map(|level| CpuDevice { level, precision: Precision::F32 }).collect();
    devices.push(CpuDevice::with_precision(Precision::Bf16));
    devices
}

/// A tensor holding `values`, padding and spare rows poisoned.
pub(super) fn tensor(device: &CpuDevice, rows: usize, cols: usize, values: &[f32]) -> CpuTensor {
    let mut tensor = device.tensor(rows + 1, cols).unwrap();
    let stride = tensor.stride();
    let shared = tensor.shared();
    // SAFETY: the tensor has a row more than is filled.
    let all = unsafe { shared.slice(0, (rows + 1) * stride) };
    all.fill(f32::NAN);
    for (row, values) in values.chunks_exact(cols.max(1)).enumerate() {
        all[row * stride..][..cols].copy_from_slice(values);
    }
    tensor.set_rows(rows).unwrap();
    tensor
}

pub(super) fn bytes(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Bf16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// `values` as the device sees them once stored as `dtype`.
pub(super) fn stored(values: &[f32], dtype: DType, precision: Precision) -> Vec<f64> {
    let narrow = |x: f32| match dtype {
        DType::Bf16 => half::bf16::from_f32(x).to_f32(),
        DType::F16 => half::f16::from_f32(x).to_f32(),
        DType::F32 => x,
    };
    let round = |x: f32| match precision {
        Precision::F32 => x,
        Precision::Bf16 => half::bf16::from_f32(x).to_f32(),
    };
    values.iter().map(|&x| f64::from(round(narrow(x)))).collect()
}

pub(super) fn matrix(
    device: &CpuDevice,
    rows: usize,
    cols: usize,
    values: &[f32],
    dtype: DType,
) -> super::CpuMatrix {
    // In two parts, the second not aligned to its elements.
    let raw = bytes(values, dtype);
    let cut = rows / 3 * cols * dtype.bytes();
    let shifted = [&[0u8][..], &raw[cut..]].concat();
    let parts = vec![(rows / 3, &raw[..cut]), (rows - rows / 3, &shifted[1..])];
    device.matrix(&HostMatrix { parts, cols, dtype }).unwrap()
}

/// Whether every element is within `relative` of its own size plus `floor`; bf16 devices are allowed `2^-8` more.
#[track_caller]
pub(super) fn assert_close(device: &CpuDevice, what: &str, found: &[f32], expected: &[f64], floor: f64) {
    let relative = if device.precision == Precision::Bf16 { 1.0 / 256.0 } else { 1e-6 };
    let floor = if device.precision == Precision::Bf16 { floor.max(1e-2) } else { floor };
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let bound = floor + relative * expected.abs();
        // Written so that a NaN fails.
        let close = (f64::from(found) - expected).abs() <= bound;
        assert!(close, "{what} on {}: element {i}: {found} is not {expected}", device.describe());
    }
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Runs `work` in a pool of `threads`.
pub(super) fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}
