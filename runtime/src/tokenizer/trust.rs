//! What of a `tokenizer.json` is checked before it's let near a text: the file comes with the weights, from anywhere.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result};

/// Bytes of the file; vocabularies of 256k tokens have some 35 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// How many times longer replacements may make a text, all together.
const MAX_GROWTH: usize = 256;

/// The parts that rewrite text.
#[derive(Deserialize)]
struct Rewriting {
    normalizer: Option<Value>,
    decoder: Option<Value>,
}

/// Reads a tokenizer. What it would cut off or pad is for its user to say, not for the file.
pub(super) fn read(path: &Path) -> Result<tokenizers::Tokenizer> {
    let bytes = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(Error::file(path, "length", format!("at most {MAX_FILE_BYTES} bytes"), bytes));
    }
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let rewriting: Rewriting = serde_json::from_slice(&bytes)
        .map_err(|error| Error::file(path, "contents", "a tokenizer", error))?;
    for (what, part) in [("normalizer", rewriting.normalizer), ("decoder", rewriting.decoder)] {
        let growth = part.as_ref().map_or(1, growth);
        if growth > MAX_GROWTH {
            let expected = format!("replacements that make a text at most {MAX_GROWTH} times longer");
            return Err(Error::file(path, what, expected, growth));
        }
    }
    let mut tokenizer = guarded(|| tokenizers::Tokenizer::from_bytes(&bytes))
        .and_then(|read| read.map_err(|error| error.to_string()))
        .map_err(|found| Error::file(path, "contents", "a tokenizer", found))?;
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

/// How many times longer all replacements of a part make a text at most.
fn growth(part: &Value) -> usize {
    match part {
        Value::Array(parts) => parts.iter().map(growth).fold(1, usize::saturating_mul),
        Value::Object(fields) => {
            let own = match fields.get("type").and_then(Value::as_str) {
                Some("Replace") => {
                    let content = fields.get("content").and_then(Value::as_str).map_or(0, str::len);
                    let pattern = fields.get("pattern").and_then(|pattern| pattern.get("String"));
                    // An expression may match a byte, or nothing between any two.
                    let replaced = pattern.and_then(Value::as_str).map_or(1, str::len).max(1);
                    content.div_ceil(replaced).max(1)
                }
                _ => 1,
            };
            fields.values().map(growth).fold(own, usize::saturating_mul)
        }
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tokenizer(change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, " ": 2, "ab": 3 }, "merges": [["a", "b"]] },
        });
        change(&mut file);
        file.to_string().into_bytes()
    }

    /// What reading a file's contents comes to.
    fn outcome(bytes: &[u8]) -> std::result::Result<tokenizers::Tokenizer, String> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, bytes).expect("written");
        read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_plain_one_is_read() {
        let tokenizer = outcome(&tokenizer(|_| {})).expect("a tokenizer");
        assert_eq!(tokenizer.encode("ab a", false).expect("ids").get_ids(), [3, 2, 0]);
    }

    #[test]
    fn padding_and_truncation_are_left_out() {
        let bytes = tokenizer(|file| {
            file["truncation"] =
                json!({ "direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0 });
            file["padding"] = json!({
                "strategy": { "Fixed": 10_000_000_000_u64 }, "direction": "Right", "pad_to_multiple_of": null,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "a",
            });
        });
        let tokenizer = outcome(&bytes).expect("a tokenizer");
        assert_eq!(tokenizer.encode("ab a", false).expect("ids").get_ids(), [3, 2, 0]);
    }

    #[test]
    fn hostile_ones_are_refused_in_a_line() {
        let doubling = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "aa" });
        let bomb = json!({ "type": "Sequence", "normalizers": vec![doubling.clone(); 40] });
        let decoding = json!({ "type": "Sequence", "decoders": vec![doubling; 40] });
        let cases: Vec<Vec<u8>> = vec![
            Vec::new(),
            b"{}".to_vec(),
            b"[]".to_vec(),
            b"null".to_vec(),
            b"{\"model\": \"\xff\"}".to_vec(),
            "[".repeat(200_000).into_bytes(),
            format!("{{\"model\": {}", "[".repeat(200_000)).into_bytes(),
            tokenizer(|file| file["model"] = json!({ "type": "Oracle" })),
            tokenizer(|file| file["model"]["merges"] = json!([["a", "x"]])),
            tokenizer(|file| file["model"]["merges"] = json!(["a b c"])),
            tokenizer(|file| file["model"]["vocab"]["a"] = json!(-1)),
            tokenizer(|file| file["model"]["vocab"]["a"] = json!(1_u64 << 40)),
            tokenizer(|file| {
                file["model"] = json!({ "type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]] })
            }),
            tokenizer(|file| file["model"] = json!({ "type": "WordLevel", "vocab": {}, "unk_token": "x" })),
            tokenizer(|file| {
                file["pre_tokenizer"] = json!({
                    "type": "Split", "pattern": { "Regex": "(" }, "behavior": "Isolated", "invert": false,
                });
            }),
            tokenizer(|file| {
                file["normalizer"] = json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" })
            }),
            tokenizer(|file| {
                file["post_processor"] = json!({
                    "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "x", "type_id": 0 } }],
                    "pair": [], "special_tokens": {},
                });
            }),
            tokenizer(|file| file["normalizer"] = bomb.clone()),
            tokenizer(|file| file["decoder"] = decoding.clone()),
        ];
        for (index, bytes) in cases.iter().enumerate() {
            let refusal = outcome(bytes).err().unwrap_or_else(|| panic!("case {index} was taken"));
            assert!(refusal.contains("tokenizer.json: "), "{index}: {refusal}");
            assert!(!refusal.contains('\n'), "{index}: {refusal}");
        }
    }
}
