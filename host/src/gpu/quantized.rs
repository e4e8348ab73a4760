use half::bf16;

use super::{Driver, GpuDevice, GpuMatrix};
use crate::{DType, HostMatrix, HostQuantized, Result};

impl<Dr: Driver> GpuDevice<Dr> {
    /// Dequantised on the host and rounded to bf16: right, but neither small nor fast. Activations are not rounded to eight bits.
    pub(super) fn make_quantized(&self, weights: &HostQuantized) -> Result<GpuMatrix<Dr>> {
        let bytes: Vec<u8> =
            weights.dequantized().into_iter().flat_map(|w| bf16::from_f32(w).to_le_bytes()).collect();
        let parts = vec![(weights.rows(), &bytes[..])];
        self.make_matrix(&HostMatrix { parts, cols: weights.cols(), dtype: DType::Bf16 })
    }
}
