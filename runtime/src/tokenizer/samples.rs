//! Files of tokenizers for tests: what real checkpoints have, and the parts of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::bytes::byte_of;
use super::trust;

pub fn tokenizer(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, " ": 2, "ab": 3 }, "merges": [["a", "b"]] },
    });
    change(&mut file);
    file.to_string().into_bytes()
}

/// What reading a file's contents comes to.
pub fn outcome(bytes: &[u8]) -> std::result::Result<tokenizers::Tokenizer, String> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, bytes).expect("written");
    trust::read(&path).map_err(|error| error.to_string())
}

/// SentencePiece's rules, that a byte is replaced by a text.
pub fn charsmap(byte: u8, text: &str) -> Value {
    // A double array of one key: the root's unit leads to the byte's, which has a leaf behind it.
    let mut table = vec![0_u32; 1024];
    table[0] = 256 << 10;
    let place = 256 ^ usize::from(byte);
    table[place] = (512 << 10) | (1 << 8) | u32::from(byte);
    let bytes: Vec<u8> = table.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    let rules = [&(bytes.len() as u32).to_le_bytes()[..], &bytes, text.as_bytes(), b"\0"].concat();
    json!({ "type": "Precompiled", "precompiled_charsmap": STANDARD.encode(rules) })
}

pub fn replace(pattern: &str, content: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content })
}

pub fn byte_level() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true })
}

pub fn metaspace() -> Value {
    json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true })
}

pub fn split(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}

pub fn sequence(list: &str, steps: Vec<Value>) -> Value {
    let mut sequence = json!({ "type": "Sequence" });
    sequence[list] = Value::Array(steps);
    sequence
}

pub fn template(pieces: Value) -> Value {
    json!({
        "type": "TemplateProcessing", "single": pieces, "pair": [],
        "special_tokens": { "a": { "id": "a", "ids": [0], "tokens": ["a"] } },
    })
}

pub fn special() -> Value {
    json!({ "SpecialToken": { "id": "a", "type_id": 0 } })
}

pub fn the_text(id: &str) -> Value {
    json!({ "Sequence": { "id": id, "type_id": 0 } })
}

/// A tokenizer of bytes, whole.
pub fn of_bytes(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut vocab = serde_json::Map::new();
    for letter in (0..324_u32).filter_map(char::from_u32).filter(|&c| byte_of(c).is_some()) {
        vocab.insert(letter.to_string(), json!(vocab.len()));
    }
    vocab.insert("Ġa".into(), json!(256));
    vocab.insert("Ġab".into(), json!(257));
    tokenizer(|file| {
        file["model"]["vocab"] = Value::Object(vocab);
        file["model"]["merges"] = json!(["Ġ a", "Ġa b"]);
        file["pre_tokenizer"] = byte_level();
        file["decoder"] = byte_level();
        change(file);
    })
}

/// One that falls back to bytes, as SentencePiece's do.
pub fn with_fallback(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut vocab = serde_json::Map::new();
    vocab.insert("<unk>".into(), json!(0));
    for byte in 0..=255_u8 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(vocab.len()));
    }
    for token in ["▁", "a", "b", "▁a"] {
        vocab.insert(token.into(), json!(vocab.len()));
    }
    tokenizer(|file| {
        file["model"] = json!({
            "type": "BPE", "vocab": vocab, "merges": [["▁", "a"]], "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
        });
        file["normalizer"] =
            sequence("normalizers", vec![json!({ "type": "Prepend", "prepend": "▁" }), replace(" ", "▁")]);
        file["decoder"] = sequence(
            "decoders",
            vec![
                replace("▁", " "),
                json!({ "type": "ByteFallback" }),
                json!({ "type": "Fuse" }),
                json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }),
            ],
        );
        change(file);
    })
}

/// One of words, as BERT's.
pub fn of_words(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    tokenizer(|file| {
        file["normalizer"] = json!({
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true,
        });
        file["pre_tokenizer"] = json!({ "type": "BertPreTokenizer" });
        file["added_tokens"] = json!([{ "id": 3, "content": "[X]", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true }]);
        file["model"] = json!({
            "type": "WordPiece", "unk_token": "u", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": { "a": 0, "b": 1, "u": 2, "[X]": 3 },
        });
        change(file);
    })
}
