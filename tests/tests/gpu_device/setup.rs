//! What the tests share: numbers, tensors on any device, comparison.

use half::bf16;
use tilewright_host::{Batch, DType, Device, HostMatrix, Outputs, gpu::GpuDevice};
use tilewright_tests::emulated::Emulated;

/// Uniform numbers in (-1, 1) that bf16 holds exactly, so that no device rounds its inputs.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn take(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count)
            .map(|_| {
                self.0 =
                    self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let unit = (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                bf16::from_f32(unit * scale).to_f32()
            })
            .collect()
    }
}

pub fn gpu() -> GpuDevice<Emulated> {
    GpuDevice::new(Emulated::default())
}

/// The device that has Hopper's kernels.
pub fn hopper() -> GpuDevice<Emulated> {
    GpuDevice::new(Emulated::default().hopper())
}

pub fn matrix<D: Device>(device: &D, values: &[f32], cols: usize) -> D::Matrix {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let parts = vec![(values.len() / cols, &bytes[..])];
    device.matrix(&HostMatrix { parts, cols, dtype: DType::F32 }).expect("a matrix")
}

/// Activations of prompts' tokens.
pub fn tensor<D: Device>(device: &D, values: &[f32], cols: usize) -> D::Tensor {
    tensor_of(device, values, cols, 0)
}

/// Activations of which the first `generated` rows are generated tokens', by way of an embedding.
pub fn tensor_of<D: Device>(device: &D, values: &[f32], cols: usize, generated: usize) -> D::Tensor {
    let rows = values.len() / cols;
    let ids: Vec<u32> = (0..rows as u32).collect();
    let mut batch = Batch::default();
    for id in &ids[..generated] {
        batch.push_generated(&[*id], 0, &[0], 1, Outputs::None);
    }
    batch.push(&ids[generated..], 0, &[0], rows.max(1) as u32, Outputs::None);
    let mut out = device.tensor(rows, cols).expect("a tensor");
    let step = device.step(&batch).expect("a step");
    device.embed(&matrix(device, values, cols), &step, &mut out).expect("an embedding");
    out
}

/// That `found` is within `relative * |expected| + floor` of `expected`, everywhere.
#[track_caller]
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], relative: f32, floor: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    let mut worst = (0.0f32, 0);
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let excess = (f - e).abs() / (relative * e.abs() + floor);
        // Anything but a number that is small enough fails, a NaN too.
        if !matches!(excess.partial_cmp(&worst.0), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal))
        {
            worst = (if excess.is_nan() { f32::INFINITY } else { excess }, i);
        }
    }
    let (excess, at) = worst;
    assert!(
        excess <= 1.0,
        "{what}: {excess} times the bound at {at}: found {}, expected {}",
        found[at],
        expected[at]
    );
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
