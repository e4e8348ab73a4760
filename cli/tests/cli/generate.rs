//! What the binary generates, measures and verifies.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::common::{json, json_of_pipe, tilewright, workspace};
use serde_json::Value;

const PROMPT: &str = "fn main() {\n    let mut v = Vec::new();\n";

fn expected_greedy() -> Vec<Value> {
    let text = std::fs::read(workspace("models/demo/expected_greedy.json")).expect("expected_greedy.json");
    let value: Value = serde_json::from_slice(&text).expect("JSON");
    value["cases"].as_array().expect("cases").clone()
}

#[test]
fn the_demo_continues_as_transformers_does() {
    let cases = expected_greedy();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let prompt = case["prompt"].as_str().expect("a prompt");
        let report =
            json(&["run", prompt, "--json", "--temp", "0", "-n", "64", "--ignore-eos", "--device", "cpu"]);
        assert_eq!(report["prompt_ids"], case["input_ids"]);
        assert_eq!(report["output_ids"], case["greedy_ids"]);
        assert_eq!(report["text"], case["text"]);
        assert_eq!(report["finish_reason"], "length");
        assert!(report["timings"]["decode_tokens_per_second"].as_f64().is_some_and(|rate| rate > 0.0));
    }
}

/// A build that knows GPUs says why it takes none; one that doesn't has nothing to explain.
#[test]
fn without_a_gpu_auto_runs_on_the_cpu_and_says_why() {
    let checkpoint = workspace("tests/fixtures/qwen2-bias");
    let checkpoint = checkpoint.to_str().expect("UTF-8");
    let run = ["run", "1 2 3", "--ids", "-n", "2", "-m", checkpoint, "--device", "auto"];
    let verify = ["verify", checkpoint, "--device", "auto"];
    for args in [&run[..], &verify[..]] {
        let output = Command::new(env!("CARGO_BIN_EXE_tilewright"))
            .args(args)
            // Hides the GPUs that there may be.
            .env("CUDA_VISIBLE_DEVICES", "")
            .stdin(Stdio::null())
            .output()
            .expect("the binary starts");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(output.status.success(), "{args:?}: {stderr}");
        let notes: Vec<&str> = stderr.lines().filter(|line| line.starts_with("note:")).collect();
        assert_eq!(notes.len(), usize::from(cfg!(feature = "cuda")), "{args:?}: {stderr}");
        assert!(notes.iter().all(|note| note.starts_with("note: running on the CPU: device cuda:0: ")));
    }
}

#[test]
fn recomputation_and_token_ids_give_the_same_tokens() {
    let cached = json(&["run", PROMPT, "--json", "-n", "24", "--device", "cpu"]);
    let recomputed = json(&["run", PROMPT, "--json", "-n", "24", "--device", "cpu", "--no-kv-cache"]);
    assert_eq!(cached["output_ids"], recomputed["output_ids"]);
    let ids: Vec<String> =
        cached["prompt_ids"].as_array().expect("ids").iter().map(Value::to_string).collect();
    let by_ids = json(&["run", &ids.join(","), "--ids", "--json", "-n", "24", "--device", "cpu"]);
    assert_eq!(cached["output_ids"], by_ids["output_ids"]);
    assert_eq!(cached["text"], by_ids["text"]);
}

#[test]
fn drafts_change_no_greedy_answer() {
    let plain = json(&["run", PROMPT, "--json", "-n", "32", "--device", "cpu"]);
    let draft = workspace("models/demo/draft");
    let draft = draft.to_str().expect("UTF-8");
    for flags in
        [&["--draft", draft, "--speculate", "4"][..], &["--draft", draft], &["--ngram", "--speculate", "3"]]
    {
        let args = [&["run", PROMPT, "--json", "-n", "32", "--device", "cpu"], flags].concat();
        let drafted = json(&args);
        assert_eq!(plain["output_ids"], drafted["output_ids"], "{flags:?}");
        assert_eq!(plain["text"], drafted["text"]);
        assert_eq!(plain["finish_reason"], drafted["finish_reason"]);
        assert!(drafted["speculation"]["accepted"].is_u64());
    }
    let drafted =
        json(&["run", PROMPT, "--json", "-n", "32", "--device", "cpu", "--draft", draft, "--speculate", "4"]);
    assert!(drafted["speculation"]["accepted"].as_u64() > Some(5), "{}", drafted["speculation"]);
}

#[test]
fn sampling_follows_its_seed() {
    let draw = |seed: &str| {
        json(&[
            "run", PROMPT, "--json", "-n", "24", "--temp", "1", "--top-p", "0.95", "-s", seed, "--device",
            "cpu",
        ])["output_ids"]
            .clone()
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));
    let greedy = json(&["run", PROMPT, "--json", "-n", "24", "--device", "cpu"]);
    for alone in [["--top-k", "1"], ["--top-p", "0"]] {
        let flags = ["run", PROMPT, "--json", "-n", "24", "--temp", "2", "--device", "cpu"];
        let likeliest = json(&[&flags[..], &alone].concat());
        assert_eq!(greedy["output_ids"], likeliest["output_ids"], "{alone:?}");
    }
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    // Greedy text: "}\n\nfn foo(v: &mut Vec<i32>) {…"; the stop string spans several tokens.
    let report = json(&["run", PROMPT, "--json", "--stop", "foo(v: &", "--stop", "never", "--device", "cpu"]);
    assert_eq!(report["text"], "}\n\nfn ");
    assert_eq!(report["finish_reason"], "stop");
}

#[test]
fn an_eos_token_ends_the_text_unless_it_is_ignored() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(workspace("models/demo/target").join(file), dir.path().join(file)).expect("copied");
    }
    // 199 is a line's end, the second token of the greedy continuation.
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [7, 199]}"#)
        .expect("written");
    let args =
        ["run", PROMPT, "-m", dir.path().to_str().expect("UTF-8"), "--json", "-n", "8", "--device", "cpu"];
    let stopped = json(&args);
    assert_eq!(stopped["output_ids"], serde_json::json!([93, 199]));
    assert_eq!(stopped["finish_reason"], "stop");
    let ignored = json(&[&args[..], &["--ignore-eos"]].concat());
    assert_eq!(ignored["output_ids"].as_array().map(Vec::len), Some(8));
    assert_eq!(ignored["finish_reason"], "length");
}

#[test]
fn text_streams_from_standard_input_to_standard_output() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tilewright"))
        .args(["run", "-n", "5", "--device", "cpu"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    child.stdin.take().expect("a pipe").write_all(PROMPT.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "}\n\nfn foo\n");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("prompt 15 tokens") && stderr.contains("decode 4 tokens"), "{stderr}");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tilewright"))
        .args(["run", PROMPT, "-n", "2000", "--ignore-eos", "--device", "cpu"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut [0]).expect("a first byte");
    drop(stdout);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{:?}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn the_context_is_a_limit() {
    let fixture = workspace("tests/fixtures/qwen2-bias");
    let ids = vec!["7"; 510].join(" ");
    let fixture = fixture.to_str().expect("UTF-8");
    let report = json(&["run", &ids, "--ids", "-m", fixture, "--json", "--ignore-eos", "--device", "cpu"]);
    // 510 tokens of prompt and two more fill the context of 512; one further token follows from them.
    assert_eq!(report["output_ids"].as_array().map(Vec::len), Some(3));
    assert_eq!(report["finish_reason"], "context");
    assert_eq!(report["text"], "");
    for flags in [&[][..], &["--ngram", "--speculate", "2"]] {
        let args = [
            &["run", &ids, "--ids", "-m", fixture, "-n", "100000", "--ignore-eos", "--device", "cpu"],
            flags,
        ];
        let output = tilewright(&args.concat());
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        let note = "note: the model's context of 512 tokens ended the text after 3 of the 100000 asked for";
        assert_eq!(stderr.lines().next(), Some(note), "{flags:?}: {stderr}");
    }
}

#[test]
fn an_empty_text_begins_anew() {
    let run = |flags: &[&str]| json(&[&["run", "--json", "-n", "4", "--device", "cpu"], flags].concat());
    let empty = run(&[""]);
    assert_eq!(empty["prompt_ids"], serde_json::json!([0]));
    for same in [&["0", "--ids"][..], &["", "--ngram"], &[]] {
        assert_eq!(empty["output_ids"], run(same)["output_ids"], "{same:?}");
    }
}

#[test]
fn fixtures_verify_in_f32_and_in_bf16() {
    for name in [
        "llama-gqa-rope3",
        "qwen2-bias",
        "qwen3-qknorm",
        "mistral-window16",
        "gpt2",
        "llama-gptq-g128",
        "llama-gptq-actorder-g64",
    ] {
        let dir = workspace(&format!("tests/fixtures/{name}"));
        let dir = dir.to_str().expect("UTF-8");
        let report = json(&["verify", dir, "--device", "cpu", "--json"]);
        assert_eq!(report["passed"], true);
        let logits = &report["tensors"][0];
        // Far inside of the bound of 1e-3: what the order of sums can do.
        let relative =
            logits["worst_error"].as_f64().expect("a number") / logits["largest"].as_f64().expect("a number");
        assert!(relative < 1e-5, "{name}: {relative}");
        for greedy in report["greedy"].as_array().expect("continuations") {
            assert_eq!(greedy["equal_steps"], 16);
        }
        assert_eq!(json(&["verify", dir, "--device", "cpu-bf16", "--json"])["passed"], true);
    }
}

#[test]
fn gpt2_continues_a_prompt() {
    let dir = workspace("tests/fixtures/gpt2");
    let dir = dir.to_str().expect("UTF-8");
    let run = |flags: &[&str]| {
        json(
            &[&["run", "7 9 11", "--ids", "-m", dir, "-n", "12", "--json", "--device", "cpu"], flags]
                .concat(),
        )
    };
    let cached = run(&[]);
    assert_eq!(cached["output_ids"].as_array().map(Vec::len), Some(12));
    assert_eq!(cached["output_ids"], run(&["--no-kv-cache"])["output_ids"]);
    assert_eq!(cached["output_ids"], run(&["--ngram", "--speculate", "3"])["output_ids"]);
    let inspect = json(&["inspect", dir, "--json"]);
    assert_eq!(
        (&inspect["config"]["architecture"], &inspect["config"]["positions"]),
        (&"gpt2".into(), &"learned".into())
    );
    let encoder = workspace("tests/fixtures/bert");
    let encoder = json(&["inspect", encoder.to_str().expect("UTF-8"), "--json"]);
    assert_eq!(encoder["config"]["input"]["kind"], "bert");
    assert!(encoder.get("kv_bytes_per_token").is_none());
}

#[test]
fn the_demo_verifies_against_its_expected_continuations() {
    let dir = workspace("models/demo/target");
    let expected = workspace("models/demo/expected_greedy.json");
    let args =
        ["verify", dir.to_str().expect("UTF-8"), "--expected", expected.to_str().expect("UTF-8"), "--json"];
    let report = json(&[&args[..], &["--device", "cpu"]].concat());
    for greedy in report["greedy"].as_array().expect("continuations") {
        assert_eq!((&greedy["equal_steps"], &greedy["decided_steps"]), (&Value::from(64), &Value::from(64)));
    }
    assert_eq!(json(&[&args[..], &["--device", "cpu-bf16"]].concat())["passed"], true);
}

#[test]
fn a_wrong_window_fails_verification() {
    let source = workspace("tests/fixtures/mistral-window16");
    let dir = tempfile::tempdir().expect("a temporary folder");
    for file in ["config.json", "model.safetensors", "expected.safetensors"] {
        std::fs::copy(source.join(file), dir.path().join(file)).expect("copied");
    }
    // A window one key narrower.
    let path = dir.path().join("config.json");
    let config = std::fs::read_to_string(&path).expect("read");
    std::fs::write(&path, config.replace("\"sliding_window\": 16", "\"sliding_window\": 15"))
        .expect("written");
    let output = tilewright(&["verify", dir.path().to_str().expect("UTF-8"), "--device", "cpu"]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("WRONG") && stdout.ends_with("FAILED\n"), "{stdout}");
}

#[test]
fn evaluation_and_inspection_report() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("text.rs");
    std::fs::write(&file, PROMPT.repeat(8)).expect("written");
    let file = file.to_str().expect("UTF-8");
    let eval = json(&["eval", file, "--ctx", "32", "--json", "--device", "cpu"]);
    // Each window of 32 is a BOS and 31 tokens that are predicted.
    assert_eq!(eval["windows"], eval["tokens"].as_u64().expect("a count").div_ceil(31));
    let (nll, perplexity) =
        (eval["nll"].as_f64().expect("nll"), eval["perplexity"].as_f64().expect("perplexity"));
    assert!(nll > 0.0 && nll < 3.0 && (nll.exp() - perplexity).abs() < 1e-9, "{nll} {perplexity}");

    let demo = workspace("models/demo/target");
    let inspect = json(&["inspect", demo.to_str().expect("UTF-8"), "--json"]);
    assert_eq!(inspect["config"]["architecture"], "llama");
    assert_eq!(inspect["kv_bytes_per_token"], 2 * 2 * 8 * 2 * 64);
    assert_eq!(inspect["tensors"].as_array().map(Vec::len), Some(2 + 8 * 9));
}

/// As a shell's `<(command)` gives it: once, and without a length.
#[cfg(unix)]
#[test]
fn texts_come_through_pipes() {
    let readme = workspace("models/demo/README.md");
    let path = readme.to_str().expect("UTF-8");
    let nll = |report: Value| report["nll"].as_f64().expect("nats");
    let args = |file| ["eval", file, "--ctx", "32", "--json", "--device", "cpu"];
    let text = std::fs::read_to_string(&readme).expect("read");
    assert_eq!(nll(json_of_pipe(&args("/dev/stdin"), &text)), nll(json(&args(path))));
    let bert = workspace("tests/fixtures/bert");
    let bert = ["embed", "-m", bert.to_str().expect("UTF-8"), "--ids", "--json", "--device", "cpu"];
    let through = json_of_pipe(&[&bert[..], &["--file", "/dev/stdin"]].concat(), "5,6,7\n9\n");
    assert_eq!(through["embeddings"], json(&[&bert[..], &["5,6,7", "9"]].concat())["embeddings"]);
    let bench = ["bench", "kv", "--quick", "--device", "cpu", "--json", "--peers", "/dev/stdin"];
    let ready = r#"{"kind": "ready", "versions": ["peer 1.0"]}"#;
    assert_eq!(json_of_pipe(&bench, ready)["peers"][0], "peer 1.0");
}

#[test]
fn caches_of_eight_bits_generate_and_evaluate() {
    let file = workspace("models/demo/target/config.json");
    let file = file.to_str().expect("UTF-8");
    let nll = |dtype: &str| {
        let args = ["eval", file, "--ctx", "64", "--device", "cpu", "--kv-dtype", dtype, "--json"];
        json(&args)["nll"].as_f64().expect("a number")
    };
    let exact = nll("auto");
    for dtype in ["int8", "fp8"] {
        let found = nll(dtype);
        assert!(found != exact && (found - exact).abs() < 0.1, "{dtype}: {found} against {exact}");
        let run = ["run", PROMPT, "-n", "8", "--device", "cpu", "--json", "--kv-dtype", dtype];
        let report = json(&run);
        // With drafts it is the engine that generates, over pages: keys are quantised one by one, so that the text is the same.
        let drafted = json(&[&run[..], &["--ngram", "--speculate", "3"]].concat());
        assert_eq!(report["output_ids"], drafted["output_ids"], "{dtype}");
        assert_eq!(report["output_ids"].as_array().map(Vec::len), Some(8), "{dtype}");
    }
}
