//! Checkpoints quantised and examined through the command.

use crate::common::{assert_refused, json, tilewright, workspace};
use serde_json::json;

#[test]
fn a_quantised_demo_generates_and_is_healthy() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let out = out.path().to_str().expect("UTF-8");
    let report = json(&["quantize", "-o", out, "--method", "rtn", "--json"]);
    assert_eq!((&report["method"], &report["layers"]), (&json!("rtn"), &json!(8)));
    assert!(report["bytes_after"].as_u64() < report["bytes_before"].as_u64());
    for device in ["cpu", "cpu-bf16"] {
        let health = json(&["doctor", out, "--device", device, "--json"]);
        assert_eq!((&health["passed"], &health["quantization"]["bits"]), (&json!(true), &json!(4)));
        assert_eq!(health["checks"].as_array().map(Vec::len), Some(7));
    }
    let text = json(&["run", "fn main() {", "-m", out, "-n", "8", "--json", "--device", "cpu"]);
    assert_eq!(text["output_ids"].as_array().map(Vec::len), Some(8));
    // Another method's files are not taken for this one's.
    assert_refused(
        &["quantize", "-o", out, "--method", "int8"],
        &[
            "model-00001-of-00009.safetensors: origin: expected a file of this run (Int8 bits=8",
            "found Rtn bits=4",
        ],
    );
    let config = std::path::Path::new(out).join("config.json");
    let text = std::fs::read_to_string(&config).expect("read");
    std::fs::write(&config, text.replace("\"group_size\": 128", "\"group_size\": 64")).expect("written");
    let output = tilewright(&["doctor", out, "--device", "cpu"]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("q_proj.qzeros: expected shape [6, 48], found [3, 48]"), "{stdout}");
    assert!(stdout.ends_with("FAULTY\n"), "{stdout}");
}

#[test]
fn fixtures_are_healthy() {
    for name in ["llama-gptq-g128", "llama-gptq-actorder-g64", "qwen2-bias"] {
        let dir = workspace(&format!("tests/fixtures/{name}"));
        assert_eq!(
            json(&["doctor", dir.to_str().expect("UTF-8"), "--device", "cpu", "--json"])["passed"],
            true
        );
    }
}

#[test]
fn what_cannot_be_quantised_is_refused() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let out = out.path().to_str().expect("UTF-8");
    let draft = workspace("models/demo/draft");
    let draft = draft.to_str().expect("UTF-8");
    let refused = |flags: &[&str], parts: &[&str]| {
        assert_refused(&[&["quantize", "-m", draft, "-o", out, "--device", "cpu"], flags].concat(), parts);
    };
    refused(&["--group", "64"], &["--calib: expected a text file to calibrate on (method gptq), found none"]);
    refused(
        &[],
        &["--group: expected a divisor of 192, the inputs of model.layers.0.self_attn.q_proj, found 128"],
    );
    refused(&["--group", "-2"], &["--group: expected -1 or a number from 1, found -2"]);
    refused(&["--group", "0"], &["--group: expected -1 or a number from 1, found 0"]);
    refused(&["--method", "awq"], &["gptq, rtn or int8"]);
    refused(&["--bits", "3"], &["--bits: expected 4 or 8, found 3"]);
    refused(&["--group", "64", "--calib", "/no/such/file"], &["/no/such/file", "No such file"]);
    assert_refused(&["doctor", "/no/such/folder"], &["/no/such/folder", "No such file"]);
}
