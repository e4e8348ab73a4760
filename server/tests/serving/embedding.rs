//! The seam for models that embed.

use base64::Engine as _;
use serde_json::json;
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

#[tokio::test]
async fn a_decoder_refuses_to_embed() {
    let server = Running::start(Limits::default()).await;
    let refusal = server.post("/v1/embeddings", &json!({ "model": "demo", "input": "a" })).await;
    assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some("model")));
    assert!(refusal.json()["error"]["message"].as_str().is_some_and(|text| text.contains("embeds text")));
    server.finish().await;
}
