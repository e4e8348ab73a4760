//! Checkpoints whose chat template is out for the server: their chats are refused, everything else is answered as before.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tilewright::engine::EngineConfig;
use tilewright::{DeviceChoice, Engine, Model};
use tilewright_server::{Server, ServerConfig};

use super::client::{Running, expected_greedy};

const CHAT: &str = "/v1/chat/completions";

/// What a refused chat may take, in a debug build on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// A server of the demo model with a chat template.
async fn start(template: &str) -> (Running, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a folder");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/target");
    // With its tokenizer's configuration, or prompts would begin otherwise.
    let config = ["config.json", "generation_config.json", "tokenizer_config.json"];
    for file in config.into_iter().chain(["model.safetensors", "tokenizer.json"]) {
        let copy = dir.path().join(file);
        // 28 MB of weights are linked where the two folders share a file system.
        std::fs::hard_link(demo.join(file), &copy)
            .or_else(|_| std::fs::copy(demo.join(file), &copy).map(|_| ()))
            .expect("a copy");
    }
    std::fs::write(dir.path().join("chat_template.jinja"), template).expect("written");
    let model = Model::load(dir.path(), DeviceChoice::Cpu).expect("the demo model");
    let engine = Engine::new(model, EngineConfig::default()).expect("an engine");
    let server = Server::generating(engine, ServerConfig::new("demo")).expect("a server");
    assert!(server.has_chat_template());
    (Running::of(server, None).await, dir)
}

#[tokio::test]
async fn a_template_that_is_a_bomb_hurts_its_own_chats_alone() {
    let loops = "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}";
    for template in [
        "{{ messages | tojson(indent=10000000000) }}",
        "{{ 'x' * 10000000000 }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ ().__class__.__mro__[1].__subclasses__() }}",
        loops,
    ] {
        let (server, _dir) = start(template).await;
        let chat = json!({ "messages": [{ "role": "user", "content": "fn main() {" }], "max_tokens": 4 });
        // A blast that outlives its request would be met by the second.
        for _ in 0..2 {
            let began = Instant::now();
            let refusal = server.post(CHAT, &chat).await;
            assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some("messages")), "{template}");
            assert!(began.elapsed() < SOON, "{template} took {:?}", began.elapsed());
        }
        assert_eq!(server.greedy(8).await, expected_greedy(8));
        server.finish().await;
    }
}

#[tokio::test]
async fn a_template_that_repeats_a_chat_has_the_bounds_of_a_body() {
    let (server, _dir) = start("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}").await;
    let chat = |bytes: usize| json!({ "messages": [{ "role": "user", "content": "a".repeat(bytes) }] });
    for (bytes, said) in [
        (2_100_000, "messages: expected a chat whose prompt has at most 4194304 bytes, found 4200000"),
        (2_000_000, "messages: expected fewer than 2048 tokens, found at least "),
    ] {
        let refusal = server.post(CHAT, &chat(bytes)).await;
        assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some("messages")));
        let message = refusal.json()["error"]["message"].as_str().expect("a message").to_string();
        assert!(message.starts_with(said), "{message}");
    }
    server.finish().await;
}
