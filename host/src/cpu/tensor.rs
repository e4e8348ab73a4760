use super::buffer::Buffer;
use super::isa::LANES;
use super::parallel::Shared;
use super::shape;
use crate::{Error, Result, Tensor};

/// Activations, or logits, in f32. Rows are padded to whole vectors, so that no operation has a tail of columns.
pub struct CpuTensor {
    data: Buffer<f32>,
    rows: usize,
    max_rows: usize,
    cols: usize,
    stride: usize,
}

impl CpuTensor {
    pub(super) fn new(max_rows: usize, cols: usize, purpose: &'static str) -> Result<Self> {
        let mut stride = cols.checked_next_multiple_of(LANES).unwrap_or(usize::MAX);
        // Rows a multiple of 1 KiB apart would compete for the same few sets of the first-level cache.
        if stride.is_multiple_of(256) {
            stride = stride.saturating_add(LANES);
        }
        let data = Buffer::reused(&[max_rows, stride], purpose)?;
        Ok(CpuTensor { data, rows: 0, max_rows, cols, stride })
    }

    /// Elements from one row to the next: at least `cols` rounded up to whole vectors.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.stride..][..self.cols]
    }

    /// All rows' elements, `stride` apart.
    pub(super) fn elems(&self) -> &[f32] {
        &self.data
    }

    pub(super) fn shared(&mut self) -> Shared<f32> {
        Shared::new(&mut self.data)
    }

    /// The rows in use without their padding.
    pub(super) fn to_vec(&self) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        values.try_reserve_exact(self.rows * self.cols).map_err(|_| Error::OutOfMemory {
            device: "cpu".into(),
            requested_bytes: self.rows * self.cols * 4,
            purpose: "a copy of a tensor",
        })?;
        for row in 0..self.rows {
            values.extend_from_slice(self.row(row));
        }
        Ok(values)
    }

    /// Gives an output its input's rows and checks its columns.
    pub(super) fn prepare(
        &mut self,
        op: &'static str,
        what: &'static str,
        rows: usize,
        cols: usize,
    ) -> Result<()> {
        if self.cols != cols {
            return Err(shape(op, what, format!("{cols} columns"), format!("{} columns", self.cols)));
        }
        if rows > self.max_rows {
            return Err(shape(op, what, format!("at least {rows} rows"), format!("{} rows", self.max_rows)));
        }
        self.rows = rows;
        Ok(())
    }
}

impl Tensor for CpuTensor {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn set_rows(&mut self, rows: usize) -> Result<()> {
        self.prepare("set_rows", "rows", rows, self.cols)
    }
}

/// f32 logits.
pub struct CpuLogits(pub(super) CpuTensor);

/// An f32 vector, padded with zeros to whole vectors.
pub struct CpuVector {
    data: Buffer<f32>,
    len: usize,
}

impl CpuVector {
    pub(super) fn new(values: &[f32]) -> Result<Self> {
        let mut data = Buffer::zeroed(&[values.len().next_multiple_of(LANES)], "a vector of weights")?;
        data[..values.len()].copy_from_slice(values);
        Ok(CpuVector { data, len: values.len() })
    }

    pub(super) fn values(&self) -> &[f32] {
        &self.data[..self.len]
    }

    pub(super) fn padded(&self) -> &[f32] {
        &self.data
    }

    pub(super) fn expect(&self, op: &'static str, what: &'static str, len: usize) -> Result<()> {
        if self.len == len {
            return Ok(());
        }
        Err(shape(op, what, format!("{len} elements"), format!("{} elements", self.len)))
    }
}

/// Rounds to the nearest bf16, ties to even.
#[inline(always)]
pub(super) fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    // A NaN's payload could carry into infinity.
    if x.is_nan() { f32::NAN } else { f32::from_bits(rounded) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_agrees_with_half() {
        for bits in (0..u32::MAX - 99_991).step_by(99_991) {
            let x = f32::from_bits(bits);
            let expected = half::bf16::from_f32(x).to_f32();
            let found = round_to_bf16(x);
            assert!(found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()), "{x:e}");
        }
    }
}
