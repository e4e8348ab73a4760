use std::path::Path;
use std::sync::Arc;

use tilewright_host::Device;

use super::{AnyEncoder, LoadedEncoder};
use crate::config::{EncoderConfig, EncoderInput};
use crate::{DeviceChoice, Error, Result};

/// A ViT checkpoint on a device: pixels in, a logit for each class out. Clones share its weights.
///
/// Pixels are those of an image that was decoded, resized to the model's size and normalised as `preprocessor_config.json` says.
///
/// ```
/// use tilewright::{DeviceChoice, ImageClassifier};
///
/// # fn main() -> tilewright::Result<()> {
/// let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/vit");
/// let classifier = ImageClassifier::load(folder, DeviceChoice::Cpu)?;
/// let grey = vec![0.0; classifier.pixels()];
/// assert_eq!(classifier.classify(&[&grey])?[0].len(), classifier.labels().len());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ImageClassifier {
    config: EncoderConfig,
    labels: Vec<String>,
    pixels: usize,
    encoder: Arc<dyn AnyEncoder>,
    no_gpu: Option<String>,
}

impl ImageClassifier {
    /// Loads a Hugging Face checkpoint's folder: `config.json` and safetensors.
    ///
    /// # Errors
    /// A file that is missing or damaged, a model that doesn't classify images, a device that isn't there. Each names what and where.
    pub fn load(dir: impl AsRef<Path>, device: DeviceChoice) -> Result<ImageClassifier> {
        let dir = dir.as_ref();
        ImageClassifier::assemble(dir, super::load(dir, device)?)
    }

    /// As [`ImageClassifier::load`], on a device of the caller's that rounds activations to bf16.
    ///
    /// # Errors
    /// As [`ImageClassifier::load`].
    pub fn load_on<D: Device>(dir: impl AsRef<Path>, device: Arc<D>) -> Result<ImageClassifier> {
        let dir = dir.as_ref();
        ImageClassifier::assemble(dir, super::load_on(dir, device)?)
    }

    pub(crate) fn assemble(dir: &Path, loaded: LoadedEncoder) -> Result<ImageClassifier> {
        let LoadedEncoder { config, encoder, no_gpu, .. } = loaded;
        let EncoderInput::Vit { channels, image_size, labels, .. } = &config.input else {
            let path = dir.join("config.json");
            return Err(Error::file(&path, "model_type", "an encoder of images", "one of texts"));
        };
        let (labels, pixels) = (labels.clone(), channels * image_size * image_size);
        Ok(ImageClassifier { config, labels, pixels, encoder, no_gpu })
    }

    /// Its shape.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// What each class is called.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Elements of an image: `channels * image_size * image_size`.
    pub fn pixels(&self) -> usize {
        self.pixels
    }

    /// Its device in words.
    pub fn device(&self) -> String {
        self.encoder.describe()
    }

    /// As [`crate::Model::no_gpu`].
    pub fn no_gpu(&self) -> Option<&str> {
        self.no_gpu.as_deref()
    }

    /// The logits of each image's classes.
    ///
    /// # Shapes
    /// Each image `[channels, image_size, image_size]`, row-major.
    ///
    /// # Errors
    /// An image of another size; a failure of the device.
    pub fn classify(&self, images: &[&[f32]]) -> Result<Vec<Vec<f32>>> {
        match images.iter().find(|image| image.len() != self.pixels) {
            Some(image) => Err(Error::request("image", format!("{} pixels", self.pixels), image.len())),
            None => self.encoder.images(images),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_one_answer_whatever_is_beside_them_and_one_size() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/vit");
        let classifier = ImageClassifier::load(dir, DeviceChoice::Cpu).expect("the fixture loads");
        assert_eq!((classifier.pixels(), classifier.labels()[9].as_str()), (3 * 64 * 64, "LABEL_9"));
        let image = |seed: usize| -> Vec<f32> {
            (0..classifier.pixels()).map(|i| ((i * seed) % 101) as f32 / 50.0 - 1.0).collect()
        };
        // More than go through at once.
        let images: Vec<Vec<f32>> = (0..250).map(|seed| image(seed % 3 + 7)).collect();
        let slices: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
        let logits = classifier.classify(&slices).expect("logits");
        assert_eq!((logits.len(), logits[0].len()), (250, 10));
        assert!(logits[0] != logits[1] && (3..250).all(|i| logits[i] == logits[i % 3]));
        assert!(classifier.classify(&[]).expect("nothing").is_empty());
        let refusal = classifier.classify(&[&images[0][1..]]).expect_err("a pixel short").to_string();
        assert_eq!(refusal, "image: expected 12288 pixels, found 12287");
    }
}
