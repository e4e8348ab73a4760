use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tilewright_host::Device;

use super::pooling::normalise;
use super::{AnyEncoder, LoadedEncoder, Pooling, Want};
use crate::config::{EncoderConfig, EncoderInput};
use crate::tokenizer::Tokenizer;
use crate::{DeviceChoice, Error, Result};

/// A BERT-like checkpoint on a device: texts in, vectors out. Clones share its weights; it may be used from many threads.
///
/// A text's vector doesn't depend on the texts beside it.
///
/// ```
/// use tilewright::{DeviceChoice, EmbedOptions, Embedder};
///
/// # fn main() -> tilewright::Result<()> {
/// let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/bert");
/// let embedder = Embedder::load(folder, DeviceChoice::Cpu)?;
/// let found = embedder.embed_ids(&[&[2, 17, 5, 3], &[2, 9, 3]], &EmbedOptions::default())?;
/// assert_eq!((found.vectors.len(), found.vectors[0].len()), (2, embedder.dims()));
/// assert_eq!(found.tokens, [4, 3]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Embedder {
    dir: PathBuf,
    config: EncoderConfig,
    vocab_size: usize,
    token_types: usize,
    tokenizer: Option<Arc<Tokenizer>>,
    pooling: Pooling,
    encoder: Arc<dyn AnyEncoder>,
    no_gpu: Option<String>,
}

/// How texts become vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbedOptions {
    /// How tokens' outputs become one vector; where it's left open, as the checkpoint says, or their mean.
    pub pooling: Option<Pooling>,
    /// Scales each vector to length 1, so that a dot product is a cosine.
    pub normalise: bool,
    /// Cuts texts that are longer than the model's context, instead of refusing them.
    pub truncate: bool,
}

impl Default for EmbedOptions {
    fn default() -> EmbedOptions {
        EmbedOptions { pooling: None, normalise: true, truncate: false }
    }
}

/// Vectors of texts, in the order of the texts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Embeddings {
    /// `[texts, dims]`.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of each text, special ones included.
    pub tokens: Vec<usize>,
}

impl Embedder {
    /// Loads a Hugging Face checkpoint's folder: `config.json`, safetensors, and `tokenizer.json` where there is one (without it, texts
    /// are token ids).
    ///
    /// # Errors
    /// A file that is missing or damaged, a model that isn't a text encoder, a device that isn't there. Each names what and where.
    pub fn load(dir: impl AsRef<Path>, device: DeviceChoice) -> Result<Embedder> {
        let dir = dir.as_ref();
        Embedder::assemble(dir, super::load(dir, device)?)
    }

    /// As [`Embedder::load`], on a device of the caller's that rounds activations to bf16.
    ///
    /// # Errors
    /// As [`Embedder::load`].
    pub fn load_on<D: Device>(dir: impl AsRef<Path>, device: Arc<D>) -> Result<Embedder> {
        let dir = dir.as_ref();
        Embedder::assemble(dir, super::load_on(dir, device)?)
    }

    pub(crate) fn assemble(dir: &Path, loaded: LoadedEncoder) -> Result<Embedder> {
        let LoadedEncoder { config, encoder, no_gpu, .. } = loaded;
        let EncoderInput::Bert { vocab_size, token_types, .. } = config.input else {
            let path = dir.join("config.json");
            return Err(Error::file(&path, "model_type", "an encoder of texts", "one of images"));
        };
        Ok(Embedder {
            dir: dir.to_path_buf(),
            config,
            vocab_size,
            token_types,
            tokenizer: Tokenizer::load(dir, None)?.map(Arc::new),
            pooling: Pooling::of_checkpoint(dir)?,
            encoder,
            no_gpu,
        })
    }

    /// Its shape.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Elements a vector.
    pub fn dims(&self) -> usize {
        self.config.hidden_size
    }

    /// Tokens of the longest text.
    pub fn context(&self) -> usize {
        self.config.context()
    }

    /// How tokens' outputs become one vector unless a call says otherwise.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_deref()
    }

    /// Its device in words.
    pub fn device(&self) -> String {
        self.encoder.describe()
    }

    /// As [`crate::Model::no_gpu`].
    pub fn no_gpu(&self) -> Option<&str> {
        self.no_gpu.as_deref()
    }

    /// Vectors of texts.
    ///
    /// # Errors
    /// A checkpoint without a tokenizer; an empty text, which OpenAI's API refuses too; as [`Embedder::embed_ids`].
    pub fn embed(&self, texts: &[impl AsRef<str>], options: &EmbedOptions) -> Result<Embeddings> {
        let tokenizer = self.tokenizer.as_deref().ok_or_else(|| {
            Error::file(&self.dir, "tokenizer", "tokenizer.json, or texts as token ids", "none")
        })?;
        if texts.iter().any(|text| text.as_ref().is_empty()) {
            return Err(Error::request("text", "at least one character", "none"));
        }
        let ids = texts.iter().map(|text| tokenizer.encode(text.as_ref())).collect::<Result<Vec<_>>>()?;
        let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        self.embed_ids(&ids, options)
    }

    /// Vectors of texts given as token ids, special tokens included.
    ///
    /// # Errors
    /// A text without a token, one longer than the context (unless it may be cut), an id outside of the vocabulary, a pooler that the
    /// checkpoint doesn't have, a failure of the device.
    pub fn embed_ids(&self, texts: &[&[u32]], options: &EmbedOptions) -> Result<Embeddings> {
        let pooling = options.pooling.unwrap_or(self.pooling);
        if pooling == Pooling::Pooler && !self.encoder.pools() {
            return Err(Error::request("pooling", "mean or cls: this model has no pooler", "pooler"));
        }
        let context = self.context();
        let cut = |text: &[u32]| if options.truncate { text.len().min(context) } else { text.len() };
        let texts: Vec<_> = texts.iter().map(|text| (&text[..cut(text)], None)).collect();
        let outputs = self.outputs(&texts, pooling.wants())?;
        let mut vectors: Vec<_> =
            outputs.into_iter().map(|outputs| pooling.pool(outputs, self.dims())).collect();
        if options.normalise {
            vectors.iter_mut().for_each(|vector| normalise(vector));
        }
        Ok(Embeddings { vectors, tokens: texts.iter().map(|(ids, _)| ids.len()).collect() })
    }

    /// The last layer's outputs of one text, `[tokens, dims]`. `types` says of each token whether it's of the first text of a pair (0) or
    /// of the second (1); without it all are of the first.
    ///
    /// # Errors
    /// As [`Embedder::embed_ids`]; types that don't fit the tokens or the model.
    pub fn hidden_states(&self, ids: &[u32], types: Option<&[u32]>) -> Result<Vec<f32>> {
        Ok(self.outputs(&[(ids, types)], Want::All)?.concat())
    }

    /// As [`Embedder::hidden_states`], of several texts at once.
    pub(crate) fn all_hidden_states(&self, texts: &[(&[u32], Option<&[u32]>)]) -> Result<Vec<Vec<f32>>> {
        self.outputs(texts, Want::All)
    }

    /// The outputs of texts, once they're checked.
    fn outputs(&self, texts: &[(&[u32], Option<&[u32]>)], want: Want) -> Result<Vec<Vec<f32>>> {
        for (ids, types) in texts {
            if ids.is_empty() || ids.len() > self.context() {
                let expected = format!("1 to {} tokens (the model's context)", self.context());
                return Err(Error::request("text", expected, ids.len()));
            }
            if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
                let expected = format!("token ids below the vocabulary of {}", self.vocab_size);
                return Err(Error::request("text", expected, id));
            }
            let Some(types) = types else { continue };
            if types.len() != ids.len() {
                return Err(Error::request(
                    "token types",
                    format!("one of each of {} tokens", ids.len()),
                    types.len(),
                ));
            }
            if let Some(kind) = types.iter().find(|&&kind| kind as usize >= self.token_types) {
                return Err(Error::request("token types", format!("below {}", self.token_types), kind));
            }
        }
        self.encoder.texts(texts, want)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
    }

    fn embedder() -> Embedder {
        Embedder::load(fixture("bert"), DeviceChoice::Cpu).expect("the fixture loads")
    }

    #[test]
    fn vectors_do_not_depend_on_the_texts_beside_them() {
        let embedder = embedder();
        let texts: Vec<Vec<u32>> =
            [1, 128, 2, 61, 127, 3].map(|len| (0..len).map(|i| (i * 37 + len) % 192).collect()).to_vec();
        let slices: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Pooler] {
            let options = EmbedOptions { pooling: Some(pooling), normalise: false, truncate: false };
            let together = embedder.embed_ids(&slices, &options).expect("vectors");
            assert_eq!(together.tokens, [1, 128, 2, 61, 127, 3]);
            for (text, vector) in slices.iter().zip(&together.vectors) {
                let alone = embedder.embed_ids(&[text], &options).expect("a vector");
                // NaN isn't equal to itself: this holds for numbers alone.
                assert_eq!(alone.vectors[0], *vector, "{pooling:?} of {} tokens", text.len());
            }
        }
        assert!(embedder.embed_ids(&[], &EmbedOptions::default()).expect("nothing").vectors.is_empty());
    }

    #[test]
    fn every_token_sees_every_other() {
        let embedder = embedder();
        let first = |ids: &[u32]| embedder.hidden_states(ids, None).expect("outputs")[..128].to_vec();
        assert!(first(&[2, 5, 7]) != first(&[2, 5, 8]));
    }

    #[test]
    fn token_types_count_and_must_fit() {
        let embedder = embedder();
        let ids = [2, 5, 3, 7, 3];
        let outputs = |types: Option<&[u32]>| embedder.hidden_states(&ids, types);
        let plain = outputs(None).expect("outputs");
        assert_eq!(plain, outputs(Some(&[0; 5])).expect("outputs"));
        assert!(plain != outputs(Some(&[0, 0, 0, 1, 1])).expect("outputs"));
        let message = |types: &[u32]| outputs(Some(types)).expect_err("refused").to_string();
        assert_eq!(message(&[0, 1]), "token types: expected one of each of 5 tokens, found 2");
        assert_eq!(message(&[0, 0, 2, 0, 0]), "token types: expected below 2, found 2");
    }
}
