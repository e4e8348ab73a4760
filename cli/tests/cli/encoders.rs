//! Encoders: verified, inspected, and asked for vectors.

use crate::common::{assert_refused, bert_of_words, json, workspace};
use serde_json::Value;

fn fixture(name: &str) -> String {
    workspace("tests/fixtures").join(name).to_str().expect("UTF-8").to_string()
}

#[test]
fn encoders_verify_in_f32_and_in_bf16() {
    for name in ["bert", "vit"] {
        let dir = fixture(name);
        let report = json(&["verify", &dir, "--device", "cpu", "--json"]);
        let tensor = &report["tensors"][0];
        let worst = tensor["worst_error"].as_f64().expect("an error");
        let largest = tensor["largest"].as_f64().expect("a magnitude");
        println!("{name}: worst error {worst:.3e} of {largest:.3e}");
        assert!(report["passed"] == true && worst < 1e-4 * largest, "{tensor}");
        assert_eq!(json(&["verify", &dir, "--device", "cpu-bf16", "--json"])["passed"], true);
    }
}

/// What `embed` says of texts of token ids: each one's tokens and vector.
fn embed(flags: &[&str]) -> Vec<(u64, Vec<f64>)> {
    let dir = fixture("bert");
    let report = json(&[&["embed", "-m", &dir, "--ids", "--json", "--device", "cpu"], flags].concat());
    assert_eq!(report["dims"], 128);
    let found = report["embeddings"].as_array().expect("embeddings");
    let numbers = |row: &Value| -> Vec<f64> {
        let vector = row["embedding"].as_array().expect("a vector");
        vector.iter().map(|value| value.as_f64().expect("a number")).collect()
    };
    found.iter().map(|row| (row["tokens"].as_u64().expect("a count"), numbers(row))).collect()
}

#[test]
fn a_text_has_one_vector_whatever_is_beside_it() {
    let together = embed(&["5,6,7", "9", "5 6 7"]);
    assert_eq!(together.iter().map(|found| found.0).collect::<Vec<_>>(), [3, 1, 3]);
    assert!(together[0] == together[2] && together[0].1 != together[1].1);
    assert_eq!(embed(&["5,6,7"])[0], together[0]);
    let length = |vector: &[f64]| vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!((length(&together[0].1) - 1.0).abs() < 1e-5);
    let raw = &embed(&["5,6,7", "--no-normalize"])[0].1;
    assert!((length(raw) - 1.0).abs() > 0.1);
    for (value, scaled) in raw.iter().zip(&together[0].1) {
        assert!((value / length(raw) - scaled).abs() < 1e-6, "{value} {scaled}");
    }
}

#[test]
fn poolings_differ_and_lines_of_a_file_are_texts() {
    let vector = |pooling: &str| embed(&["5,6,7", "--pooling", pooling]).remove(0).1;
    assert!(vector("mean") != vector("cls") && vector("cls") != vector("pooler"));
    assert_eq!(vector("mean"), embed(&["5,6,7"])[0].1);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("texts");
    std::fs::write(&path, "5,6,7\n9\n").expect("written");
    assert_eq!(embed(&["--file", path.to_str().expect("UTF-8")]), embed(&["5,6,7", "9"]));
}

#[test]
fn doctor_accounts_for_every_tensor() {
    for name in ["bert", "vit", "gpt2"] {
        let report = json(&["doctor", &fixture(name), "--device", "cpu", "--json"]);
        assert!(report["passed"] == true && report["tensors"].as_u64() > Some(20), "{name}: {report}");
    }
}

#[test]
fn words_become_the_tokens_of_the_tokenizer() {
    let dir = bert_of_words();
    let path = dir.path().to_str().expect("UTF-8");
    let embed = |texts: &[&str]| json(&[&["embed", "-m", path, "--json", "--device", "cpu"], texts].concat());
    // One whole word, one of two pieces, a word of letters, one that isn't known.
    let found = embed(&["The kernels, RUN fast", "zebra"]);
    let tokens = found["embeddings"].as_array().expect("rows").iter().map(|row| &row["tokens"]);
    assert_eq!(tokens.collect::<Vec<_>>(), [8, 3]);
    let ids = ["2,4,5,6,16,7,8,3", "2,1,3"];
    assert_eq!(found["embeddings"], embed(&[&["--ids"], &ids[..]].concat())["embeddings"]);
    assert_refused(&["embed", "-m", path, "--device", "cpu", ""], &["text: expected at least one character"]);
}

#[test]
fn what_does_not_fit_an_encoder_is_one_line() {
    let (bert, vit) = (fixture("bert"), fixture("vit"));
    let long = vec!["5"; 129].join(",");
    assert_refused(&["embed", "--device", "cpu", "-m", &bert, "--ids", &long], &["1 to 128 tokens", "129"]);
    assert_refused(
        &["embed", "--device", "cpu", "-m", &bert, "--ids", "192"],
        &["below the vocabulary of 192"],
    );
    assert_refused(&["embed", "--device", "cpu", "-m", &bert, "--ids", ""], &["1 to 128 tokens", "0"]);
    assert_refused(&["embed", "--device", "cpu", "-m", &bert, "--ids", "x"], &["expected token ids"]);
    assert_refused(
        &["embed", "--device", "cpu", "-m", &bert, "words"],
        &["tokenizer.json, or texts as token ids"],
    );
    assert_refused(&["embed", "--device", "cpu", "-m", &bert], &["required"]);
    assert_refused(
        &["embed", "--device", "cpu", "-m", &bert, "--ids", "5", "--pooling", "max"],
        &["mean, cls or pooler"],
    );
    assert_refused(&["embed", "--device", "cpu", "-m", &vit, "--ids", "5"], &["an encoder of texts"]);
    assert_refused(
        &["embed", "--device", "cpu", "-m", &fixture("gpt2"), "--ids", "5"],
        &["\"bert\" or \"vit\" of an encoder"],
    );
    assert_refused(&["run", "5", "--ids", "-m", &bert], &["of a decoder", "\"bert\""]);
    assert_eq!(embed(&["--truncate", &long])[0].0, 128);
}
