//! The seam for models that embed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use serde_json::json;
use tilewright::tokenizer::Tokenizer;
use tilewright::{DeviceChoice, Embedder};
use tilewright_server::{Embed, EmbedInput, Embedded, Limits, Server, ServerConfig};

use super::client::Running;

/// Counts characters or ids.
struct Counting;

impl Embed for Counting {
    fn dimensions(&self) -> usize {
        2
    }

    fn embed(&self, inputs: &[EmbedInput]) -> tilewright::Result<Vec<Embedded>> {
        let count = |input: &EmbedInput| match input {
            EmbedInput::Text(text) => text.chars().count(),
            EmbedInput::Ids(ids) => ids.len(),
        };
        let embed = |tokens: usize| Embedded { values: vec![tokens as f32, 0.25], tokens };
        Ok(inputs.iter().map(|input| embed(count(input))).collect())
    }
}

#[tokio::test]
async fn an_encoder_embeds_and_does_nothing_else() {
    let server = Server::embedding(Box::new(Counting), ServerConfig::new("encoder")).expect("a server");
    let server = Running::of(server, None).await;
    let answer = server.ask("/v1/embeddings", &json!({ "model": "encoder", "input": ["héllo", "a"] })).await;
    assert_eq!(answer["data"][0]["embedding"], json!([5.0, 0.25]));
    assert_eq!(answer["data"][1], json!({ "object": "embedding", "index": 1, "embedding": [1.0, 0.25] }));
    assert_eq!(answer["usage"], json!({ "prompt_tokens": 6, "total_tokens": 6 }));
    let body = json!({ "input": [7, 8, 9], "encoding_format": "base64", "dimensions": 2 });
    let answer = server.ask("/v1/embeddings", &body).await;
    let text = answer["data"][0]["embedding"].as_str().expect("text").to_string();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
    assert_eq!(bytes, [3.0f32.to_le_bytes(), 0.25f32.to_le_bytes()].concat());
    for (body, param) in [
        (json!({}), "input"),
        (json!({ "input": "" }), "input"),
        (json!({ "input": [] }), "input"),
        (json!({ "input": [[]] }), "input"),
        (json!({ "input": [-1] }), "input"),
        (json!({ "input": "a", "dimensions": 3 }), "dimensions"),
        (json!({ "input": "a", "encoding_format": "int8" }), "encoding_format"),
        (json!({ "input": "a", "other": 1 }), "other"),
        (json!({ "input": vec!["a"; 129] }), "input"),
    ] {
        let refusal = server.post("/v1/embeddings", &body).await;
        assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some(param)), "{body}");
    }
    let refusal = server.post("/v1/completions", &json!({ "prompt": "a" })).await;
    assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some("model")));
    assert_eq!(server.get("/v1/models").await.json()["data"][0]["id"], "encoder");
    assert!(server.end().await.expect("no panic").is_none());
}

/// Takes its time, and counts how many bytes it has in hand.
#[derive(Default)]
struct Slow {
    held: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
}

impl Embed for Slow {
    fn dimensions(&self) -> usize {
        1
    }

    fn embed(&self, inputs: &[EmbedInput]) -> tilewright::Result<Vec<Embedded>> {
        let bytes = inputs.iter().map(|input| match input {
            EmbedInput::Text(text) => text.len(),
            EmbedInput::Ids(_) => 0,
        });
        let bytes: usize = bytes.sum();
        self.calls.fetch_add(1, Ordering::SeqCst);
        let held = self.held.fetch_add(bytes, Ordering::SeqCst) + bytes;
        self.most.fetch_max(held, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(100));
        self.held.fetch_sub(bytes, Ordering::SeqCst);
        Ok(inputs.iter().map(|_| Embedded { values: vec![0.5], tokens: 1 }).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_texts_take_turns() {
    let slow = Slow::default();
    let (most, calls) = (slow.most.clone(), slow.calls.clone());
    let limits = Limits { text_bytes: 100_000, request_time: Duration::from_secs(3), ..Limits::default() };
    let config = ServerConfig { limits, ..ServerConfig::new("encoder") };
    let server =
        Arc::new(Running::of(Server::embedding(Box::new(slow), config).expect("a server"), None).await);
    let ask = |texts: usize, bytes: usize| {
        let (server, body) = (server.clone(), json!({ "input": vec!["a".repeat(bytes); texts] }));
        tokio::spawn(async move { server.post("/v1/embeddings", &body).await.status })
    };
    // Two may go at a time, each of two texts.
    let asked: Vec<_> = (0..8).map(|_| ask(2, 20_000)).collect();
    for answer in asked {
        assert_eq!(answer.await.expect("no panic"), 200);
    }
    let together = most.swap(0, Ordering::SeqCst);
    assert!((40_000..=80_000).contains(&together), "{together}");
    // One longer than all there is goes alone.
    let asked: Vec<_> = (0..3).map(|_| ask(1, 150_000)).collect();
    for answer in asked {
        assert_eq!(answer.await.expect("no panic"), 200);
    }
    assert_eq!(most.load(Ordering::SeqCst), 150_000);
    // Those who leave the queue leave their turn to others: of a hundred, ten seconds' worth, the few are done that had begun.
    let before = calls.load(Ordering::SeqCst);
    let leaving: Vec<_> = (0..100).map(|_| ask(1, 100_000)).collect();
    while calls.load(Ordering::SeqCst) < before + 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    leaving.iter().for_each(tokio::task::JoinHandle::abort);
    assert_eq!(ask(1, 100_000).await.expect("no panic"), 200);
    assert!(calls.load(Ordering::SeqCst) < before + 30, "{}", calls.load(Ordering::SeqCst) - before);
    // Who waits longer than a request may take is told so.
    let asked: Vec<_> = (0..100).map(|_| ask(1, 100_000)).collect();
    let mut statuses = Vec::new();
    for answer in asked {
        statuses.push(answer.await.expect("no panic"));
    }
    assert!(statuses.contains(&200) && statuses.contains(&504), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 504].contains(status)), "{statuses:?}");
    // Short ones don't wait.
    assert_eq!(ask(1, 1000).await.expect("no panic"), 200);
    let server = Arc::into_inner(server).expect("nobody else");
    assert!(server.end().await.expect("no panic").is_none());
}

#[tokio::test]
async fn an_encoder_without_a_tokenizer_takes_ids_alone() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/bert");
    let embedder = Embedder::load(&dir, DeviceChoice::Cpu).expect("the fixture");
    let server = Server::embedding(Box::new(embedder), ServerConfig::new("bert")).expect("a server");
    let server = Running::of(server, None).await;
    let refusal = server.post("/v1/embeddings", &json!({ "input": "a" })).await;
    assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some("input")));
    assert_eq!(
        refusal.json()["error"]["message"],
        "input: expected token ids, as the model has no tokenizer, found text"
    );
    assert_eq!(server.post("/v1/embeddings", &json!({ "input": [1, 2] })).await.status, 200);
    assert!(server.end().await.expect("no panic").is_none());
}

#[tokio::test]
async fn a_decoder_refuses_to_embed() {
    let server = Running::start(Limits::default()).await;
    let refusal = server.post("/v1/embeddings", &json!({ "model": "demo", "input": "a" })).await;
    assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some("model")));
    assert!(refusal.json()["error"]["message"].as_str().is_some_and(|text| text.contains("embeds text")));
    server.finish().await;
}

/// Keeps the threads that read requests until it's opened.
#[derive(Default)]
struct Gate {
    inside: AtomicUsize,
    is_open: AtomicBool,
}

struct Gated(Arc<Gate>);

impl Embed for Gated {
    fn dimensions(&self) -> usize {
        1
    }

    fn measures(&self) -> Option<(&Tokenizer, usize)> {
        self.0.inside.fetch_add(1, Ordering::SeqCst);
        while !self.0.is_open.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
        None
    }

    fn embed(&self, inputs: &[EmbedInput]) -> tilewright::Result<Vec<Embedded>> {
        Ok(inputs.iter().map(|_| Embedded { values: vec![1.0], tokens: 1 }).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_bodies_leave_threads_to_read_short_ones() {
    let gate = Arc::new(Gate::default());
    let server = Server::embedding(Box::new(Gated(gate.clone())), ServerConfig::new("gated"));
    let server = Arc::new(Running::of(server.expect("a server"), None).await);
    let post = |input: String| {
        let server = server.clone();
        tokio::spawn(async move { server.post("/v1/embeddings", &json!({ "input": input })).await.status })
    };
    let inside = async |count: usize| {
        for _ in 0..6000 {
            if gate.inside.load(Ordering::SeqCst) >= count {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let places = std::thread::available_parallelism().map_or(1, usize::from).min(32);
    let mut posted: Vec<_> = (0..3 * places).map(|_| post("a".repeat(100_000))).collect();
    inside(places).await;
    posted.push(post("a".into()));
    inside(places + 1).await;
    // Those that wait have had the time of another request to come in.
    assert_eq!(server.get("/health").await.status, 200);
    let found = gate.inside.load(Ordering::SeqCst);
    gate.is_open.store(true, Ordering::SeqCst);
    assert_eq!(found, places + 1);
    for status in posted {
        assert_eq!(status.await.expect("no panic"), 200);
    }
}
