//! Checkpoints quantised: GPTQ (Frantar et al. 2022, arXiv 2210.17323), rounding to nearest, and eight-bit channels.
//!
//! Layers are worked on one at a time, and within a layer its projections in the order they are used, each calibrated on what
//! the already quantised part of the model makes of the calibration text. Memory holds one layer's weights, original and
//! quantised, the residual streams of the calibration text by both models (`2 * tokens * hidden_size * 4` bytes on a CPU, half on a
//! GPU), and for the widest input of the layer, of `k` elements, up to four matrices of `8 * k^2` bytes.
//!
//! A layer is written to a file of its own as soon as it's done, under another name until it's whole: a run that was interrupted
//! takes up where it left off.

mod calibrate;
mod files;
mod grid;
mod hessian;
mod linalg;
mod matrix;
mod options;
mod pack;
mod stages;

use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::config::{Architecture, ModelConfig};
use crate::device::{DeviceJob, on_device};
use crate::{Error, Result};
use files::Output;
pub use options::{Method, QuantiseOptions};
use stages::Gptq;

/// What was done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QuantiseReport {
    /// By which method.
    pub method: Method,
    /// Decoder layers.
    pub layers: usize,
    /// Of those, the ones that an earlier run had done.
    pub resumed_layers: usize,
    /// Tokens calibrated on.
    pub calibration_tokens: usize,
    /// Bytes of the tensors read, and of those written.
    pub bytes_before: usize,
    /// As `bytes_before`.
    pub bytes_after: usize,
    /// Seconds taken.
    pub seconds: f64,
}

/// The shape of a checkpoint that isn't quantised and can be as the options say, by its configuration alone.
///
/// # Errors
/// Why it can't be.
pub(crate) fn quantisable(dir: &Path, options: &QuantiseOptions) -> Result<ModelConfig> {
    let config = ModelConfig::load(dir)?;
    if config.quantization.is_some() {
        return Err(Error::file(
            dir,
            "quantization_config",
            "a checkpoint that isn't quantised",
            "one that is",
        ));
    }
    if config.architecture == Architecture::Gpt2 {
        let found = "one of GPT-2, whose linear layers are stored transposed";
        return Err(Error::file(dir, "model_type", "a checkpoint of the Llama family", found));
    }
    options.check(&config)?;
    Ok(config)
}

/// Quantises the linear layers of the checkpoint in `dir` and writes a Hugging Face checkpoint to `out`. `progress` is told how
/// many parts are done, and of how many.
///
/// # Errors
/// Options that don't fit the model (a group that doesn't divide a layer's inputs), a weight that isn't finite, a folder that
/// holds something else, a text too short to calibrate on: what, where, and what was expected.
pub fn quantise(
    dir: &Path,
    out: &Path,
    options: &QuantiseOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<QuantiseReport> {
    let start = Instant::now();
    std::fs::read_dir(dir).map_err(Error::io(dir))?;
    let config = quantisable(dir, options)?;
    let checkpoint = Checkpoint::open(dir)?;
    let windows = match options.method {
        Method::Gptq => calibrate::windows(dir, &config, options)?,
        Method::Rtn | Method::Int8 => Vec::new(),
    };
    let output = Output::open(dir, out, &config, options, &checkpoint, &windows)?;
    let calibration_tokens = windows.iter().map(Vec::len).sum();
    let job = Job { config: &config, checkpoint: &checkpoint, options, output: &output, windows, progress };
    let resumed_layers = match options.method {
        Method::Gptq => on_device(options.device, job)?,
        Method::Rtn | Method::Int8 => job.rounded()?,
    };
    let bytes_after = output.finish(options)?;
    Ok(QuantiseReport {
        method: options.method,
        layers: config.layers,
        resumed_layers,
        calibration_tokens,
        bytes_before: checkpoint.tensors().map(|tensor| tensor.bytes).sum(),
        bytes_after,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// The work, once its inputs are there.
struct Job<'a> {
    config: &'a ModelConfig,
    checkpoint: &'a Checkpoint,
    options: &'a QuantiseOptions,
    output: &'a Output,
    windows: Vec<Vec<u32>>,
    progress: &'a mut dyn FnMut(usize, usize),
}

impl Job<'_> {
    /// Layers that need no calibration. How many were there already.
    fn rounded(self) -> Result<usize> {
        let mut resumed = 0;
        let total = self.config.layers + 1;
        self.output.copy_unquantised(self.checkpoint)?;
        for index in 0..self.config.layers {
            (self.progress)(index + 1, total);
            if self.output.has_layer(index)? {
                resumed += 1;
                continue;
            }
            let mut shard = self.output.layer(index);
            for linear in options::linears(self.config, index) {
                let weights = calibrate::weights(self.checkpoint, &linear)?;
                match self.options.method {
                    Method::Int8 => shard.int8(&linear, &weights),
                    _ => {
                        let recipe = self.options.recipe(linear.cols);
                        let quantised = matrix::round_to_nearest(&weights, linear.cols, recipe);
                        shard
                            .gptq(&linear, &quantised.map_err(|bad| linear.too_large(self.checkpoint, bad))?);
                    }
                }
            }
            shard.write(self.checkpoint)?;
        }
        (self.progress)(total, total);
        Ok(resumed)
    }
}

impl DeviceJob for Job<'_> {
    type Output = usize;

    fn run<D: tilewright_host::Device>(self, device: std::sync::Arc<D>, _in_f32: bool) -> Result<usize> {
        self.output.copy_unquantised(self.checkpoint)?;
        Gptq::new(device, &self)?.run(self)
    }
}

#[cfg(test)]
mod tests;
