//! Runs the binary, and makes checkpoints to run it on.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json as value};
use tempfile::TempDir;

/// A path below the workspace.
pub fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The binary with nothing on standard input.
pub fn tilewright(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tilewright"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts")
}

/// Standard output of a run that must succeed, as JSON.
pub fn json(args: &[&str]) -> Value {
    let output = tilewright(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

/// As [`json`], with `text` on a pipe at standard input.
pub fn json_of_pipe(args: &[&str], text: &str) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tilewright"));
    let command = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let written = child.stdin.take().expect("a pipe").write_all(text.as_bytes());
    let output = child.wait_with_output().expect("an end");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    written.expect("written");
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

/// Asserts that a run fails with one line that holds each of `parts`.
#[track_caller]
pub fn assert_refused(args: &[&str], parts: &[&str]) {
    let output = tilewright(args);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {:?} {stderr}", output.status);
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}: something on standard output");
    for part in parts {
        assert!(stderr.contains(part), "{args:?}: no {part:?} in {stderr}");
    }
}

/// The fixture of a BERT with a tokenizer beside it, which the fixture itself has none of.
pub fn bert_of_words() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(workspace("tests/fixtures/bert").join(file), dir.path().join(file)).expect("copied");
    }
    std::fs::write(dir.path().join("tokenizer.json"), word_pieces().to_string()).expect("written");
    dir
}

/// Word pieces in BERT's manner, a few dozen; it asks for padding and cutting as files of sentence encoders do.
fn word_pieces() -> Value {
    let words = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "kernel", "##s", "run", "fast", "on", "a", "gpu", "and",
        "##ning", "##er",
    ];
    let marks = [".", ",", "!", "?", "(", ")", "{", "}", ";", ":"].map(str::to_string);
    let letters = ('a'..='t').map(|letter| format!("##{letter}"));
    let tokens =
        words.map(str::to_string).into_iter().chain(marks).chain(letters.filter(|piece| piece != "##s"));
    let vocab: serde_json::Map<_, _> =
        tokens.zip(0..).map(|(token, id): (_, u32)| (token, id.into())).collect();
    let special = |id: u32, token: &str| {
        value!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    value!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"), special(3, "[SEP]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab}
    })
}
