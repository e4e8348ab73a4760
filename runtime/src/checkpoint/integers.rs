use safetensors::Dtype;
use tilewright_host::DType;

use super::{Checkpoint, expect_shape};
use crate::{Error, Result};

impl Checkpoint {
    /// All elements of a tensor of 32-bit integers, little-endian, where they are.
    pub(crate) fn words(&self, name: &str, shape: &[usize]) -> Result<&[[u8; 4]]> {
        Ok(self.integers(name, shape, Dtype::I32)?.as_chunks().0)
    }

    /// All elements of a tensor of 64-bit integers.
    pub(crate) fn longs(&self, name: &str, shape: &[usize]) -> Result<Vec<i64>> {
        let bytes = self.integers(name, shape, Dtype::I64)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect())
    }

    /// All elements of a tensor of signed bytes, by their bits.
    pub(crate) fn signed_bytes(&self, name: &str, shape: &[usize]) -> Result<&[u8]> {
        self.integers(name, shape, Dtype::I8)
    }

    /// Whether there is a tensor of that name and its elements are signed bytes.
    pub(crate) fn holds_signed_bytes(&self, name: &str) -> bool {
        self.entry(name).is_ok_and(|(entry, _)| entry.dtype == Dtype::I8)
    }

    /// All elements of a tensor of floating-point scales, which must be finite, and their type. A dimension of 1 at the end may
    /// be missing.
    pub(crate) fn scales(&self, name: &str, shape: &[usize]) -> Result<(Vec<f32>, DType)> {
        let (entry, path) = self.entry(name)?;
        if !(shape.ends_with(&[1]) && entry.shape == shape[..shape.len() - 1]) {
            expect_shape(entry, path, name, shape)?;
        }
        let dtype = self.float_type(name)?;
        let values = self.floats(name)?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok((values, dtype)),
            Some(at) => {
                let found = format!("{} at element {at}", values[at]);
                Err(Error::tensor(path, name, "finite scales", found))
            }
        }
    }

    fn integers(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<&[u8]> {
        let (entry, path) = self.entry(name)?;
        if entry.dtype != dtype {
            return Err(Error::tensor(path, name, format!("dtype {dtype:?}"), format!("{:?}", entry.dtype)));
        }
        expect_shape(entry, path, name, shape)?;
        Ok(self.bytes(entry))
    }
}
