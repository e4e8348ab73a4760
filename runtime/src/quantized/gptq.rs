use super::words::{Packing, along_cols, along_rows, transposed};
use super::{Linear, Parts, Reader};
use crate::Result;
use crate::config::QuantFormat;

impl Reader<'_> {
    /// GPTQ (Frantar et al. 2022, arXiv 2210.17323) in the layout of AutoGPTQ.
    pub(super) fn gptq(&mut self, linear: Linear<'_>) -> Result<Parts> {
        let Linear { name, rows, cols } = linear;
        let packing = Packing { bits: self.config.bits, interleaved: false };
        let (pack, groups) = (packing.pack(), self.groups(linear));
        let qweight = self.take(name, "qweight");
        self.expect_whole_words(&qweight, "inputs", cols, pack)?;
        let words = self.checkpoint.words(&qweight, &[cols / pack, rows])?;
        let mut codes = along_cols(words, rows, cols, packing);
        let less_one = self.config.format == QuantFormat::Gptq;
        let mut zeros = self.zeros(linear, packing)?;
        if less_one {
            let largest = self.bits().largest();
            zeros.iter_mut().for_each(|zero| *zero = zero.wrapping_add(1) & largest);
        }
        let stored = self.bits().middle() - u8::from(less_one);
        self.expect_symmetric(&format!("{name}.qzeros"), &zeros, stored)?;
        let (scales, scale_type) = self.checkpoint.scales(&self.take(name, "scales"), &[groups, rows])?;
        let order = self.order(linear, "g_idx")?;
        order.apply(&mut codes, cols);
        Ok(Parts {
            codes,
            zeros,
            scales: transposed(&scales, rows, groups),
            scale_type,
            permutation: order.into_permutation(),
        })
    }

    /// AWQ (Lin et al. 2023, arXiv 2306.00978) in the `gemm` layout of AutoAWQ.
    pub(super) fn awq(&mut self, linear: Linear<'_>) -> Result<Parts> {
        let Linear { name, rows, cols } = linear;
        let packing = Packing { bits: self.config.bits, interleaved: true };
        let (pack, groups) = (packing.pack(), self.groups(linear));
        let qweight = self.take(name, "qweight");
        self.expect_whole_words(&qweight, "outputs", rows, pack)?;
        let words = self.checkpoint.words(&qweight, &[cols, rows / pack])?;
        let codes = along_rows(words, rows, cols, packing);
        let zeros = self.zeros(linear, packing)?;
        self.expect_symmetric(&format!("{name}.qzeros"), &zeros, self.bits().middle())?;
        let (scales, scale_type) = self.checkpoint.scales(&self.take(name, "scales"), &[groups, rows])?;
        Ok(Parts { codes, zeros, scales: transposed(&scales, rows, groups), scale_type, permutation: None })
    }

    /// `qzeros` as stored, `[rows, groups]`.
    fn zeros(&mut self, linear: Linear<'_>, packing: Packing) -> Result<Vec<u8>> {
        let Linear { name, rows, .. } = linear;
        let groups = self.groups(linear);
        let qzeros = self.take(name, "qzeros");
        self.expect_whole_words(&qzeros, "outputs", rows, packing.pack())?;
        let words = self.checkpoint.words(&qzeros, &[groups, rows / packing.pack()])?;
        Ok(along_rows(words, rows, groups, packing))
    }
}
