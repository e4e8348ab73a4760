use std::path::Path;

use serde::Serialize;

use super::grid::GridKind;
use super::matrix::{Recipe, TooLarge};
use crate::checkpoint::Checkpoint;
use crate::config::{ModelConfig, QuantFormat, QuantizationConfig};
use crate::model::projections;
use crate::{DeviceChoice, Error, Result};

/// How weights are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// GPTQ: each column's error is made up for by the columns after it, as a calibration text weighs them.
    Gptq,
    /// Each weight to its nearest code. Files are those of GPTQ.
    Rtn,
    /// Eight bits a channel, activations of eight bits a token (W8A8), in compressed-tensors' `int-quantized` layout.
    Int8,
}

impl std::str::FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Method> {
        match text {
            "gptq" => Ok(Method::Gptq),
            "rtn" => Ok(Method::Rtn),
            "int8" => Ok(Method::Int8),
            _ => Err(Error::request("method", "gptq, rtn or int8", format!("{text:?}"))),
        }
    }
}

/// How a checkpoint is quantised.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantiseOptions {
    /// By which method.
    pub method: Method,
    /// Bits a weight, 4 or 8; [`Method::Int8`] has 8.
    pub bits: usize,
    /// Inputs that share a scale; none for one scale a row.
    pub group: Option<usize>,
    /// Zero points are the middle code.
    pub symmetric: bool,
    /// Columns are quantised in descending order of their activations (GPTQ).
    pub act_order: bool,
    /// Each projection also makes up for what the layers before it have lost (GPTQ), where there are 32 tokens for each of its inputs;
    /// twice the memory of activations.
    pub corrected: bool,
    /// What is added to the Hessian's diagonal, over its mean (GPTQ).
    pub damp: f64,
    /// Texts of `context` tokens to calibrate on, at most (GPTQ).
    pub samples: usize,
    /// Tokens of a text (GPTQ).
    pub context: usize,
    /// The text to calibrate on (GPTQ).
    pub calibration: Option<String>,
    /// The device that runs the model (GPTQ).
    pub device: DeviceChoice,
}

impl Default for QuantiseOptions {
    /// GPTQ with 4 bits and groups of 128.
    fn default() -> QuantiseOptions {
        QuantiseOptions {
            method: Method::Gptq,
            bits: 4,
            group: Some(128),
            symmetric: false,
            act_order: false,
            corrected: true,
            damp: 0.01,
            samples: 128,
            context: 512,
            calibration: None,
            device: DeviceChoice::Auto,
        }
    }
}

impl QuantiseOptions {
    /// That the options make sense, and fit every linear layer of the model.
    pub(super) fn check(&self, config: &ModelConfig) -> Result<()> {
        if !matches!(self.bits, 4 | 8) || self.method == Method::Int8 && self.bits != 8 {
            let expected = if self.method == Method::Int8 { "8" } else { "4 or 8" };
            return Err(Error::request("bits", expected, self.bits));
        }
        if self.method == Method::Int8 {
            return Ok(());
        }
        if self.act_order && self.method == Method::Rtn {
            return Err(Error::request("act-order", "method gptq", "rtn"));
        }
        if !(self.damp.is_finite() && self.damp > 0.0) {
            return Err(Error::request("damp", "a number above 0", self.damp));
        }
        if self.samples == 0 {
            return Err(Error::request("samples", "at least 1", 0));
        }
        if !(2..=config.context).contains(&self.context) {
            let expected = format!("2 to {} (the model's context)", config.context);
            return Err(Error::request("ctx", expected, self.context));
        }
        if self.group == Some(0) {
            return Err(Error::request("group", "-1 or a number from 1", 0));
        }
        let pack = 32 / self.bits;
        for linear in linears(config, 0) {
            let Linear { name, rows, cols, .. } = &linear;
            let group = self.group.unwrap_or(*cols);
            if group > *cols || !cols.is_multiple_of(group) {
                let expected = format!("a divisor of {cols}, the inputs of {name}");
                return Err(Error::request("group", expected, group));
            }
            for (what, size) in [("inputs", cols), ("outputs", rows)] {
                if !size.is_multiple_of(pack) {
                    let expected =
                        format!("{what} a multiple of {pack}, the {}-bit codes of a word", self.bits);
                    return Err(Error::request("bits", expected, format!("{size} {what} of {name}")));
                }
            }
        }
        Ok(())
    }

    /// How a matrix of `cols` inputs is quantised.
    pub(super) fn recipe(&self, cols: usize) -> Recipe {
        let largest = if self.bits == 4 { 15 } else { 255 };
        Recipe { grid: GridKind { largest, symmetric: self.symmetric }, group: self.group.unwrap_or(cols) }
    }

    /// How the files are read.
    pub(super) fn file_config(&self) -> QuantizationConfig {
        QuantizationConfig {
            format: if self.method == Method::Int8 { QuantFormat::IntQuantized } else { QuantFormat::Gptq },
            bits: self.bits,
            group_size: if self.method == Method::Int8 { None } else { self.group },
            symmetric: self.symmetric || self.method == Method::Int8,
            act_order: self.act_order,
        }
    }

    /// All that decides what is written, in words. The device is not part of it.
    pub(super) fn in_words(&self) -> String {
        let group = self.group.map_or(-1, |group| group as i64);
        let QuantiseOptions { method, bits, symmetric, act_order, corrected, damp, .. } = self;
        format!(
            "{method:?} bits={bits} group={group} sym={symmetric} act_order={act_order} corrected={corrected} damp={damp}"
        )
    }
}

/// A linear layer that is quantised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Linear {
    /// Without `.weight`.
    pub name: String,
    pub rows: usize,
    pub cols: usize,
}

impl Linear {
    /// The error that a group's scale is beyond f16.
    pub fn too_large(&self, checkpoint: &Checkpoint, bad: TooLarge) -> Error {
        let tensor = format!("{}.weight", self.name);
        let found = format!("larger ones in group {} of row {}", bad.group, bad.row);
        let expected = "weights whose scale an f16 holds";
        Error::tensor(path_of(checkpoint, &tensor), &tensor, expected, found)
    }
}

fn path_of<'c>(checkpoint: &'c Checkpoint, tensor: &str) -> &'c Path {
    checkpoint.path_of(tensor)
}

/// The linear layers of decoder layer `index`, in the order of [`super::stages`].
pub(super) fn linears(config: &ModelConfig, index: usize) -> Vec<Linear> {
    let named = projections(config, index);
    named.into_iter().map(|(name, rows, cols)| Linear { name, rows, cols }).collect()
}
