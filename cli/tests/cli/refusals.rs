//! Bad input: one line that names what and where, an exit code that isn't 0, and no panic.

use std::path::{Path, PathBuf};

use crate::common::{assert_refused, workspace};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A copy of the demo model that a test may damage.
struct Copy {
    dir: TempDir,
}

impl Copy {
    fn new() -> Copy {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            let from = workspace("models/demo/draft").join(file);
            std::fs::copy(from, dir.path().join(file)).expect("copied");
        }
        Copy { dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, changes: &Value) {
        let path = self.file("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
        for (key, value) in changes.as_object().expect("an object") {
            config[key] = value.clone();
        }
        std::fs::write(path, config.to_string()).expect("written");
    }

    /// Rewrites the header of the checkpoint.
    fn edit_header(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.file("model.safetensors");
        let bytes = std::fs::read(&path).expect("read");
        let len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + len]).expect("JSON");
        edit(&mut header);
        let header = header.to_string().into_bytes();
        let whole = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + len..]].concat();
        std::fs::write(path, whole).expect("written");
    }

    #[track_caller]
    fn refused(&self, parts: &[&str]) {
        refused_in(self.dir.path(), &[], parts);
    }
}

#[track_caller]
fn refused_in(dir: &Path, flags: &[&str], parts: &[&str]) {
    let dir = dir.to_str().expect("UTF-8");
    assert_refused(&[&["run", "fn", "-m", dir, "-n", "2", "--device", "cpu"], flags].concat(), parts);
}

#[test]
fn what_is_missing_is_named() {
    assert_refused(&["run", "fn", "-m", "/no/such/folder"], &["/no/such/folder", "No such file"]);
    assert_refused(&["inspect", "/no/such/folder"], &["/no/such/folder", "No such file"]);
    assert_refused(&["verify", "/no/such/folder"], &["/no/such/folder", "No such file"]);
    assert_refused(&["eval", "/no/such/file"], &["/no/such/file", "No such file"]);
    let demo = workspace("models/demo/draft");
    assert_refused(&["verify", demo.to_str().expect("UTF-8")], &["expected.safetensors", "No such file"]);
    let copy = Copy::new();
    std::fs::remove_file(copy.file("config.json")).expect("removed");
    copy.refused(&["config.json", "No such file"]);
    let copy = Copy::new();
    std::fs::remove_file(copy.file("model.safetensors")).expect("removed");
    copy.refused(&["expected model.safetensors", "neither"]);
    let copy = Copy::new();
    std::fs::remove_file(copy.file("tokenizer.json")).expect("removed");
    copy.refused(&["tokenizer: expected tokenizer.json, or a prompt of token ids"]);
}

#[cfg(unix)]
#[test]
fn files_without_an_end_are_refused() {
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let copy = Copy::new();
        let path = copy.file(name);
        std::fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink("/dev/zero", &path).expect("linked");
        let expected = ": type: expected a regular file, or a link to one, found ";
        copy.refused(&[&format!("{name}{expected}a device")]);
        std::fs::remove_file(&path).expect("removed");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        copy.refused(&[&format!("{name}{expected}a pipe")]);
        // As caches of downloads have them.
        std::fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink(workspace("models/demo/draft").join(name), &path).expect("linked");
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_folder_or_not_what_was_expected_is_named_by_its_flag() {
    let zeros = "/dev/zero: type: expected a folder, or a link to one, found a device";
    for (flag, args) in [
        ("--model", &["run", "fn", "-m"][..]),
        ("--draft", &["run", "fn", "--draft"]),
        ("--model", &["serve", "-m"]),
        ("--model", &["embed", "fn", "-m"]),
        ("--model", &["plan", "-m"]),
        ("--model", &["bench", "e2e", "-m"]),
        ("--draft", &["ladder", "--quick", "--draft"]),
        ("DIR", &["inspect"]),
        ("DIR", &["verify"]),
        ("DIR", &["doctor"]),
    ] {
        assert_refused(&[args, &["/dev/zero"]].concat(), &[&format!("error: {flag}: {zeros}")]);
    }
    assert_refused(
        &["plan", "--config", "/dev/zero"],
        &["error: --config: /dev/zero: type: expected a regular file, or a link to one, found a device"],
    );
    let dir = tempfile::tempdir().expect("a temporary folder");
    let fixture = workspace("tests/fixtures/qwen2-bias");
    for (name, expected) in [
        ("text", "contents: expected a whole safetensors file"),
        ("cases.json", "cases: expected JSON with input_ids and greedy_ids in each"),
        ("nowhere", "No such file"),
    ] {
        let path = dir.path().join(name);
        if name != "nowhere" {
            std::fs::write(&path, "text").expect("written");
        }
        let path = path.to_str().expect("UTF-8");
        assert_refused(
            &["verify", fixture.to_str().expect("UTF-8"), "--expected", path, "--device", "cpu"],
            &[&format!("error: --expected: {path}: {expected}")],
        );
    }
}

#[cfg(unix)]
#[test]
fn texts_without_an_end_are_refused() {
    let bert = workspace("tests/fixtures/bert");
    let bert = bert.to_str().expect("UTF-8");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_string();
    // Sparse: it takes no room.
    std::fs::File::create(at("long")).and_then(|file| file.set_len((64 << 20) + 1)).expect("made");
    std::fs::write(at("bytes"), b"a\xff").expect("written");
    let out = at("out");
    for (flag, args) in [
        ("FILE", &["eval"][..]),
        ("--file", &["embed", "-m", bert, "--file"]),
        ("--calib", &["quantize", "-o", &out, "--calib"]),
    ] {
        for (path, found) in [
            ("/dev/zero", "length: expected at most 67108864 bytes, found more"),
            (&at(""), "type: expected a file or a pipe, found a folder"),
            (&at("long"), "length: expected at most 67108864 bytes, found 67108865"),
            (&at("bytes"), "expected UTF-8 text, found invalid utf-8 sequence"),
        ] {
            assert_refused(&[args, &[path]].concat(), &[&format!("error: {flag}: {path}: {found}")]);
        }
    }
    let peers = ["bench", "--device", "cpu", "--peers", "/dev/zero"];
    assert_refused(&peers, &["--peers: /dev/zero: length: expected at most 67108864 bytes, found more"]);
}

#[cfg(unix)]
#[test]
fn a_prompt_without_an_end_is_refused() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tilewright"))
        .args(["run", "--device", "cpu"])
        .stdin(std::fs::File::open("/dev/zero").expect("opened"))
        .output()
        .expect("the binary starts");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(said, "error: standard input: expected at most 16777216 bytes, found more\n");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn damaged_checkpoints_are_refused() {
    let copy = Copy::new();
    let whole = std::fs::read(copy.file("model.safetensors")).expect("read");
    for len in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(copy.file("model.safetensors"), &whole[..len]).expect("written");
        copy.refused(&["model.safetensors: contents: expected a whole safetensors file"]);
    }
    let copy = Copy::new();
    copy.edit_header(|header| header["model.norm.weight"]["shape"] = json!([1, 192]));
    copy.refused(&["model.safetensors: tensor model.norm.weight: expected shape [192], found [1, 192]"]);
    let copy = Copy::new();
    let name = "model.layers.1.mlp.up_proj.weight";
    copy.edit_header(|header| header[name]["dtype"] = json!("I16"));
    copy.refused(&["tensor model.layers.1.mlp.up_proj.weight: expected dtype BF16, F16 or F32, found I16"]);
    let copy = Copy::new();
    copy.edit_header(|header| header[name]["dtype"] = json!("F16"));
    copy.refused(&[name, "expected dtype Bf16 as of model.layers.1.mlp.gate_proj.weight, found F16"]);
    let copy = Copy::new();
    copy.edit_header(|header| {
        let tensor = header.as_object_mut().expect("an object").remove(name).expect("there");
        header["something.else"] = tensor;
    });
    copy.refused(&[
        "model.safetensors: tensor model.layers.1.mlp.up_proj.weight: expected a tensor, found none",
    ]);
    let copy = Copy::new();
    copy.configure(&json!({"num_hidden_layers": 1}));
    copy.refused(&["tensor model.layers.1.", "expected no tensor of this name in this model"]);
    let copy = Copy::new();
    std::fs::rename(copy.file("model.safetensors"), copy.file("pytorch_model.bin")).expect("renamed");
    copy.refused(&["pytorch_model.bin: format: expected model.safetensors", "found a pickle checkpoint"]);
    let copy = Copy::new();
    std::fs::write(copy.file("tokenizer.json"), "{").expect("written");
    copy.refused(&["tokenizer.json: contents: expected a tokenizer"]);
}

#[test]
fn configurations_that_cannot_be_are_refused() {
    let cases = [
        (json!({"model_type": "gpt_neox"}), "field model_type: expected \"llama\""),
        (json!({"num_attention_heads": 0}), "field num_attention_heads: expected an integer from 1"),
        (
            json!({"hidden_size": 193}),
            "field hidden_size: expected a multiple of num_attention_heads, which is 3",
        ),
        (json!({"num_key_value_heads": 2}), "field num_key_value_heads: expected a divisor"),
        (json!({"num_hidden_layers": 4_000_000_000_u64}), "field num_hidden_layers: expected"),
        (json!({"max_position_embeddings": u64::MAX}), "field max_position_embeddings: expected"),
        (json!({"vocab_size": 2_000_000_000}), "expected shape [2000000000, 192], found [4096, 192]"),
        (json!({"intermediate_size": 2_000_000_000}), "expected shape [2000000000, 192], found [512, 192]"),
    ];
    for (changes, expected) in cases {
        let copy = Copy::new();
        copy.configure(&changes);
        copy.refused(&[expected]);
    }
    let copy = Copy::new();
    std::fs::write(copy.file("config.json"), "{\"model_type\": ").expect("written");
    copy.refused(&["config.json: contents: expected JSON"]);
}

#[test]
fn prompts_that_cannot_be_served_are_refused() {
    let run = |prompt: &str, flags: &[&str], parts: &[&str]| {
        assert_refused(&[&["run", prompt, "--device", "cpu"], flags].concat(), parts);
    };
    run(" ", &["--ids"], &["prompt: expected at least one token"]);
    run("5,x", &["--ids"], &["prompt: expected token ids separated by commas or spaces, found \"x\""]);
    run("5,-1", &["--ids"], &["prompt: expected token ids", "\"-1\""]);
    run("1,4096", &["--ids"], &["prompt: expected token ids below the vocabulary of 4096, found 4096"]);
    let long = vec!["7"; 2049].join(" ");
    run(&long, &["--ids"], &["prompt: expected at most 2048 tokens (the model's context), found 2049"]);
    // An empty text is a prompt where the checkpoint begins texts by a token of its own, as the demo does, and there alone.
    let copy = Copy::new();
    std::fs::write(copy.file("tokenizer_config.json"), "{}").expect("written");
    for flags in [&[][..], &["--ngram"]] {
        let args = [&["run", "", "-m", copy.dir.path().to_str().expect("UTF-8"), "--device", "cpu"], flags];
        assert_refused(&args.concat(), &["prompt: expected at least one token, found none"]);
    }
}

#[test]
fn parameters_out_of_range_are_refused() {
    let run = |flags: &[&str], parts: &[&str]| {
        assert_refused(&[&["run", "fn", "--device", "cpu"], flags].concat(), parts);
    };
    run(&["--temp", "NaN"], &["--temp: expected a finite number of at least 0, found NaN"]);
    run(&["--temp", "-1"], &["--temp: expected a finite number of at least 0, found -1"]);
    run(&["--temp", "inf"], &["--temp: "]);
    run(&["--temp", "warm"], &["invalid value 'warm' for '--temp <T>'"]);
    run(&["--top-p", "-0.1"], &["--top-p: expected a number from 0 to 1, found -0.1"]);
    run(&["--top-p", "2"], &["--top-p: expected a number from 0 to 1, found 2"]);
    run(&["--min-p", "-0.5"], &["--min-p: expected a number from 0 to 1, found -0.5"]);
    run(&["-n", "0"], &["--max-tokens: expected at least 1"]);
    run(&["--stop", ""], &["--stop: expected a text"]);
    run(&["--bogus"], &["unexpected argument '--bogus'"]);
    assert_refused(&["run", "fn", "--device", "tpu"], &["--device", "auto, cpu, cpu-bf16, cuda or cuda:N"]);
    let readme = workspace("models/demo/README.md");
    let readme = readme.to_str().expect("UTF-8");
    assert_refused(&["eval", readme, "--ctx", "1", "--device", "cpu"], &["--ctx: expected 2 to 2048"]);
    assert_refused(&["eval", readme, "--ctx", "4096", "--device", "cpu"], &["--ctx: expected 2 to 2048"]);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_how_to_get_it() {
    assert_refused(&["run", "fn", "--device", "cuda:1"], &["device cuda:1", "build it with --features cuda"]);
}

/// Whether there is a driver or not.
#[cfg(feature = "cuda")]
#[test]
fn a_gpu_that_is_not_there_is_refused() {
    assert_refused(&["run", "fn", "--device", "cuda:9999"], &["device cuda:9999", "nvidia-smi"]);
    let checkpoint = workspace("tests/fixtures/qwen2-bias");
    let checkpoint = checkpoint.to_str().expect("UTF-8");
    assert_refused(&["verify", checkpoint, "--device", "cuda:9999"], &["device cuda:9999", "nvidia-smi"]);
}

#[test]
fn drafts_that_cannot_be_made_are_refused() {
    let run = |flags: &[&str], parts: &[&str]| {
        assert_refused(&[&["run", "fn", "-n", "2", "--device", "cpu"], flags].concat(), parts);
    };
    run(&["--speculate", "3"], &["--draft", "--ngram"]);
    run(&["--ngram", "--speculate", "16"], &["--speculate: expected 1 to 15", "16"]);
    run(&["--ngram", "--speculate", "0"], &["--speculate: expected 1 to 15", "0"]);
    run(&["--ngram", "--no-kv-cache"], &["--ngram", "--no-kv-cache"]);
    let other = workspace("tests/fixtures/qwen2-bias");
    run(
        &["--draft", other.to_str().expect("UTF-8")],
        &["--draft: expected a vocabulary of 4096 tokens, found 192"],
    );
}

#[test]
fn a_cache_of_another_kind_is_refused_by_name() {
    for command in [&["run", "fn"][..], &["eval", "x.txt"], &["serve"], &["bench", "e2e"]] {
        let args = [command, &["--kv-dtype", "int3"]].concat();
        assert_refused(&args, &["kv-dtype", "expected auto", "int8 or fp8", "int3"]);
    }
}
