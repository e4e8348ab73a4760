//! One product with weights of each format, too large for caches: what reading fewer bytes is worth where reading is all there is.

use std::sync::Arc;
use std::time::Instant;

use tilewright_host::{
    ActivationBits, Batch, CodeBits, DType, Device, HostMatrix, HostQuantized, Outputs, QuantizedPart,
    QuantizedSpec,
};

use crate::Result;
use crate::device::DeviceJob;
use crate::plan::WeightFormat;

/// Products between two looks at the clock: what it takes to launch and to wait is in none of them alone.
const TOGETHER: usize = 16;
/// Bytes of weights that take turns, at least: twice what the largest cache of a GPU holds.
const TURN_BYTES: usize = 100 << 20;

/// Seconds of a product of one generated token's row with weights `[rows, cols]` in each format: the best of some runs.
pub(super) struct Products {
    pub rows: usize,
    pub cols: usize,
    pub runs: usize,
}

impl DeviceJob for Products {
    /// By format, largest first. A device that computes in bf16 has no time for f32.
    type Output = Vec<(WeightFormat, f64)>;

    fn run<D: Device>(self, device: Arc<D>, in_f32: bool) -> Result<Self::Output> {
        let formats = WeightFormat::ALL.into_iter().filter(|format| in_f32 || *format != WeightFormat::F32);
        formats.map(|format| Ok((format, self.seconds(&*device, format)?))).collect()
    }
}

impl Products {
    fn seconds<D: Device>(&self, device: &D, format: WeightFormat) -> Result<f64> {
        let bytes = format.matrix_bytes(self.rows, self.cols)? as usize;
        let copies =
            (0..TURN_BYTES.div_ceil(bytes.max(1)).min(TOGETHER)).map(|_| self.weights(device, format));
        let copies = copies.collect::<Result<Vec<_>>>()?;
        let row = floats(1, self.cols);
        let table =
            device.matrix(&HostMatrix { parts: vec![(1, &row)], cols: self.cols, dtype: DType::F32 })?;
        let mut batch = Batch::default();
        batch.push_generated(&[0], 0, &[0], 16, Outputs::None);
        let (mut x, mut out) = (device.tensor(1, self.cols)?, device.tensor(1, self.rows)?);
        device.embed(&table, &device.step(&batch)?, &mut x)?;
        let mut best = f64::INFINITY;
        // The first run warms up.
        for run in 0..=self.runs {
            device.synchronize()?;
            let start = Instant::now();
            for weights in copies.iter().cycle().take(TOGETHER) {
                device.linear(&x, weights, None, &mut out)?;
            }
            device.synchronize()?;
            if run > 0 {
                best = best.min(start.elapsed().as_secs_f64() / TOGETHER as f64);
            }
        }
        Ok(best)
    }

    fn weights<D: Device>(&self, device: &D, format: WeightFormat) -> Result<D::Matrix> {
        let (rows, cols) = (self.rows, self.cols);
        let plain = |bytes: &[u8], dtype| {
            Ok(device.matrix(&HostMatrix { parts: vec![(rows, bytes)], cols, dtype })?)
        };
        let (bits, group, activations) = match format {
            WeightFormat::F32 => return plain(&floats(rows, cols), DType::F32),
            WeightFormat::Bf16 => {
                let halves: Vec<u8> = floats(rows, cols).chunks_exact(4).flat_map(|b| [b[2], b[3]]).collect();
                return plain(&halves, DType::Bf16);
            }
            WeightFormat::Int8 => (CodeBits::Eight, cols, ActivationBits::Eight),
            WeightFormat::Int4 => (CodeBits::Four, 128.min(cols), ActivationBits::Full),
        };
        let groups = rows * cols.div_ceil(group);
        let mut next = numbers();
        let part = QuantizedPart::new(QuantizedSpec {
            rows,
            cols,
            bits,
            group,
            codes: (0..rows * cols).map(|_| (next() >> 24) as u8 & bits.largest()).collect(),
            // A number of sixteen bits, as checkpoints have them: a GPU keeps codes under those.
            scales: vec![1.0 / 128.0; groups],
            scale_type: DType::F16,
            zeros: vec![bits.middle(); groups],
            permutation: None,
            pre_scale: None,
            activations,
        })?;
        Ok(device.quantized(&HostQuantized::new(vec![part])?)?)
    }
}

fn numbers() -> impl FnMut() -> u32 {
    let mut state = 12_345_u32;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state
    }
}

/// Small numbers in f32, little-endian.
fn floats(rows: usize, cols: usize) -> Vec<u8> {
    let mut next = numbers();
    (0..rows * cols).flat_map(|_| ((next() as f32 / u32::MAX as f32 - 0.5) * 0.1).to_le_bytes()).collect()
}
