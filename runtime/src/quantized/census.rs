use std::path::Path;

use rayon::prelude::*;
use tilewright_host::{CodeBits, QuantizedSpec};

use crate::config::{QuantFormat, QuantizationConfig};
use crate::{Error, Result};

/// Weights below which nothing is concluded.
const ENOUGH_WEIGHTS: u64 = 1 << 15;
/// Codes' mean distance from their zero points, in steps: beyond the first it can't be, within the second it well may be.
const TOO_FAR: f64 = 0.7;
const NEAR: f64 = 0.3;

/// How far codes lie from their zero points on average. Weights of a model average close to nothing, a small part of a
/// four-bit step; zero points read by the wrong convention move that average by a whole step.
#[derive(Default)]
pub(super) struct Census {
    weights: u64,
    steps: i64,
}

impl Census {
    /// Counts a matrix in. Steps of eight-bit codes are too small for the question.
    pub fn count(&mut self, spec: &QuantizedSpec) {
        if spec.bits != CodeBits::Four {
            return;
        }
        let groups = spec.groups();
        let of_row = |(codes, zeros): (&[u8], &[u8])| -> i64 {
            let of_group = |(codes, &zero): (&[u8], &u8)| {
                // A loop: the closures of iterators stayed calls here.
                let mut sum = 0;
                for &code in codes {
                    sum += i64::from(code);
                }
                sum - i64::from(zero) * codes.len() as i64
            };
            codes.chunks(spec.group).zip(zeros).map(of_group).sum()
        };
        let rows = spec.codes.par_chunks_exact(spec.cols).zip(spec.zeros.par_chunks_exact(groups));
        self.steps += rows.map(of_row).sum::<i64>();
        self.weights += spec.codes.len() as u64;
    }

    /// Whether the other convention of zero points fits the values, and the one that the configuration names doesn't.
    pub fn check(&self, config: &QuantizationConfig, path: &Path) -> Result<()> {
        let (name, other, moved) = match config.format {
            QuantFormat::Gptq => ("gptq", "gptq_v2", 1.0),
            QuantFormat::GptqV2 => ("gptq_v2", "gptq", -1.0),
            _ => return Ok(()),
        };
        if self.weights < ENOUGH_WEIGHTS {
            return Ok(());
        }
        let mean = self.steps as f64 / self.weights as f64;
        if mean.abs() <= TOO_FAR || (mean + moved).abs() >= NEAR {
            return Ok(());
        }
        Err(Error::Field {
            path: path.to_path_buf(),
            field: "quantization_config.checkpoint_format".to_string(),
            expected: format!("{other}, by which weights average {:.2} steps", mean + moved),
            found: format!("{name}, by which they average {mean:.2}"),
        })
    }
}
