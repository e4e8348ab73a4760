//! Text to token ids and back, a token at a time.

mod bytes;
mod extent;
#[cfg(test)]
mod samples;
mod steps;
mod trust;
mod width;

use std::path::Path;

use serde_json::Value;

use bytes::TokenBytes;
pub use extent::Extent;

use crate::checkpoint::{is_there, read_file};
use crate::{Error, Result};

/// Tokens of context that text after a prompt is decoded with, so that a leading space survives.
const CONTEXT_TOKENS: usize = 8;
/// What decoders put in place of bytes that aren't (yet) UTF-8.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;
/// Replacement characters that an unfinished character can end in: one a byte, of at most three.
const MAX_UNFINISHED: usize = 3;

/// `tokenizer.json` and the BOS rule of `tokenizer_config.json`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Prepended to every text.
    bos: Option<u32>,
    /// Of a vocabulary of bytes.
    bytes: Option<TokenBytes>,
    /// Bytes of a text that a token stands for at most, where that can be told.
    widest: Option<usize>,
    /// The same of a text that Unicode's forms were applied to, where nothing else is.
    widest_normalised: Option<usize>,
    /// Whether each word between white space has a token at least.
    splits_at_spaces: bool,
}

impl Tokenizer {
    /// Reads the tokenizer of `dir`; `None` where there is none.
    ///
    /// # Errors
    /// A file that is there and can't be used.
    pub fn load(dir: &Path, config_bos: Option<u32>) -> Result<Option<Tokenizer>> {
        let path = dir.join("tokenizer.json");
        if !is_there(&path) {
            return Ok(None);
        }
        let inner = trust::read(&path)?;
        let (bytes, widest) = (TokenBytes::of(&inner), width::widest_token(&inner));
        let (widest_normalised, splits_at_spaces) =
            (width::widest_under_forms(&inner), width::splits_at_spaces(&inner));
        let mut tokenizer =
            Tokenizer { inner, bos: None, bytes, widest, widest_normalised, splits_at_spaces };
        let config_path = dir.join("tokenizer_config.json");
        if is_there(&config_path) {
            tokenizer.bos = tokenizer.explicit_bos(&config_path, config_bos)?;
        }
        Ok(Some(tokenizer))
    }

    /// The BOS token where `add_bos_token` asks for it and the tokenizer's own post-processor doesn't add it.
    fn explicit_bos(&self, path: &Path, config_bos: Option<u32>) -> Result<Option<u32>> {
        let bytes = read_file(path)?;
        let config: Value =
            serde_json::from_slice(&bytes).map_err(|error| Error::file(path, "contents", "JSON", error))?;
        if config.get("add_bos_token") != Some(&Value::Bool(true)) {
            return Ok(None);
        }
        let named = config.get("bos_token").and_then(|token| match token {
            Value::String(text) => Some(text.as_str()),
            other => other.get("content").and_then(Value::as_str),
        });
        let bos = named.and_then(|text| self.inner.token_to_id(text)).or(config_bos);
        let Some(bos) = bos else {
            return Err(Error::file(path, "bos_token", "a token, as add_bos_token is true", "none"));
        };
        let added =
            self.inner.encode("", true).is_ok_and(|encoding| encoding.get_ids().first() == Some(&bos));
        Ok((!added).then_some(bos))
    }

    /// Token ids of a text that starts here.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::from_iter(self.bos);
        ids.extend(self.encode_with(text, true)?);
        Ok(ids)
    }

    /// Token ids of a text that goes on: nothing is added in front or behind.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, false)
    }

    /// Tokens that a text of so many bytes has at least: what can be told of it without making it into tokens. 0 where that is nothing, as
    /// the tokenizer may leave parts of a text out or take any length of it for one token.
    pub fn least_tokens(&self, text_bytes: usize) -> usize {
        self.widest.map_or(0, |widest| text_bytes.div_ceil(widest))
    }

    fn encode_with(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        // Fast is without places in the text, which nobody asks for.
        let encoded = trust::guarded(|| self.inner.encode_fast(text, add_special));
        let encoded = encoded.and_then(|encoded| encoded.map_err(|error| error.to_string()));
        let refuse = |found| Error::request("text", "a text that the tokenizer takes", found);
        Ok(encoded.map_err(refuse)?.get_ids().to_vec())
    }

    /// The text of token ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        if let Some(text) = self.bytes.as_ref().and_then(|bytes| bytes.decode(&self.inner, ids)) {
            return text;
        }
        // What a file's decoder can't do comes out as no text.
        trust::guarded(|| self.inner.decode(ids, true)).ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Whether [`Tokenizer::decode`] leaves a token out.
    pub fn is_special(&self, id: u32) -> bool {
        let whole = trust::guarded(|| self.inner.decode(&[id], false)).ok().and_then(Result::ok);
        whole.unwrap_or_default() != self.decode(&[id])
    }

    /// The vocabulary's own spelling of a token: of byte-level vocabularies in their alphabet, of others with a mark for a space.
    pub fn spelling(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// A decoder of the text that follows `prompt`.
    pub fn stream(&self, prompt: &[u32]) -> TextStream {
        TextStream::new(&prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..], |ids| self.decode(ids))
    }
}

/// Token ids in, whole characters out: a character that isn't finished is held back.
#[derive(Debug, Clone)]
pub struct TextStream {
    /// Context that was given out whole, then what wasn't.
    ids: Vec<u32>,
    /// Where what wasn't given out starts.
    read: usize,
    /// Bytes of the window's text that were given out.
    emitted: usize,
}

impl TextStream {
    fn new(context: &[u32], decode: impl Fn(&[u32]) -> String) -> TextStream {
        let text = decode(context);
        if text.ends_with(REPLACEMENT) {
            return TextStream { ids: Vec::new(), read: 0, emitted: 0 };
        }
        TextStream { ids: context.to_vec(), read: context.len(), emitted: text.len() }
    }

    /// The text that `id` completes.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.push_with(id, |ids| tokenizer.decode(ids))
    }

    /// What is left at the end: an unfinished character, as replacement characters.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> String {
        let text = tokenizer.decode(&self.ids);
        let rest = text.get(self.emitted..).unwrap_or_default().to_string();
        self.emitted = text.len();
        rest
    }

    fn push_with(&mut self, id: u32, decode: impl Fn(&[u32]) -> String) -> String {
        self.ids.push(id);
        let text = decode(&self.ids);
        let unfinished = text.chars().rev().take(MAX_UNFINISHED).take_while(|&c| c == REPLACEMENT).count();
        let stable = text.len() - unfinished * REPLACEMENT.len_utf8();
        let piece = text.get(self.emitted..stable).unwrap_or_default().to_string();
        self.emitted = self.emitted.max(stable);
        if unfinished == 0 && !piece.is_empty() {
            // The last piece's tokens stay as context: some decoders treat the first token of a text differently.
            self.ids.drain(..self.read);
            self.read = self.ids.len();
            self.emitted = decode(&self.ids).len();
        }
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer of bytes.
    fn bytes(ids: &[u32]) -> String {
        String::from_utf8_lossy(&ids.iter().map(|&id| id as u8).collect::<Vec<_>>()).into_owned()
    }

    #[test]
    fn characters_come_whole() {
        let text = "aé€😀b";
        let mut stream = TextStream::new(b"x".map(u32::from).as_slice(), bytes);
        let pieces: Vec<String> = text.bytes().map(|b| stream.push_with(b.into(), bytes)).collect();
        assert_eq!(pieces, ["a", "", "é", "", "", "€", "", "", "", "😀", "b"]);
    }

    #[test]
    fn bytes_that_never_become_a_character_do_not_hold_text_back() {
        let mut stream = TextStream::new(&[], bytes);
        let mut out = String::new();
        for byte in [0xff_u32, 0xff, 0xff, 0xff, 0xff, 0xe2, 0x82, 0xac, 0x61, 0xe2, 0x62] {
            out += &stream.push_with(byte, bytes);
        }
        assert_eq!(out, "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}€a\u{fffd}b");
    }

    #[test]
    fn a_leading_space_survives_after_a_prompt() {
        // A decoder that strips a text's first space, as those of SentencePiece do.
        let strip = |ids: &[u32]| bytes(ids).strip_prefix(' ').map(str::to_string).unwrap_or(bytes(ids));
        let mut stream = TextStream::new(&[u32::from(b'x')], strip);
        let pieces: String = b" y z".iter().map(|&b| stream.push_with(b.into(), strip)).collect();
        assert_eq!(pieces, " y z");
    }
}
