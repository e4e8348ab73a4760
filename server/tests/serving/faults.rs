//! Requests that can't be served are told why, and harm nobody.

use std::time::Duration;

use serde_json::{Value, json};
use tilewright::engine::EngineConfig;
use tilewright::{DeviceChoice, Engine, Model};
use tilewright_server::{Limits, Server, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{PROMPT, Running, demo_dir, expected_greedy};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// Fields of a completion, each with the field that its refusal names.
fn bad_fields() -> Vec<(Value, &'static str)> {
    vec![
        (json!({ "n": 1_000_000_000 }), "n"),
        (json!({ "n": 0 }), "n"),
        (json!({ "n": "2" }), "n"),
        (json!({ "stop": vec!["x"; 100_000] }), "stop"),
        (json!({ "stop": "" }), "stop"),
        (json!({ "stop": [1] }), "stop"),
        (json!({ "stop": "x".repeat(300) }), "stop"),
        (json!({ "temperature": -0.1 }), "temperature"),
        (json!({ "temperature": 1e300 }), "temperature"),
        (json!({ "temperature": "NaN" }), "temperature"),
        (json!({ "top_p": 1.5 }), "top_p"),
        (json!({ "top_p": -0.1 }), "top_p"),
        (json!({ "top_k": -1 }), "top_k"),
        (json!({ "min_p": 2 }), "min_p"),
        (json!({ "presence_penalty": 3 }), "presence_penalty"),
        (json!({ "frequency_penalty": [] }), "frequency_penalty"),
        (json!({ "repetition_penalty": 0 }), "repetition_penalty"),
        (json!({ "seed": 1.5 }), "seed"),
        (json!({ "seed": 18_446_744_073_709_551_615_u64 }), "seed"),
        (json!({ "max_tokens": -1 }), "max_tokens"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "max_tokens": 2048 }), "max_tokens"),
        (json!({ "max_tokens": 9_223_372_036_854_775_807_i64 }), "max_tokens"),
        (json!({ "logprobs": 21 }), "logprobs"),
        (json!({ "logprobs": true }), "logprobs"),
        (json!({ "logit_bias": { "-1": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "4096": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "99999999999": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "1": 101 } }), "logit_bias"),
        (json!({ "logit_bias": [] }), "logit_bias"),
        (json!({ "stream": 1 }), "stream"),
        (json!({ "stream": true, "stream_options": { "include_usage": 1 } }), "stream_options.include_usage"),
        (json!({ "best_of": 2 }), "best_of"),
        (json!({ "suffix": "}" }), "suffix"),
        (json!({ "response_format": { "type": "json_object" } }), "response_format"),
        (json!({ "temprature": 1 }), "temprature"),
        (json!({ "prompt": null }), "prompt"),
        (json!({ "prompt": [] }), "prompt"),
        (json!({ "prompt": [[]] }), "prompt"),
        (json!({ "prompt": [-1] }), "prompt"),
        (json!({ "prompt": [4096] }), "prompt"),
        (json!({ "prompt": [99_999_999_999_u64] }), "prompt"),
        (json!({ "prompt": [1.5] }), "prompt"),
        (json!({ "prompt": ["a", 1] }), "prompt"),
        (json!({ "prompt": { "a": 1 } }), "prompt"),
        (json!({ "prompt": vec![1; 2048] }), "prompt"),
        (json!({ "prompt": vec!["a"; 129] }), "prompt"),
        (json!({ "model": 5 }), "model"),
    ]
}

fn bad_chats() -> Vec<(Value, &'static str)> {
    let user = json!([{ "role": "user", "content": "a" }]);
    let with = |name: &str, value: Value| {
        let mut body = json!({ "messages": user });
        body[name] = value;
        body
    };
    vec![
        (json!({}), "messages"),
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": "a" }), "messages"),
        (json!({ "messages": ["a"] }), "messages[0]"),
        (json!({ "messages": [{ "role": "wizard", "content": "a" }] }), "messages[0].role"),
        (
            json!({ "messages": [{ "role": "tool", "content": "a", "tool_call_id": "x" }] }),
            "messages[0].role",
        ),
        (json!({ "messages": [{ "role": "user" }] }), "messages[0].content"),
        (json!({ "messages": [{ "role": "user", "content": [] }] }), "messages[0].content"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }] }),
            "messages[0].content",
        ),
        (json!({ "messages": vec![json!({ "role": "user", "content": "" }); 4097] }), "messages"),
        (json!({ "messages": [{ "role": "user", "content": "fn ".repeat(4000) }] }), "messages"),
        (with("max_completion_tokens", json!(2048)), "max_completion_tokens"),
        (with("max_tokens", json!(0)), "max_tokens"),
        (with("tools", json!([{ "type": "function" }])), "tools"),
        (with("tool_choice", json!("required")), "tool_choice"),
        (with("response_format", json!({ "type": "json_schema", "json_schema": {} })), "response_format"),
        (with("audio", json!({ "voice": "x" })), "audio"),
        (with("modalities", json!(["audio"])), "modalities"),
        (with("logprobs", json!(5)), "logprobs"),
        (with("top_logprobs", json!(2)), "top_logprobs"),
        (with("chat_template", json!("{{ 1 }}")), "chat_template"),
        (with("store", json!(true)), "store"),
        (with("echo", json!(true)), "echo"),
    ]
}

#[tokio::test]
async fn each_bad_field_is_named() {
    let server = Running::start(Limits::default()).await;
    for (fields, param) in bad_fields() {
        let mut body = json!({ "prompt": PROMPT });
        body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let refusal = server.post(TEXT, &body).await;
        assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some(param)), "{fields}");
        let message = refusal.json()["error"]["message"].as_str().expect("a message").to_string();
        assert!(message.len() < 300 && !message.contains('\n'), "{message}");
    }
    for (body, param) in bad_chats() {
        let refusal = server.post(CHAT, &body).await;
        assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some(param)), "{param}");
    }
    let refusal = server.post(TEXT, &json!({ "prompt": "a", "seed": u64::MAX })).await;
    let said = "seed: expected an integer from -9223372036854775808 to 9223372036854775807, found 18446744073709551615";
    assert_eq!(refusal.json()["error"]["message"], said);
    let refusal = server.post(TEXT, &json!({ "model": "other", "prompt": "a" })).await;
    assert_eq!((refusal.status, refusal.param().as_deref()), (404, Some("model")));
    assert_eq!(server.greedy(8).await, expected_greedy(8));
    server.finish().await;
}

#[tokio::test]
async fn bodies_that_are_no_requests_are_refused() {
    let server = Running::start(Limits { body_bytes: 100_000, ..Limits::default() }).await;
    let deep = format!("{{\"prompt\": {}", "[".repeat(90_000));
    let long = format!("{{\"prompt\": \"{}\"}}", "a".repeat(300_000));
    let cases: [(&[u8], u16, Option<&str>); 10] = [
        (b"", 400, None),
        (b"{", 400, None),
        (b"[]", 400, None),
        (b"null", 400, None),
        (b"{\"prompt\": \"\xff\xfe\"}", 400, None),
        (b"{\"prompt\": \"\\ud800\"}", 400, Some("prompt")),
        (b"{\"prompt\": \"a\", \"temperature\": NaN}", 400, Some("temperature")),
        (b"{\"prompt\": \"a\", \"temperature\": 1e999}", 400, Some("temperature")),
        (deep.as_bytes(), 400, Some("prompt")),
        (long.as_bytes(), 413, None),
    ];
    for (body, status, param) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let refusal = server.post_bytes(TEXT, body).await;
        assert_eq!((refusal.status, refusal.param().as_deref()), (status, param), "{shown}");
    }
    let refusal = server.send(&server.request("POST", TEXT, "text/plain", b"{}")).await;
    assert_eq!(refusal.status, 415);
    let head = format!("POST {TEXT} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n");
    for (kind, found) in
        [("", "none"), ("Content-Type:\r\n", "\"\""), ("Content-Type: a/b; c\r\n", "\"a/b\"")]
    {
        let refusal = server.send(format!("{head}{kind}\r\n{{}}").as_bytes()).await;
        let expected = format!("Content-Type: expected application/json, found {found}");
        assert_eq!((refusal.status, &refusal.json()["error"]["message"]), (415, &expected.into()));
    }
    for (method, path, status) in [
        ("GET", "/", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/completions/", 404),
        ("GET", TEXT, 405),
        ("DELETE", "/v1/models", 405),
        ("PUT", "/health", 405),
    ] {
        let refusal = server.send(&server.request(method, path, "application/json", b"{}")).await;
        assert_eq!((refusal.status, refusal.param()), (status, None), "{method} {path}");
    }
    let head = |extra: &str| format!("GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{extra}\r\n");
    assert_eq!(server.send(head("").as_bytes()).await.status, 200);
    assert_eq!(server.send(head(&format!("A: {}\r\n", "a".repeat(40_000))).as_bytes()).await.status, 431);
    assert_eq!(server.send(head(&"A: a\r\n".repeat(100)).as_bytes()).await.status, 431);
    assert_eq!(server.send(b"nonsense\r\n\r\n").await.status, 400);
    assert_eq!(server.greedy(8).await, expected_greedy(8));
    server.finish().await;
}

#[tokio::test]
async fn a_body_that_is_told_to_be_too_long_is_refused_at_once() {
    let server = Running::start(Limits::default()).await;
    for length in [(4 << 20) + 1, 100_000_000_000_000_u64] {
        let head = format!(
            "POST {TEXT} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        let mut stream = server.connect().await;
        stream.write_all(head.as_bytes()).await.expect("sent");
        // The time for a body is 30 seconds.
        let answer = tokio::time::timeout(Duration::from_secs(10), read_until(&mut stream, "found ")).await;
        assert!(answer.expect("an answer at once").starts_with("HTTP/1.1 413"), "{length}");
        // The client goes on all the same, and nothing is reset before it has read the whole of it.
        stream.write_all(&vec![b'a'; 1 << 20]).await.expect("sent");
        let rest = read_until(&mut stream, "}}").await;
        assert!(rest.starts_with(&length.to_string()), "{rest}");
    }
    server.finish().await;
}

/// What comes until a text has come, byte for byte.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = String::new();
    while !read.ends_with(end) {
        read.push(char::from(stream.read_u8().await.expect("more")));
    }
    read
}

#[tokio::test]
async fn texts_that_cannot_fit_are_refused_by_their_length() {
    let server = Running::start(Limits::default()).await;
    let code = |reply: &super::client::Reply| reply.json()["error"]["code"].clone();
    let long = "a".repeat(4_000_000);
    let chat = json!({ "messages": [{ "role": "user", "content": long }] });
    let judged = json!({ "prompt": ["a", long], "echo": true, "max_tokens": 0 });
    for (path, body, param, context) in [
        (TEXT, json!({ "prompt": long }), "prompt", 2048),
        (TEXT, judged, "prompt", 2049),
        (CHAT, chat, "messages", 2048),
    ] {
        let refusal = server.post(path, &body).await;
        assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some(param)));
        assert_eq!(code(&refusal), "context_length_exceeded");
        let message = refusal.json()["error"]["message"].as_str().expect("a message").to_string();
        let said = format!("{param}: expected fewer than {context} tokens, found at least ");
        assert!(message.starts_with(&said), "{message}");
    }
    // One that might is made into tokens.
    let refusal = server.post(TEXT, &json!({ "prompt": "a".repeat(20_000) })).await;
    assert_eq!(code(&refusal), "context_length_exceeded");
    let message = refusal.json()["error"]["message"].as_str().expect("a message").to_string();
    assert!(
        message.starts_with("prompt: expected fewer than 2048 tokens, found ") && !message.contains("least"),
        "{message}"
    );
    server.finish().await;
}

#[tokio::test]
async fn every_route_but_one_asks_for_the_key() {
    let mut server = Running::with(Limits::default(), EngineConfig::default(), Some("s3cret")).await;
    assert_eq!(server.greedy(4).await, expected_greedy(4));
    for key in [None, Some("wrong"), Some("s3cre"), Some("s3crets"), Some("")] {
        server.key = key;
        for (method, path) in [
            ("POST", CHAT),
            ("POST", TEXT),
            ("POST", "/v1/embeddings"),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/demo"),
            ("GET", "/metrics"),
            ("GET", "/ready"),
            ("GET", "/nothing"),
            ("PUT", CHAT),
        ] {
            let refusal = server.send(&server.request(method, path, "application/json", b"{}")).await;
            assert_eq!(refusal.status, 401, "{method} {path} with {key:?}");
            assert_eq!(refusal.json()["error"]["code"], "invalid_api_key");
        }
        assert_eq!(server.get("/health").await.status, 200);
    }
    server.key = Some("s3cret");
    assert_eq!(server.get("/metrics").await.status, 200);
    assert_eq!(server.greedy(4).await, expected_greedy(4));
    server.finish().await;
}

#[tokio::test]
async fn stops_want_a_tokenizer() {
    let dir = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(demo_dir("draft").join(file), dir.path().join(file)).expect("a copy");
    }
    let model = Model::load(dir.path(), DeviceChoice::Cpu).expect("the demo model");
    let engine = Engine::new(model, EngineConfig::default()).expect("an engine");
    let server = Server::generating(engine, ServerConfig::new("demo")).expect("a server");
    let server = Running::of(server, None).await;
    let body = json!({ "prompt": [5, 6, 7], "max_tokens": 2, "stop": "a" });
    let refusal = server.post("/v1/completions", &body).await;
    assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some("stop")));
    let body = json!({ "prompt": [5, 6, 7], "max_tokens": 2 });
    assert_eq!(server.post("/v1/completions", &body).await.status, 200);
    server.finish().await;
}
