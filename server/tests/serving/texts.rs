//! Texts that are refused before they are made into tokens.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tilewright::engine::EngineConfig;
use tilewright::tokenizer::Tokenizer;
use tilewright::{DeviceChoice, Engine, Model};
use tilewright_server::{Embed, EmbedInput, Embedded, Limits, Server, ServerConfig};

use super::client::{Running, demo, demo_dir};

/// The smaller demo model with another normaliser.
fn normalising(dir: &Path, normalizer: Value) -> Model {
    for file in ["config.json", "model.safetensors", "tokenizer_config.json"] {
        std::fs::copy(demo_dir("draft").join(file), dir.join(file)).expect("copied");
    }
    let tokenizer = std::fs::read(demo_dir("draft").join("tokenizer.json")).expect("read");
    let mut tokenizer: Value = serde_json::from_slice(&tokenizer).expect("JSON");
    tokenizer["normalizer"] = normalizer;
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).expect("written");
    Model::load(dir, DeviceChoice::Cpu).expect("the demo model")
}

#[tokio::test]
async fn texts_under_a_form_of_unicode_are_refused_by_their_length() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = normalising(dir.path(), json!({ "type": "NFC" }));
    let engine = Engine::new(model, EngineConfig::default()).expect("an engine");
    let server = Server::generating(engine, ServerConfig::new("demo")).expect("a server");
    let server = Running::of(server, None).await;
    let body = json!({ "prompt": "e\u{301} = 1;\n".repeat(50_000) });
    let refusal = server.post("/v1/completions", &body).await;
    assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some("prompt")));
    let message = refusal.json()["error"]["message"].as_str().map(str::to_string).expect("a message");
    assert!(message.starts_with("prompt: expected fewer than 2048 tokens, found at least "), "{message}");
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_normalisers_make_of_a_text_is_within_the_limit_of_a_body() {
    // With a step behind it that may take characters away, since other texts are refused by their length.
    let and_lowercase =
        |step: Value| json!({ "type": "Sequence", "normalizers": [step, { "type": "Lowercase" }] });
    let replace = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "b".repeat(255) });
    let and_back = json!({ "type": "Replace", "pattern": { "String": "b" }, "content": "" });
    let long_on_the_way = json!({ "type": "Sequence", "normalizers": [&replace, and_back] });
    // Eleven times longer by Unicode's rules, 255 times by the file's own, be it on the way alone.
    for (normalizer, text) in [
        (json!({ "type": "NFKC" }), "\u{fdfa}".repeat(350_000)),
        (replace, "a".repeat(4_000_000)),
        (long_on_the_way, "a".repeat(4_000_000)),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let engine = Engine::new(normalising(dir.path(), and_lowercase(normalizer)), EngineConfig::default())
            .expect("an engine");
        let server = Server::generating(engine, ServerConfig::new("demo")).expect("a server");
        let server = Running::of(server, None).await;
        let began = Instant::now();
        for (path, field, body) in [
            ("/v1/completions", "prompt", json!({ "prompt": text })),
            ("/v1/completions", "prompt", json!({ "prompt": vec![text[..text.len() / 4].to_string(); 4] })),
            (
                "/v1/chat/completions",
                "messages",
                json!({ "messages": [{ "role": "user", "content": text }] }),
            ),
        ] {
            let refusal = server.post(path, &body).await;
            assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some(field)));
            let expected = "text of at most 4194304 bytes while the tokenizer normalises it, found more";
            assert_eq!(refusal.json()["error"]["message"], format!("{field}: expected {expected}"));
        }
        // Making one of them into tokens takes more than a minute.
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
        let answer = server.ask("/v1/completions", &json!({ "prompt": "fn main", "max_tokens": 2 })).await;
        assert_eq!(answer["usage"]["completion_tokens"], 2);
        server.finish().await;
    }
}

/// Has a context of ten tokens, and must not see a longer text.
struct Short(Model);

impl Embed for Short {
    fn dimensions(&self) -> usize {
        1
    }

    fn measures(&self) -> Option<(&Tokenizer, usize)> {
        Some((self.0.tokenizer()?, 10))
    }

    fn embed(&self, inputs: &[EmbedInput]) -> tilewright::Result<Vec<Embedded>> {
        let seen = |input: &EmbedInput| match input {
            EmbedInput::Text(text) => assert!(text.len() < 100, "{} bytes", text.len()),
            EmbedInput::Ids(_) => {}
        };
        inputs.iter().for_each(seen);
        Ok(inputs.iter().map(|_| Embedded { values: vec![1.0], tokens: 1 }).collect())
    }
}

#[tokio::test]
async fn texts_to_embed_are_refused_by_their_length() {
    let config = ServerConfig { limits: Limits::default(), ..ServerConfig::new("short") };
    let server =
        Running::of(Server::embedding(Box::new(Short(demo())), config).expect("a server"), None).await;
    for input in [json!("a b".repeat(100_000)), json!(["a", "a b".repeat(100_000)])] {
        let refusal = server.post("/v1/embeddings", &json!({ "input": input })).await;
        assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some("input")));
        let error = &refusal.json()["error"];
        assert_eq!(error["code"], "context_length_exceeded");
        let message = error["message"].as_str().expect("a message");
        assert!(message.starts_with("input: expected fewer than 11 tokens, found at least "), "{message}");
    }
    assert_eq!(server.post("/v1/embeddings", &json!({ "input": "a b" })).await.status, 200);
    assert!(server.end().await.expect("no panic").is_none());
}
