//! Quantised weights of the file formats of the day, read into [`tilewright_host::HostQuantized`].
//!
//! | format | tensors of a linear layer `[out, in]` |
//! |---|---|
//! | GPTQ | `qweight` I32 `[in / pack, out]`, `qzeros` I32 `[groups, out / pack]`, `scales` `[groups, out]`, `g_idx` I32 `[in]` |
//! | AWQ, `gemm` | `qweight` I32 `[in, out / 8]`, `qzeros` I32 `[groups, out / 8]`, `scales` `[groups, out]` |
//! | compressed-tensors, `pack-quantized` | `weight_packed` I32 `[out, in / pack]`, `weight_scale` `[out, groups]`, `weight_shape` I64, `weight_zero_point`, `weight_g_idx` |
//! | compressed-tensors, `int-quantized` | `weight` I8 `[out, in]`, `weight_scale` `[out, 1]`, `weight_zero_point` I8 |
//!
//! `pack` codes of 4 or 8 bits share a word. Any of them may have `pre_quant_scale`, `[in]`, which multiplies the activations
//! (SmoothQuant). A layer without these tensors is read as it would be in a checkpoint that isn't quantised.

mod census;
mod check;
mod compressed;
mod gptq;
mod groups;
mod words;

use std::path::Path;

use tilewright_host::{ActivationBits, CodeBits, DType, QuantizedPart, QuantizedSpec};

use crate::checkpoint::Checkpoint;
use crate::config::{QuantFormat, QuantizationConfig};
use crate::{Error, Result};
use census::Census;
pub(crate) use check::check_plain;
pub use check::{MatrixCheck, check_matrix};

/// Linear layer `name` (without `.weight`) of `rows` outputs and `cols` inputs, as a checkpoint stores it.
///
/// # Errors
/// A tensor that is missing or of another type or shape than `config` implies, a scale that isn't finite, a column without a
/// group: the file, the tensor, what was expected and what was found.
pub fn read_linear(
    checkpoint: &Checkpoint,
    config: &QuantizationConfig,
    name: &str,
    rows: usize,
    cols: usize,
) -> Result<QuantizedPart> {
    Reader::new(checkpoint, config).part(name, rows, cols)
}

/// Reads quantised linear layers of a checkpoint, and notes which tensors they took.
pub(crate) struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a QuantizationConfig,
    used: Vec<String>,
    census: Census,
}

/// A linear layer's name and shape.
#[derive(Clone, Copy)]
struct Linear<'n> {
    name: &'n str,
    rows: usize,
    cols: usize,
}

/// What every format's tensors come down to.
struct Parts {
    codes: Vec<u8>,
    /// `[rows, groups]`
    zeros: Vec<u8>,
    scales: Vec<f32>,
    scale_type: DType,
    permutation: Option<Vec<u32>>,
}

impl<'a> Reader<'a> {
    pub fn new(checkpoint: &'a Checkpoint, config: &'a QuantizationConfig) -> Reader<'a> {
        Reader { checkpoint, config, used: Vec::new(), census: Census::default() }
    }

    /// Whether the tensors of linear layer `name` are those of a quantised one.
    pub fn holds(&self, name: &str) -> bool {
        let has = |tensor: &str| self.checkpoint.contains(&format!("{name}.{tensor}"));
        match self.config.format {
            QuantFormat::Gptq | QuantFormat::GptqV2 | QuantFormat::Awq => has("qweight"),
            QuantFormat::PackQuantized => has("weight_packed"),
            QuantFormat::IntQuantized => self.checkpoint.holds_signed_bytes(&format!("{name}.weight")),
        }
    }

    /// Linear layer `name` of `rows` outputs and `cols` inputs.
    pub fn part(&mut self, name: &str, rows: usize, cols: usize) -> Result<QuantizedPart> {
        let linear = Linear { name, rows, cols };
        let parts = match self.config.format {
            QuantFormat::Gptq | QuantFormat::GptqV2 => self.gptq(linear)?,
            QuantFormat::Awq => self.awq(linear)?,
            QuantFormat::PackQuantized => self.pack_quantized(linear)?,
            QuantFormat::IntQuantized => self.int_quantized(linear)?,
        };
        let pre_scale = match self.checkpoint.contains(&format!("{name}.pre_quant_scale")) {
            false => None,
            true => Some(self.checkpoint.scales(&self.take(name, "pre_quant_scale"), &[cols])?.0),
        };
        self.take_idle_bias(linear)?;
        let Parts { codes, zeros, scales, scale_type, permutation } = parts;
        let spec = QuantizedSpec {
            rows,
            cols,
            bits: self.config.code_bits(),
            group: self.config.group(cols),
            codes,
            scales,
            scale_type,
            zeros,
            permutation,
            pre_scale,
            activations: match self.config.format {
                QuantFormat::IntQuantized => ActivationBits::Eight,
                _ => ActivationBits::Full,
            },
        };
        self.census.count(&spec);
        // Whatever a file can get wrong was named above.
        Ok(QuantizedPart::new(spec)?)
    }

    /// The tensors taken so far.
    pub fn used(&self) -> impl Iterator<Item = &String> {
        self.used.iter()
    }

    /// Whether the zero points of all that was read can be what the format says.
    pub fn check_zero_points(&self, config_path: &Path) -> Result<()> {
        self.census.check(self.config, config_path)
    }

    /// The full name of a tensor, noted as used.
    fn take(&mut self, name: &str, tensor: &str) -> String {
        let full = format!("{name}.{tensor}");
        self.used.push(full.clone());
        full
    }

    /// As [`Reader::take`], of a tensor that may be missing.
    fn take_if_there(&mut self, name: &str, tensor: &str) -> Option<String> {
        self.checkpoint.contains(&format!("{name}.{tensor}")).then(|| self.take(name, tensor))
    }

    /// Some quantisers write a bias of zeros for layers that have none.
    fn take_idle_bias(&mut self, linear: Linear<'_>) -> Result<()> {
        let name = format!("{}.bias", linear.name);
        if self.checkpoint.contains(&name)
            && self.checkpoint.vector(&name, linear.rows)?.iter().all(|&bias| bias == 0.0)
        {
            self.used.push(name);
        }
        Ok(())
    }

    fn groups(&self, linear: Linear<'_>) -> usize {
        linear.cols.div_ceil(self.config.group(linear.cols))
    }

    fn bits(&self) -> CodeBits {
        self.config.code_bits()
    }

    fn wrong(&self, tensor: &str, expected: impl Into<String>, found: impl ToString) -> Error {
        Error::tensor(self.checkpoint.path_of(tensor), tensor, expected, found)
    }

    /// That rows or columns fill words: `pack` codes share one.
    fn expect_whole_words(&self, tensor: &str, what: &str, size: usize, pack: usize) -> Result<()> {
        if size.is_multiple_of(pack) {
            return Ok(());
        }
        let expected = format!("{what} a multiple of {pack}, the {}-bit codes of a word", self.config.bits);
        Err(self.wrong(tensor, expected, size))
    }

    /// That the zero points of a symmetric checkpoint are the middle. `stored` is how the file keeps it.
    fn expect_symmetric(&self, tensor: &str, zeros: &[u8], stored: u8) -> Result<()> {
        let middle = self.bits().middle();
        match zeros.iter().find(|&&zero| self.config.symmetric && zero != middle) {
            None => Ok(()),
            Some(&zero) => {
                let found = i32::from(stored) + i32::from(zero) - i32::from(middle);
                let expected = format!("zero points of {stored}, as the file is symmetric and keeps them so");
                Err(self.wrong(tensor, expected, found))
            }
        }
    }
}

#[cfg(test)]
mod tests;
