//! The server as a process: told to end, and refused.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json as value};
use tempfile::TempDir;

use crate::common::{assert_refused, bert_of_words, json, workspace};

/// A server on a free port, of the demo model unless arguments say otherwise, and its address.
pub fn start(args: &[&str]) -> (Child, BufReader<std::process::ChildStderr>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tilewright"))
        .args(["serve", "--device", "cpu", "--port", "0", "--log", "error"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    stderr.read_line(&mut line).expect("a line");
    let address = line.trim().strip_suffix("/v1").and_then(|line| line.split("http://").nth(1));
    let address = address.unwrap_or_else(|| panic!("no address in {line}")).to_string();
    (child, stderr, address)
}

/// More than run at a time, so that some wait in the queue when the server is told to end.
const UNDER_WAY: usize = 12;

#[test]
fn a_server_told_to_end_finishes_what_is_under_way() {
    let (mut child, mut stderr, address) = start(&["--max-running", "8", "--drain-timeout", "300"]);
    let body = r#"{"prompt": "fn main() {", "max_tokens": 40, "ignore_eos": true, "temperature": 0, "stream": true}"#;
    let length = body.len();
    let ask = |_| {
        let mut connection = TcpStream::connect(&address).expect("a connection");
        write!(
            connection,
            "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .expect("sent");
        connection
    };
    let mut connections: Vec<TcpStream> = (0..UNDER_WAY).map(ask).collect();
    // The head of each response: what is told to end has taken them all.
    for connection in &mut connections {
        connection.read_exact(&mut [0; 12]).expect("the beginning");
    }
    let told = Command::new("kill").arg(child.id().to_string()).status().expect("kill");
    assert!(told.success());
    for connection in &mut connections {
        let mut rest = String::new();
        connection.read_to_string(&mut rest).expect("the rest");
        assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "{rest}");
    }
    assert!(child.wait().expect("an end").success());
    let mut said = String::new();
    stderr.read_to_string(&mut said).expect("text");
    assert_eq!(said.lines().count(), 1, "{said}");
    let tokens = UNDER_WAY * 40;
    assert!(
        said.starts_with(&format!("ended: {tokens} tokens in ")) && said.contains(" 0 pages held"),
        "{said}"
    );
}

#[test]
fn an_encoder_is_served_as_embeddings() {
    let bert = bert_of_words();
    let path = bert.path().to_str().expect("UTF-8");
    let (mut child, _stderr, address) = start(&["-m", path, "--name", "bert"]);
    let ask = |input: &str| {
        let body = format!(r#"{{"model": "bert", "input": {input}}}"#);
        let mut connection = TcpStream::connect(&address).expect("a connection");
        let length = body.len();
        write!(
            connection,
            "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .expect("sent");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).map(str::to_string).expect("a status");
        (status, serde_json::from_str::<Value>(body).expect("JSON"))
    };
    let texts = ask(r#"["The kernels run", "zebra", [2, 8, 3]]"#);
    let ids = ask("[[2, 4, 5, 6, 7, 3], [2, 1, 3], [2, 8, 3]]");
    let empty = ask(r#"[""]"#);
    let long = ask(&format!("[{:?}]", "run ".repeat(200)));
    let pieces = ask(&format!("[{:?}]", "runs ".repeat(100)));
    let ended = Command::new("kill").arg(child.id().to_string()).status().expect("kill");
    assert!(ended.success() && child.wait().expect("an end").success());
    assert_eq!((&texts.0[..], &texts.1["usage"]["prompt_tokens"]), ("200", &12.into()), "{}", texts.1);
    assert_eq!(texts.1["data"], ids.1["data"]);
    // What `embed` says of the same texts.
    let said = json(&["embed", "-m", path, "--json", "--device", "cpu", "The kernels run", "zebra"]);
    let numbers = |row: &Value| -> Vec<f32> {
        let vector = row["embedding"].as_array().expect("a vector");
        vector.iter().map(|number| number.as_f64().expect("a number") as f32).collect()
    };
    for (index, row) in said["embeddings"].as_array().expect("rows").iter().enumerate() {
        assert_eq!(numbers(row), numbers(&texts.1["data"][index]));
    }
    assert_eq!(empty.0, "400", "{}", empty.1);
    let error = &long.1["error"];
    assert_eq!((&long.0[..], &error["param"]), ("400", &"input".into()), "{error}");
    // By its words, before it is made into tokens.
    assert_eq!(error["message"], "input: expected fewer than 129 tokens, found at least 200");
    // Words of several tokens, which only that tells.
    let error = &pieces.1["error"];
    assert_eq!((&pieces.0[..], &error["param"]), ("400", &"input".into()), "{error}");
    assert_eq!(error["message"], "input: expected 1 to 128 tokens (the model's context), found 202");
}

/// Makes a text into tokens in the square of its length: each letter looks at all behind it.
fn slow_tokenizer() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let demo = workspace("models/demo/draft");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(demo.join(file), dir.path().join(file)).expect("copied");
    }
    let file = std::fs::read(demo.join("tokenizer.json")).expect("read");
    let mut file: Value = serde_json::from_slice(&file).expect("JSON");
    let looks = value!({ "type": "Split", "pattern": { "Regex": "a(?=a*)" }, "behavior": "Isolated", "invert": false });
    // Under it no text is refused by its length, as it may take characters away.
    file["normalizer"] = value!({ "type": "Lowercase" });
    file["pre_tokenizer"] = value!({ "type": "Sequence", "pretokenizers": [looks, file["pre_tokenizer"]] });
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).expect("written");
    dir
}

#[test]
fn the_time_to_finish_holds_for_texts_that_become_tokens() {
    let slow = slow_tokenizer();
    let path = slow.path().to_str().expect("UTF-8");
    let (mut child, _stderr, address) = start(&["-m", path, "--drain-timeout", "1"]);
    let body = format!(r#"{{"prompt": "{}"}}"#, "a".repeat(400_000));
    let mut connection = TcpStream::connect(&address).expect("a connection");
    let length = body.len();
    write!(
        connection,
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .expect("sent");
    // It is under way by then.
    std::thread::sleep(Duration::from_secs(1));
    let told = Instant::now();
    assert!(Command::new("kill").arg(child.id().to_string()).status().expect("kill").success());
    assert!(child.wait().expect("an end").success());
    let took = told.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&took), "{took:?}");
}

#[test]
fn a_server_that_cannot_be_is_refused() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    assert_refused(&["serve", "--device", "cpu", "--port", &port], &["127.0.0.1:", "in use"]);
    assert_refused(&["serve", "--device", "cpu", "--api-key", ""], &["--api-key: expected "]);
    for flag in ["--request-timeout", "--head-timeout", "--drain-timeout"] {
        let expected = format!("{flag}: expected at most 31622400 seconds, found 18446744073709551615");
        assert_refused(&["serve", "--device", "cpu", flag, "18446744073709551615"], &[&expected]);
    }
    for flag in ["--request-timeout", "--head-timeout"] {
        let expected = format!("{flag}: expected some time, found none");
        assert_refused(&["serve", "--device", "cpu", flag, "0"], &[&expected]);
    }
    assert_refused(
        &["serve", "--device", "cpu", "--max-choices", "9223372036854775808"],
        &["--max-choices: expected at most 256, found 9223372036854775808"],
    );
    assert_refused(
        &["serve", "--device", "cpu", "--max-running", "0"],
        &["--max-running: expected at least 1"],
    );
    assert_refused(
        &["serve", "--device", "cpu", "--max-running", "1000000000"],
        &["--max-running: expected --cache-tokens beside it, or at most 8388607, found 1000000000"],
    );
    assert_refused(&["serve", "--device", "cpu", "--log", "server=loud"], &["--log: expected "]);
    assert_refused(
        &["serve", "--device", "cpu", "--max-connections", "0"],
        &["--max-connections: expected at least 1"],
    );
    assert_refused(&["serve", "--port", "70000"], &["70000"]);
    assert_refused(&["serve", "--speculate", "3"], &["--draft"]);
    // A tokenizer that its reader would panic on.
    let dir = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(workspace("models/demo/draft").join(file), dir.path().join(file)).expect("copied");
    }
    let tokenizer = r#"{"version": "1.0", "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#;
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer).expect("written");
    let dir = dir.path().to_str().expect("UTF-8");
    assert_refused(
        &["serve", "--device", "cpu", "-m", dir],
        &["tokenizer.json: contents: expected a tokenizer"],
    );
}

#[test]
fn a_slip_in_a_flag_is_told_before_weights_are_loaded() {
    // There are none.
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::copy(workspace("models/demo/draft/config.json"), dir.path().join("config.json"))
        .expect("copied");
    let dir = dir.path().to_str().expect("UTF-8");
    assert_refused(&["serve", "--device", "cpu", "-m", dir], &["expected model.safetensors"]);
    for (flags, expected) in [
        (&["--request-timeout", "0"][..], "--request-timeout: expected some time, found none"),
        (&["--max-choices", "257"], "--max-choices: expected at most 256, found 257"),
        (&["--max-body-bytes", "0"], "--max-body-bytes: expected at least 1, found 0"),
        (&["--max-running", "0"], "--max-running: expected at least 1, found 0"),
        (&["--max-running", "1000000000"], "--max-running: expected --cache-tokens beside it, or at most"),
        (&["--cache-tokens", "1"], "--cache-tokens: expected at least a page, found 1"),
        (&["--cache-tokens", "4294967296"], "--cache-tokens: expected below 2^32, found 4294967296"),
        (&["--ngram", "--speculate", "16"], "--speculate: expected 1 to 15, found 16"),
        (&["--draft", "no/such"], "--draft: no/such: No such file"),
    ] {
        assert_refused(&[&["serve", "--device", "cpu", "-m", dir], flags].concat(), &[expected]);
    }
    let run = ["run", "fn", "--device", "cpu", "-m", dir, "--ngram", "--speculate", "16"];
    assert_refused(&run, &["--speculate: expected 1 to 15, found 16"]);
}
