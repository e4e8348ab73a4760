//! `plan` from the outside.

use crate::common::{assert_refused, json, tilewright, workspace};

#[test]
fn the_cache_of_llama_2_70b_is_671_megabytes() {
    let output = tilewright(&["plan", "--preset", "llama-2-70b", "--context", "2048", "--kv", "fp16"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let line = text.lines().find(|line| line.contains("2048 tokens")).expect("a line of the sequence");
    assert!(line.contains("671 MB (640 MiB)"), "{line}");
    let plan = json(&["plan", "--preset", "llama-2-70b", "--context", "2048", "--json"]);
    assert_eq!(plan["cache"]["sequence_bytes"], 671_088_640);
    assert_eq!(
        (&plan["model"], &plan["device"]["name"]),
        (&"llama-2-70b".into(), &"NVIDIA H100 SXM 80 GB".into())
    );
}

#[test]
fn a_configuration_is_planned_without_weights() {
    let dir = workspace("models/demo/target");
    let (file, dir) = (dir.join("config.json"), dir.to_str().expect("UTF-8").to_string());
    let here = ["--device", "cpu", "--memory-gb", "8", "--bandwidth", "20", "--flops", "0.1", "--json"];
    let of = |args: &[&str]| json(&[&["plan"], args, &here].concat());
    let plan = of(&["--config", file.to_str().expect("UTF-8"), "--context", "100", "--batch", "3"]);
    // 2 * 8 layers * 2 heads * 64 elements * 4 bytes, in seven pages of 16.
    assert_eq!(plan["cache"]["batch_bytes"], 3 * 7 * 16 * 8192);
    assert_eq!(plan["device"]["source"], "given");
    assert_eq!(of(&["-m", &dir])["parameters"], of(&[])["parameters"]);
}

#[test]
fn presets_are_listed_and_each_is_planned() {
    let output = tilewright(&["plan", "--list"]);
    let names = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(names.lines().count(), 14);
    for name in names.lines() {
        for goal in ["latency", "throughput", "memory"] {
            let output = tilewright(&["plan", "--preset", name, "--device", "h200", "--for", goal]);
            let text = String::from_utf8(output.stdout).expect("UTF-8");
            assert!(output.status.success() && text.contains(&format!("\nfor {goal}: ")), "{text}");
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
    }
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let refused = |args: &[&str], part: &str| assert_refused(&[&["plan"], args].concat(), &[part]);
    refused(&["--preset", "gpt-9"], "--preset: expected one of llama-2-7b, ");
    refused(&["--preset", "llama-2-7b", "--context", "8192"], "--context: expected 1 to 4096, found 8192");
    refused(&["--preset", "llama-2-7b", "--batch", "0"], "--batch: expected 1 to 1048576, found 0");
    refused(
        &["--preset", "llama-2-7b", "--device", "tpu"],
        "--device: expected h100, h200, a100, l40s, rtx4090 or cpu",
    );
    refused(
        &["--preset", "llama-2-7b", "--weights", "int3"],
        "weights: expected f32, bf16 (or fp16), int8 or int4",
    );
    refused(
        &["--preset", "llama-2-7b", "--memory-gb", "nan"],
        "--memory-gb: expected a number above 0, found NaN",
    );
    refused(
        &["--preset", "llama-2-7b", "--bandwidth", "0"],
        "--bandwidth: expected a number above 0, found 0",
    );
    refused(&["--flops", "-1"], "--flops: expected a number above 0, found -1");
    refused(&["--memory-gb", "1e-10"], "--memory-gb: expected bytes above 0, found 0");
    refused(&["--config", "no/such/file.json"], "no/such/file.json");
    refused(&["--preset", "llama-2-7b", "--config", "x"], "cannot be used with");
}
