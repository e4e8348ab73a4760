//! Encoders held against what another implementation answered: `last_hidden` of `input_ids` (with `attention_mask` and `token_type_ids`
//! where there are such), or `class_logits` of `pixel_values`.

use std::path::Path;

use super::compare::{largest_magnitude, worst};
use super::{BF16_FACTOR, F32_BOUND, Verification, tensor_verdict};
use crate::checkpoint::Checkpoint;
use crate::config::{EncoderConfig, EncoderInput, FrequencyPrecision};
use crate::encoder::{self, Embedder, ImageClassifier, LoadedEncoder};
use crate::{DeviceChoice, Error, Result};

/// What another implementation answered.
struct Expected {
    name: &'static str,
    shape: Vec<usize>,
    values: Vec<f32>,
    inputs: Inputs,
}

enum Inputs {
    /// Each row's ids and types, without padding.
    Texts(Vec<(Vec<u32>, Option<Vec<u32>>)>),
    Images(Vec<Vec<f32>>),
}

/// Verifies the encoder that `on_device` loads.
pub(super) fn verify(
    dir: &Path,
    expected: &Path,
    on_device: &dyn Fn() -> Result<LoadedEncoder>,
) -> Result<Verification> {
    let expected = Expected::load(expected, &EncoderConfig::load(dir)?)?;
    let loaded = on_device()?;
    let (device, no_gpu) = (loaded.encoder.describe(), loaded.no_gpu.clone());
    let in_f32 = loaded.computes_in_f32;
    let found = expected.answers(dir, loaded)?;
    let floor = F32_BOUND * largest_magnitude(&expected.values);
    let (bound, words) = if in_f32 {
        (floor, format!("{F32_BOUND} of the largest output"))
    } else {
        let plain = expected.answers(dir, encoder::load(dir, DeviceChoice::CpuBf16)?)?;
        let (plain_error, _) = worst(&expected.values, &plain);
        let words = format!(
            "{BF16_FACTOR} times a plain bf16 computation's error of {plain_error:.3e}, plus {F32_BOUND} of the largest output"
        );
        (BF16_FACTOR * plain_error + floor, words)
    };
    let tensor = tensor_verdict(expected.name, &expected.shape, &expected.values, &found, bound);
    Ok(Verification {
        device,
        no_gpu,
        bound: words,
        rope_frequencies: FrequencyPrecision::F32,
        passed: tensor.passed,
        tensors: vec![tensor],
        greedy: Vec::new(),
    })
}

impl Expected {
    fn load(path: &Path, config: &EncoderConfig) -> Result<Expected> {
        let file = Checkpoint::open_file(path)?;
        match &config.input {
            EncoderInput::Bert { vocab_size, .. } => Expected::of_texts(path, &file, config, *vocab_size),
            EncoderInput::Vit { .. } => Expected::of_images(path, &file, config),
        }
    }

    fn of_texts(path: &Path, file: &Checkpoint, config: &EncoderConfig, vocab: usize) -> Result<Expected> {
        let rows = file.token_rows("input_ids", vocab)?;
        let (batch, tokens) = (rows.len(), rows[0].len());
        let longs = |name: &str| match file.contains(name) {
            true => file.longs(name, &[batch, tokens]).map(Some),
            false => Ok(None),
        };
        let (mask, types) = (longs("attention_mask")?, longs("token_type_ids")?);
        let mut texts = Vec::with_capacity(batch);
        for (row, ids) in rows.into_iter().enumerate() {
            let range = row * tokens..(row + 1) * tokens;
            let len = match &mask {
                None => tokens,
                Some(mask) => unpadded(&mask[range.clone()]).ok_or_else(|| {
                    let found = format!("another order in row {row}");
                    Error::tensor(path, "attention_mask", "ones, then zeros (padding behind the text)", found)
                })?,
            };
            let types = types.as_ref().map(|types| {
                let kinds = types[range].iter().take(len);
                kinds.map(|&kind| u32::try_from(kind).unwrap_or(u32::MAX)).collect()
            });
            texts.push((ids[..len].to_vec(), types));
        }
        let shape = vec![batch, tokens, config.hidden_size];
        let values = floats(path, file, "last_hidden", &shape)?;
        let name = if mask.is_some() { "last_hidden (where the mask is 1)" } else { "last_hidden" };
        Ok(Expected { name, shape, values, inputs: Inputs::Texts(texts) })
    }

    fn of_images(path: &Path, file: &Checkpoint, config: &EncoderConfig) -> Result<Expected> {
        let EncoderInput::Vit { channels, image_size, labels, .. } = &config.input else {
            return Err(Error::file(path, "encoder", "one of images", "one of texts"));
        };
        let batch = file.shape("pixel_values")?.first().copied().unwrap_or(0).max(1);
        let pixels = floats(path, file, "pixel_values", &[batch, *channels, *image_size, *image_size])?;
        let shape = vec![batch, labels.len()];
        let values = floats(path, file, "class_logits", &shape)?;
        let images = pixels.chunks_exact(pixels.len() / batch).map(<[f32]>::to_vec).collect();
        Ok(Expected { name: "class_logits", shape, values, inputs: Inputs::Images(images) })
    }

    /// What a loaded encoder answers, in the shape of the expected values; those themselves where a text is padded.
    fn answers(&self, dir: &Path, loaded: LoadedEncoder) -> Result<Vec<f32>> {
        match &self.inputs {
            Inputs::Images(images) => {
                let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
                Ok(ImageClassifier::assemble(dir, loaded)?.classify(&images)?.concat())
            }
            Inputs::Texts(texts) => {
                let embedder = Embedder::assemble(dir, loaded)?;
                let texts: Vec<_> =
                    texts.iter().map(|(ids, types)| (ids.as_slice(), types.as_deref())).collect();
                let outputs = embedder.all_hidden_states(&texts)?;
                let mut answers = self.values.clone();
                let row_elems = self.values.len() / texts.len();
                for (row, outputs) in answers.chunks_exact_mut(row_elems).zip(outputs) {
                    row[..outputs.len()].copy_from_slice(&outputs);
                }
                Ok(answers)
            }
        }
    }
}

fn floats(path: &Path, file: &Checkpoint, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    if file.shape(name)? != shape {
        let found = format!("{:?}", file.shape(name)?);
        return Err(Error::tensor(path, name, format!("shape {shape:?}"), found));
    }
    file.floats(name)
}

/// The ones of a mask that is ones, at least one, and then zeros.
fn unpadded(mask: &[i64]) -> Option<usize> {
    let ones = mask.iter().take_while(|&&keep| keep == 1).count();
    (ones > 0 && mask[ones..].iter().all(|&keep| keep == 0)).then_some(ones)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_ones_then_zeros() {
        assert_eq!(unpadded(&[1, 1, 0]), Some(2));
        assert_eq!(unpadded(&[1, 1]), Some(2));
        for bad in [&[0, 1][..], &[1, 0, 1], &[0, 0], &[1, 2], &[]] {
            assert_eq!(unpadded(bad), None, "{bad:?}");
        }
    }
}
