//! What of a `tokenizer.json` is checked before it's let near a text: the file comes with the weights, from anywhere.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use serde::{Deserialize, Serialize};
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
};

use super::steps::{MAX_GROWTH, MAX_SPLIT_GROWTH, Refusal, Steps};
use crate::checkpoint::read_at_most;
use crate::{Error, Result};

/// Bytes of the file; vocabularies of 256k tokens have some 35 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Bytes of all added tokens once they are normalised as texts are, which happens when the file is read.
const MAX_ADDED_BYTES: usize = 64 << 20;
/// Bytes of a text that the model copies for each character or word: the unknown token, a prefix, a suffix.
const MAX_AFFIX_BYTES: usize = 64;
/// Bytes of a token of the vocabulary: an answer tells each of its tokens, in text and in logprobs.
const MAX_TOKEN_BYTES: usize = 4096;
/// Characters of a word that word pieces are looked for in, which takes the square of them.
const MAX_WORD_CHARS: usize = 1000;

/// The parts that make something else of a text, read as the library reads them.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
}

#[derive(Deserialize)]
struct Added {
    content: String,
    normalized: bool,
}

/// Reads a tokenizer. What it would cut off or pad is for its user to say, not for the file.
pub(super) fn read(path: &Path) -> Result<tokenizers::Tokenizer> {
    let bytes = read_at_most(path, MAX_FILE_BYTES)?;
    let broken = |found| Error::file(path, "contents", "a tokenizer", found);
    let parts = guarded(|| serde_json::from_slice::<Parts>(&bytes)).map_err(broken)?;
    let around = check_parts(path, parts.map_err(|error| broken(error.to_string()))?)?;
    let read = guarded(|| tokenizers::Tokenizer::from_bytes(&bytes)).map_err(broken)?;
    let mut tokenizer = read.map_err(|error| broken(error.to_string()))?;
    check_vocabulary(path, &tokenizer, &around)?;
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(|error| Error::file(path, "truncation", "one that can be left out", error))?;
    // One that can't do the least is told of here rather than at the first request.
    let tried = guarded(|| tokenizer.encode("a b", true).map(|encoding| encoding.get_ids().to_vec()));
    tried
        .and_then(|encoded| encoded.map_err(|error| error.to_string()))
        .and_then(|ids| guarded(|| tokenizer.decode(&ids, true)).map(drop))
        .map_err(|found| Error::file(path, "contents", "a tokenizer that takes a text", found))?;
    Ok(tokenizer)
}

/// Refuses steps that make a text grow without end, before any text goes through them: added tokens do when the file is read. Returns the
/// tokens that are put round a text.
fn check_parts(path: &Path, parts: Parts) -> Result<Vec<u64>> {
    let refuse = |field| move |(expected, found): Refusal| Error::file(path, field, expected, found);
    let normalizer = steps(parts.normalizer);
    let post_processor = steps(parts.post_processor);
    normalizer
        .check(MAX_GROWTH)
        .and_then(|()| normalizer.check_replacements())
        .map_err(refuse("normalizer"))?;
    steps(parts.pre_tokenizer).check(MAX_SPLIT_GROWTH).map_err(refuse("pre_tokenizer"))?;
    post_processor.check(MAX_GROWTH).map_err(refuse("post_processor"))?;
    steps(parts.decoder).check(MAX_GROWTH).map_err(refuse("decoder"))?;
    let growth = normalizer.growth();
    let bytes = parts
        .added_tokens
        .iter()
        .map(|token| token.content.len().saturating_mul(if token.normalized { growth } else { 1 }));
    let bytes = bytes.fold(0, usize::saturating_add);
    if bytes > MAX_ADDED_BYTES {
        let expected = format!("at most {MAX_ADDED_BYTES} bytes, normalised");
        return Err(Error::file(path, "added_tokens", expected, bytes));
    }
    post_processor.around().map_err(refuse("post_processor"))
}

/// A part's steps; none where there is no part.
pub(super) fn steps(part: Option<impl Serialize>) -> Steps {
    // Whatever was read can be written.
    Steps::of(serde_json::to_value(part).unwrap_or_default())
}

/// Refuses a model that draws tokens, copies long texts for each character, has long texts for tokens, does the work of squares, or names tokens that
/// aren't there.
fn check_vocabulary(path: &Path, tokenizer: &tokenizers::Tokenizer, around: &[u64]) -> Result<()> {
    let none = String::new();
    if let ModelWrapper::BPE(model) = tokenizer.get_model()
        && let Some(dropout) = model.dropout.filter(|&dropout| dropout != 0.0)
    {
        return Err(Error::file(
            path,
            "model.dropout",
            "none: a text has the same tokens each time",
            dropout,
        ));
    }
    let affixes: [(&str, &String); 3] = match tokenizer.get_model() {
        ModelWrapper::BPE(model) => [
            ("model.unk_token", model.unk_token.as_ref().unwrap_or(&none)),
            ("model.continuing_subword_prefix", model.continuing_subword_prefix.as_ref().unwrap_or(&none)),
            ("model.end_of_word_suffix", model.end_of_word_suffix.as_ref().unwrap_or(&none)),
        ],
        ModelWrapper::WordPiece(model) => {
            let found = model.max_input_chars_per_word;
            if found > MAX_WORD_CHARS {
                let expected = format!("at most {MAX_WORD_CHARS} characters");
                return Err(Error::file(path, "model.max_input_chars_per_word", expected, found));
            }
            [
                ("model.unk_token", &model.unk_token),
                ("model.continuing_subword_prefix", &model.continuing_subword_prefix),
                ("model.end_of_word_suffix", &none),
            ]
        }
        ModelWrapper::WordLevel(model) => [("model.unk_token", &model.unk_token); 3],
        // A piece of the text stands for itself.
        ModelWrapper::Unigram(_) => [("model.unk_token", &none); 3],
    };
    if let Some((field, affix)) = affixes.into_iter().find(|(_, affix)| affix.len() > MAX_AFFIX_BYTES) {
        return Err(Error::file(path, field, format!("at most {MAX_AFFIX_BYTES} bytes"), affix.len()));
    }
    // Else a token of one character may be spelled as one of megabytes.
    let vocabulary = tokenizer.get_vocab(true);
    if let Some(longest) = vocabulary.keys().map(String::len).max().filter(|&bytes| bytes > MAX_TOKEN_BYTES) {
        let expected = format!("tokens of at most {MAX_TOKEN_BYTES} bytes");
        return Err(Error::file(path, "vocabulary", expected, longest));
    }
    let mut ids: Vec<u32> = tokenizer.get_vocab(false).into_values().collect();
    ids.sort_unstable();
    if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        let found = format!("{} for two", twice[0]);
        return Err(Error::file(path, "model.vocab", "a number of its own for each token", found));
    }
    let is_there = |&id: &u64| u32::try_from(id).is_ok_and(|id| tokenizer.id_to_token(id).is_some());
    match around.iter().find(|id| !is_there(id)) {
        Some(id) => Err(Error::file(path, "post_processor", "tokens of the vocabulary", id)),
        None => Ok(()),
    }
}

thread_local! {
    /// Whether a panic of this thread will be told of as an error, and so needs no report of its own.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs what may panic on what a file says; the panic becomes its message, and nothing is printed.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> std::result::Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                before(panic);
            }
        }));
    });
    let outer = IS_GUARDED.replace(true);
    // What is borrowed is only read, and given up where it broke.
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(outer);
    result.map_err(|panic| {
        let said = panic.downcast_ref::<&str>().map(|text| text.to_string());
        said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "one that breaks".into())
    })
}

#[cfg(test)]
mod tests;
