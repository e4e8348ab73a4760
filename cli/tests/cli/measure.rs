//! `ladder`, `bench` and the machine's `doctor`, as trials: whether they work, not how fast the machine is.

use serde_json::Value;

use crate::common::{assert_refused, json, tilewright, workspace};

#[test]
fn the_ladder_measures_every_claim_and_draws_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("ladder.html");
    let ladder =
        json(&["ladder", "--quick", "--device", "cpu", "--json", "--html", page.to_str().expect("UTF-8")]);
    let rungs = ladder["rungs"].as_array().expect("rungs");
    assert_eq!((rungs.len(), &ladder["quick"]), (11, &true.into()));
    let page = std::fs::read_to_string(page).expect("a page");
    for rung in rungs {
        assert!(rung["measured"].is_f64() && rung["seconds"].as_f64() > Some(0.0), "{rung}");
        assert!(page.contains(rung["name"].as_str().expect("a name")), "{rung}");
    }
    assert!(page.contains("<svg") && !page.contains("src=") && !page.contains("href="));
    // What it was measured on stands under a heading of one line.
    let (commit, date) = (ladder["commit"].as_str().expect("one"), ladder["date"].as_str().expect("one"));
    assert!(date.starts_with("20") && date.ends_with('Z') && ladder["driver"] == "none", "{date}");
    assert!(page.contains(&format!("; commit {commit}, {date}.")) && !page.contains("driver"), "{page}");
    assert!(page.contains("<h1>What each optimisation is worth on a CPU</h1>"), "{page}");
    assert!(page.contains("Model: the bundled demo model") && !page.contains("models/demo/target"), "{page}");
}

#[test]
fn the_bench_checks_times_and_judges() {
    let folder = tempfile::tempdir().expect("a folder");
    let (page, peers) = (folder.path().join("bench.html"), folder.path().join("peers.jsonl"));
    let peer = r#"{"kind":"time","cell":"decode/demo/1x100","by":"a peer","mode":"events","sets":1,"cold":false,"times_us":[5.0,6.0]}"#;
    std::fs::write(&peers, format!("{{\"kind\":\"ready\",\"versions\":[\"peer 1.0\"]}}\n{peer}\n"))
        .expect("written");
    let report = json(&[
        "bench",
        "all",
        "--quick",
        "--device",
        "cpu",
        "--json",
        "--html",
        page.to_str().expect("UTF-8"),
        "--peers",
        peers.to_str().expect("UTF-8"),
    ]);
    let results = report["results"].as_array().expect("results");
    // Attention, decode, append, four products in three formats; and the peer's.
    assert_eq!((results.len(), report["failures"].as_array().map(Vec::len)), (3 + 12 + 1, Some(0)));
    // Of products of bytes arithmetic has no ceiling that is measured.
    let by_bytes = |row: &Value| row["cell"].as_str().is_some_and(|cell| cell.contains("/int8/"));
    let ahead = |row: &Value| row["fraction"].as_f64() > Some(0.0);
    assert!(results.iter().all(|row| ahead(row) || by_bytes(row)), "{results:?}");
    assert_eq!(results.iter().filter(|row| row["by"] == "a peer").count(), 1);
    // On a busy machine rows are no results, and each says so.
    let spread = |row: &Value| {
        let time = |what: &str| row["time"][what].as_f64().expect("microseconds");
        (time("p90_us") - time("p10_us")) / time("median_us")
    };
    assert!(results.iter().all(|row| row["disturbed"].as_bool() == Some(spread(row) > 0.5)), "{results:?}");
    let ends = report["end_to_end"].as_array().expect("whole models");
    assert_eq!(ends.len(), 3);
    for end in ends {
        let spread = end["spread"].as_f64().expect("a part");
        assert!(end["runs"] == 3 && end["disturbed"].as_bool() == Some(spread > 0.5), "{end}");
    }
    assert!(report["machine"].get("l2_bytes").is_none(), "{}", report["machine"]);
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains("Roofline") && page.contains("Whole models") && page.contains("peer 1.0"));
    let output = tilewright(&["bench", "kv", "--quick", "--device", "cpu", "--preset", "qwen3-0.6b"]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let row = text.lines().find(|line| line.starts_with("rope_append/qwen3-0.6b/64 ")).expect("a row");
    assert!(row.contains(" memory ") || row.contains(" compute "), "{row}");
    // A CPU has no events, and its rates are no thousandths of a unit.
    assert!(row.ends_with(" clock warm") && text.contains(" GB/s") && !text.contains("TB/s"), "{text}");
}

#[test]
#[cfg(target_os = "linux")]
fn what_was_measured_is_told_where_the_page_cannot_be_written() {
    for command in [&["bench", "kv"][..], &["ladder"]] {
        let output = tilewright(&[command, &["--quick", "--device", "cpu", "--html", "/dev/full"]].concat());
        let [told, why] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("UTF-8"));
        assert!(told.lines().count() > 4 && why.contains("error: /dev/full: "), "{command:?}: {told} {why}");
        assert!(!output.status.success());
    }
}

#[test]
fn the_machine_is_examined() {
    let report = json(&["doctor", "--device", "cpu", "--json"]);
    assert_eq!(report["passed"], true);
    let checks = report["checks"].as_array().expect("checks");
    let verdict =
        |what: &str| checks.iter().find(|check| check["what"] == what).map(|check| check["verdict"].clone());
    for what in ["CPU", "demo models", "CPU: attention", "CPU: linear", "CPU: sample"] {
        assert_eq!(verdict(what), Some("ok".into()), "{what}");
    }
    // A GPU that was asked for and isn't there is a fault.
    let output = tilewright(&["doctor", "--device", "cuda:4000"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("FAILED"));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    assert_refused(
        &["bench", "gemm", "--rows", "0", "--device", "cpu"],
        &["--rows: expected 1 to 4194304, found 0"],
    );
    assert_refused(&["bench", "kv", "--seq", "99999999999"], &["--seq: expected 1 to"]);
    assert_refused(&["bench", "kv", "--preset", "gpt-9", "--device", "cpu"], &["--preset: expected one of"]);
    assert_refused(&["bench", "everything"], &["everything"]);
    assert_refused(&["bench", "kv", "--quick", "--device", "cpu", "--peers", "no/such"], &["no/such"]);
    assert_refused(&["bench", "kv", "--iters", "0"], &["--iters"]);
    assert_refused(&["ladder", "-m", "no/such", "--device", "cpu", "--quick"], &["no/such"]);
    // Before anything is measured, which would have been told on a line of its own.
    let fixture = |name: &str| workspace("tests/fixtures").join(name).to_str().expect("UTF-8").to_string();
    let ladder = |name: &str, part: &str| {
        assert_refused(&["ladder", "-m", &fixture(name), "--device", "cpu"], &[name, part])
    };
    ladder(
        "llama-gptq-g128",
        "quantization_config: expected a checkpoint that isn't quantised, found one that is",
    );
    ladder("gpt2", "model_type: expected a checkpoint of the Llama family");
    ladder("qwen2-bias", "weights of four bits in groups of 128: expected a divisor of 320");
}
