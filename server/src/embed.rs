//! The seam for models that embed, and the runtime's own in it.

use tilewright::{EmbedOptions, Embedder};

/// A text to embed, or its token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbedInput {
    /// Text.
    Text(String),
    /// Token ids, taken as they are.
    Ids(Vec<u32>),
}

/// An input's vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// The vector.
    pub values: Vec<f32>,
    /// Tokens of the input, for the usage report.
    pub tokens: usize,
}

/// What `/v1/embeddings` asks for vectors. Called from many threads.
pub trait Embed: Send + Sync {
    /// Numbers a vector.
    fn dimensions(&self) -> usize;

    /// A vector for each input, in their order.
    ///
    /// # Errors
    /// An input that can't be embedded (a [`tilewright::Error::Request`] becomes a 400), a failure of the device.
    fn embed(&self, inputs: &[EmbedInput]) -> tilewright::Result<Vec<Embedded>>;
}

impl Embed for Embedder {
    fn dimensions(&self) -> usize {
        self.dims()
    }

    fn embed(&self, inputs: &[EmbedInput]) -> tilewright::Result<Vec<Embedded>> {
        let options = EmbedOptions::default();
        let embed = |input: &EmbedInput| {
            let mut found = match input {
                EmbedInput::Text(text) => Embedder::embed(self, &[text], &options)?,
                EmbedInput::Ids(ids) => self.embed_ids(&[ids], &options)?,
            };
            let (values, tokens) = (found.vectors.swap_remove(0), found.tokens.swap_remove(0));
            Ok(Embedded { values, tokens })
        };
        inputs.iter().map(embed).collect()
    }
}
