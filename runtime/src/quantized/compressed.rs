use rayon::prelude::*;

use super::words::{Packing, along_rows, row_by_row};
use super::{Linear, Parts, Reader};
use crate::Result;

impl Reader<'_> {
    /// compressed-tensors' `pack-quantized`. Codes and zero points are signed numbers plus half their range, so that the
    /// difference of the two is what it was.
    pub(super) fn pack_quantized(&mut self, linear: Linear<'_>) -> Result<Parts> {
        let Linear { name, rows, cols } = linear;
        let packing = Packing { bits: self.config.bits, interleaved: false };
        let groups = self.groups(linear);
        if let Some(shape) = self.take_if_there(name, "weight_shape") {
            let found = self.checkpoint.longs(&shape, &[2])?;
            if found != [rows as i64, cols as i64] {
                return Err(self.wrong(&shape, format!("{:?}", [rows, cols]), format!("{found:?}")));
            }
        }
        let packed = self.take(name, "weight_packed");
        let words = self.checkpoint.words(&packed, &[rows, cols.div_ceil(packing.pack())])?;
        let mut codes = row_by_row(words, rows, cols, packing);
        let (scales, scale_type) =
            self.checkpoint.scales(&self.take(name, "weight_scale"), &[rows, groups])?;
        let zeros = match self.take_if_there(name, "weight_zero_point") {
            None => vec![self.bits().middle(); rows * groups],
            Some(tensor) if self.checkpoint.holds_signed_bytes(&tensor) => {
                self.signed_zeros(linear, &tensor)?
            }
            Some(tensor) => {
                self.expect_whole_words(&tensor, "outputs", rows, packing.pack())?;
                let words = self.checkpoint.words(&tensor, &[rows / packing.pack(), groups])?;
                // Words of one column hold the zero points of `pack` outputs.
                let by_column = super::words::transposed(words, groups, rows / packing.pack());
                along_rows(&by_column, rows, groups, packing)
            }
        };
        self.expect_symmetric(&format!("{name}.weight_zero_point"), &zeros, self.bits().middle())?;
        let order = self.order(linear, "weight_g_idx")?;
        order.apply(&mut codes, cols);
        Ok(Parts { codes, zeros, scales, scale_type, permutation: order.into_permutation() })
    }

    /// compressed-tensors' `int-quantized`: signed bytes and a scale a channel.
    pub(super) fn int_quantized(&mut self, linear: Linear<'_>) -> Result<Parts> {
        let Linear { name, rows, cols } = linear;
        let weight = self.take(name, "weight");
        // Adding 128 to a signed byte flips its highest bit.
        let signed = self.checkpoint.signed_bytes(&weight, &[rows, cols])?;
        let mut codes = vec![0; signed.len()];
        let of_rows = codes.par_chunks_exact_mut(cols).zip(signed.par_chunks_exact(cols));
        of_rows
            .for_each(|(codes, signed)| codes.iter_mut().zip(signed).for_each(|(code, b)| *code = b ^ 0x80));
        let (scales, scale_type) = self.checkpoint.scales(&self.take(name, "weight_scale"), &[rows, 1])?;
        let zeros = match self.take_if_there(name, "weight_zero_point") {
            None => vec![self.bits().middle(); rows],
            Some(tensor) => self.signed_zeros(linear, &tensor)?,
        };
        self.expect_symmetric(&format!("{name}.weight_zero_point"), &zeros, self.bits().middle())?;
        Ok(Parts { codes, zeros, scales, scale_type, permutation: None })
    }

    /// Zero points as signed bytes, `[rows, groups]`.
    fn signed_zeros(&self, linear: Linear<'_>, tensor: &str) -> Result<Vec<u8>> {
        let bytes = self.checkpoint.signed_bytes(tensor, &[linear.rows, self.groups(linear)])?;
        let (middle, largest) = (i16::from(self.bits().middle()), i16::from(self.bits().largest()));
        bytes
            .iter()
            .map(|&byte| {
                let zero = i16::from(byte as i8) + middle;
                match (0..=largest).contains(&zero) {
                    true => Ok(zero as u8),
                    false => {
                        let expected = format!("zero points from {} to {}", -middle, largest - middle);
                        Err(self.wrong(tensor, expected, byte as i8))
                    }
                }
            })
            .collect()
    }
}
