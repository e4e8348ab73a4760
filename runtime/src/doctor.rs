//! Whether a checkpoint is what it says: every tensor read, and one layer's products held against the file.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tilewright_host::{DType, Device, HostMatrix, HostQuantized};

use crate::checkpoint::Checkpoint;
use crate::config::{EncoderConfig, ModelConfig, QuantizationConfig};
use crate::device::{DeviceJob, on_device};
use crate::encoder;
use crate::model::Decoder;
use crate::quantized::{MatrixCheck, Reader, check_matrix, check_plain};
use crate::{DeviceChoice, Error, Result};

/// What an examination found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckpointReport {
    /// The device in words.
    pub device: String,
    /// How weights are quantised, where they are.
    pub quantization: Option<QuantizationConfig>,
    /// Tensors in the checkpoint.
    pub tensors: usize,
    /// Why it can't be loaded, where it can't.
    pub fault: Option<String>,
    /// The projections of the first layer; none of GPT-2, which stores them transposed, and of encoders.
    pub checks: Vec<MatrixCheck>,
    /// Whether it can be loaded and all checks passed.
    pub passed: bool,
}

/// Loads the checkpoint in `dir` as strictly as ever, and compares one product with each projection of its first layer with a sum
/// in f64 over the weights as the file has them.
///
/// # Errors
/// A folder or a device that isn't there. Whatever is wrong with the checkpoint itself is a verdict.
pub fn examine(dir: &Path, device: DeviceChoice) -> Result<CheckpointReport> {
    std::fs::read_dir(dir).map_err(Error::io(dir))?;
    on_device(device, Examination { dir })
}

struct Examination<'a> {
    dir: &'a Path,
}

impl DeviceJob for Examination<'_> {
    type Output = CheckpointReport;

    fn run<D: Device>(self, device: Arc<D>, in_f32: bool) -> Result<CheckpointReport> {
        let mut report = CheckpointReport {
            device: device.describe(),
            quantization: None,
            tensors: 0,
            fault: None,
            checks: Vec::new(),
            passed: false,
        };
        match self.examine(device, in_f32, &mut report) {
            Ok(()) => report.passed = report.checks.iter().all(|check| check.passed),
            Err(error) => report.fault = Some(error.to_string()),
        }
        Ok(report)
    }
}

impl Examination<'_> {
    fn examine<D: Device>(&self, device: Arc<D>, in_f32: bool, report: &mut CheckpointReport) -> Result<()> {
        if EncoderConfig::describes(self.dir)? {
            report.tensors = Checkpoint::open(self.dir)?.tensors().count();
            return encoder::load_on(self.dir, device).map(drop);
        }
        let config = ModelConfig::load(self.dir)?;
        report.quantization.clone_from(&config.quantization);
        let checkpoint = Checkpoint::open(self.dir)?;
        report.tensors = checkpoint.tensors().count();
        for (name, rows, cols) in crate::model::projections(&config, 0) {
            let reader =
                config.quantization.as_ref().map(|quantization| Reader::new(&checkpoint, quantization));
            let check = match reader {
                Some(mut reader) if reader.holds(&name) => {
                    let weights = HostQuantized::new(vec![reader.part(&name, rows, cols)?])?;
                    let matrix = device.quantized(&weights)?;
                    check_matrix(&*device, &name, &weights, &matrix, in_f32)?
                }
                _ => {
                    let tensor = format!("{name}.weight");
                    let view = checkpoint.matrix(&tensor, rows, cols)?;
                    let matrix = HostMatrix { parts: vec![(view.rows, view.bytes)], cols, dtype: view.dtype };
                    let weights = checkpoint.floats(&tensor)?;
                    let matrix = device.matrix(&matrix)?;
                    // f16 and f32 are rounded where a device computes in bf16; bf16 isn't anywhere.
                    let exact = in_f32 || view.dtype == DType::Bf16;
                    check_plain(&*device, &name, &weights, &matrix, [rows, cols], exact)?
                }
            };
            report.checks.push(check);
        }
        Decoder::load(device, config, &checkpoint, &mut |_, _| {})?;
        Ok(())
    }
}
