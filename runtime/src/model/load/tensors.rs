use std::collections::HashSet;

use tilewright_host::{Device, HostMatrix, HostQuantized};

use crate::checkpoint::{Checkpoint, MatrixView};
use crate::config::{NormKind, QuantizationConfig};
use crate::model::Norm;
use crate::quantized::{Reader, check_matrix};
use crate::{Error, Result};

/// The linear layer that a weight is of.
fn layer_of(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// Brings a checkpoint's tensors to a device, and notes which it took.
pub(crate) struct Tensors<'a, D: Device> {
    pub device: &'a D,
    pub checkpoint: &'a Checkpoint,
    used: HashSet<String>,
    /// Where the checkpoint is quantised.
    reader: Option<Reader<'a>>,
    /// A quantised layer was compared with its plain dequantisation.
    checked: bool,
}

impl<'a, D: Device> Tensors<'a, D> {
    pub fn new(
        device: &'a D,
        checkpoint: &'a Checkpoint,
        quantization: Option<&'a QuantizationConfig>,
    ) -> Self {
        let reader = quantization.map(|quantization| Reader::new(checkpoint, quantization));
        Tensors { device, checkpoint, used: HashSet::new(), reader, checked: false }
    }

    /// Takes later quantised layers as they are: one of every kernel is enough to tell a device that computes from one that doesn't.
    pub fn trust_quantized(&mut self) {
        self.checked = true;
    }

    /// Complains of a tensor that nobody took, unless it's one that checkpoints carry without need.
    pub fn finish(mut self, harmless: impl Fn(&str) -> bool) -> Result<()> {
        if let Some(reader) = &self.reader {
            self.used.extend(reader.used().cloned());
            reader.check_zero_points(&self.checkpoint.dir().join("config.json"))?;
        }
        self.checkpoint.expect_all_used(&self.used, harmless)
    }

    /// The norm whose tensors' names begin with `stem`.
    pub fn norm(&mut self, kind: NormKind, stem: &str, len: usize, eps: f32) -> Result<Norm<D>> {
        let (weight, bias) = kind.names(stem);
        let weight = self.vector(&[(weight, len)])?;
        Ok(match bias {
            None => Norm::Rms { weight, eps },
            Some(bias) => Norm::Layer { weight, bias: self.vector(&[(bias, len)])?, eps },
        })
    }

    /// A matrix `[rows, cols]` that the checkpoint holds as `[cols, rows]`.
    pub fn transposed(&mut self, name: &str, rows: usize, cols: usize) -> Result<D::Matrix> {
        let view = self.checkpoint.matrix(name, cols, rows)?;
        self.used.insert(name.to_string());
        let width = view.dtype.bytes();
        let mut bytes = vec![0; view.bytes.len()];
        for (col, stored) in view.bytes.chunks_exact(rows * width).enumerate() {
            for (row, element) in stored.chunks_exact(width).enumerate() {
                bytes[(row * cols + col) * width..][..width].copy_from_slice(element);
            }
        }
        Ok(self.device.matrix(&HostMatrix { parts: vec![(rows, &bytes)], cols, dtype: view.dtype })?)
    }

    /// All elements of a tensor of any shape, widened, to be made into something else.
    pub fn floats(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let found = self.checkpoint.shape(name)?;
        if found != shape {
            let path = self.checkpoint.path_of(name);
            return Err(Error::tensor(path, name, format!("shape {shape:?}"), format!("{found:?}")));
        }
        self.used.insert(name.to_string());
        self.checkpoint.floats(name)
    }

    /// Parts stacked along their rows.
    pub fn matrix(&mut self, parts: &[(impl AsRef<str>, usize)], cols: usize) -> Result<D::Matrix> {
        if let Some(weights) = self.quantized(parts, cols)? {
            let matrix = self.device.quantized(&weights)?;
            self.check(parts[0].0.as_ref(), &weights, &matrix)?;
            return Ok(matrix);
        }
        Ok(self.device.matrix(&self.plain(parts, cols)?)?)
    }

    /// A gate's rows and those of what it gates.
    pub fn gated(&mut self, parts: &[(impl AsRef<str>, usize); 2], cols: usize) -> Result<D::Matrix> {
        if let Some(weights) = self.quantized(parts, cols)? {
            if !self.checked {
                // Rows may be in another order in what is kept.
                let plain = self.device.quantized(&weights)?;
                self.check(parts[0].0.as_ref(), &weights, &plain)?;
            }
            return Ok(self.device.gated_quantized(&weights)?);
        }
        Ok(self.device.gated(&self.plain(parts, cols)?)?)
    }

    /// Parts that aren't quantised, as they lie in the file.
    fn plain(&mut self, parts: &[(impl AsRef<str>, usize)], cols: usize) -> Result<HostMatrix<'a>> {
        let mut views: Vec<MatrixView<'a>> = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            let name = name.as_ref();
            let view = self.checkpoint.matrix(name, *rows, cols)?;
            if let Some(first) = views.first().filter(|first| first.dtype != view.dtype) {
                let expected = format!("dtype {:?} as of {}", first.dtype, parts[0].0.as_ref());
                let found = format!("{:?}", view.dtype);
                return Err(Error::tensor(self.checkpoint.path_of(name), name, expected, found));
            }
            self.used.insert(name.to_string());
            views.push(view);
        }
        let dtype = views[0].dtype;
        let parts = views.iter().map(|view| (view.rows, view.bytes)).collect();
        Ok(HostMatrix { parts, cols, dtype })
    }

    /// Parts stacked along their rows, where the first of them is quantised; then all must be.
    fn quantized(
        &mut self,
        parts: &[(impl AsRef<str>, usize)],
        cols: usize,
    ) -> Result<Option<HostQuantized>> {
        let Some(reader) = &mut self.reader else { return Ok(None) };
        if !reader.holds(layer_of(parts[0].0.as_ref())) {
            return Ok(None);
        }
        let read = parts.iter().map(|(name, rows)| reader.part(layer_of(name.as_ref()), *rows, cols));
        Ok(Some(HostQuantized::new(read.collect::<Result<_>>()?)?))
    }

    /// That a device's product with quantised weights is that of the file's, unless that is known already.
    fn check(&self, name: &str, weights: &HostQuantized, matrix: &D::Matrix) -> Result<()> {
        if self.checked {
            return Ok(());
        }
        let layer = layer_of(name);
        let check = check_matrix(self.device, layer, weights, matrix, false)?;
        if check.passed {
            return Ok(());
        }
        let expected = format!("{} as output {} of a product", check.expected, check.output);
        let found = format!("{} on {}", check.found, self.device.describe());
        Err(Error::tensor(self.checkpoint.path_of(name), layer, expected, found))
    }

    /// Parts one behind the other.
    pub fn vector(&mut self, parts: &[(impl AsRef<str>, usize)]) -> Result<D::Vector> {
        let mut values = Vec::new();
        for (name, len) in parts {
            values.extend(self.checkpoint.vector(name.as_ref(), *len)?);
            self.used.insert(name.as_ref().to_string());
        }
        Ok(self.device.vector(&values)?)
    }

    pub fn vector_if(
        &mut self,
        present: bool,
        parts: &[(impl AsRef<str>, usize)],
    ) -> Result<Option<D::Vector>> {
        if present { self.vector(parts).map(Some) } else { Ok(None) }
    }
}
