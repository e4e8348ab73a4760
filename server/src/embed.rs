//! The seam for models that embed, and the runtime's own in it.

use tilewright::tokenizer::Tokenizer;
use tilewright::{EmbedOptions, Embedder};

use crate::app::IDS_ALONE;

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

    /// What makes its texts into tokens, and how many of those a text may have: texts that are longer in any case are refused before
    /// [`Embed::embed`] sees them. Unless told otherwise, none is.
    fn measures(&self) -> Option<(&Tokenizer, usize)> {
        None
    }

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

    fn measures(&self) -> Option<(&Tokenizer, usize)> {
        Some((self.tokenizer()?, self.context()))
    }

    fn embed(&self, inputs: &[EmbedInput]) -> tilewright::Result<Vec<Embedded>> {
        let options = EmbedOptions::default();
        let (mut texts, mut ids) = (Vec::new(), Vec::new());
        for input in inputs {
            match input {
                EmbedInput::Text(text) => texts.push(text),
                EmbedInput::Ids(found) => ids.push(found.as_slice()),
            }
        }
        if !texts.is_empty() && self.tokenizer().is_none() {
            let (expected, found) = (IDS_ALONE.into(), "text".into());
            return Err(tilewright::Error::Request { what: "input", expected, found });
        }
        // Each kind in one call, which makes batches; a checkpoint without a tokenizer still takes ids.
        let mut found = Vec::new();
        if !texts.is_empty() {
            found.push(Embedder::embed(self, &texts, &options)?);
        }
        if !ids.is_empty() {
            found.push(self.embed_ids(&ids, &options)?);
        }
        let embedded = found.into_iter().flat_map(|found| found.vectors.into_iter().zip(found.tokens));
        let mut embedded: Vec<_> =
            embedded.map(|(values, tokens)| Some(Embedded { values, tokens })).collect();
        let (mut next_text, mut next_ids) = (0, texts.len());
        let in_order = inputs.iter().filter_map(|input| {
            let next = if matches!(input, EmbedInput::Text(_)) { &mut next_text } else { &mut next_ids };
            *next += 1;
            embedded.get_mut(*next - 1).and_then(Option::take)
        });
        Ok(in_order.collect())
    }
}
