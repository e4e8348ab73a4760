//! Answers as they come.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tilewright_server::Limits;

use super::client::{PROMPT, Running};

/// The text of each choice, put together, and its finish reasons.
fn put_together(events: &[Value], text: fn(&Value) -> Option<&str>) -> BTreeMap<u64, (String, Vec<String>)> {
    let mut choices: BTreeMap<u64, (String, Vec<String>)> = BTreeMap::new();
    for choice in events.iter().flat_map(|event| event["choices"].as_array().expect("choices")) {
        let entry = choices.entry(choice["index"].as_u64().expect("an index")).or_default();
        entry.0 += text(choice).unwrap_or_default();
        entry.1.extend(choice["finish_reason"].as_str().map(str::to_string));
    }
    choices
}

#[tokio::test]
async fn a_stream_says_what_an_object_would() {
    let server = Running::start(Limits::default()).await;
    let mut body = json!({
        "prompt": [PROMPT, "impl "], "n": 2, "seed": 3, "temperature": 1.0, "max_tokens": 9, "logprobs": 1,
        "echo": true, "stop": ["\n\n\n"],
    });
    let whole = server.ask("/v1/completions", &body).await;
    body["stream"] = json!(true);
    let reply = server.post("/v1/completions", &body).await;
    assert!(reply.head.contains("content-type: text/event-stream"), "{}", reply.head);
    let events = reply.events();
    let choices = put_together(&events, |choice| choice["text"].as_str());
    assert_eq!(choices.len(), 4);
    for (index, (text, finish)) in &choices {
        let expected = &whole["choices"][*index as usize];
        assert_eq!(*text, expected["text"]);
        assert_eq!(finish[..], [expected["finish_reason"].as_str().expect("a reason")]);
        let of_choice = events.iter().flat_map(|event| event["choices"].as_array().expect("choices"));
        let of_choice = of_choice.filter(|choice| choice["index"] == *index);
        for list in ["tokens", "token_logprobs", "text_offset"] {
            let all: Vec<Value> = of_choice
                .clone()
                .flat_map(|choice| choice["logprobs"][list].as_array().expect("a list").clone())
                .collect();
            assert_eq!(Value::Array(all), expected["logprobs"][list], "{list}");
        }
    }
    assert!(events.iter().all(|event| event.get("usage").is_none()));
    server.finish().await;
}

#[tokio::test]
async fn a_streamed_chat_ends_with_its_usage() {
    let server = Running::start(Limits::default()).await;
    let messages = json!([{ "role": "user", "content": "fn main() {" }]);
    let mut body = json!({ "messages": messages, "temperature": 0, "max_tokens": 7 });
    let whole = server.ask("/v1/chat/completions", &body).await;
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    let events = server.post("/v1/chat/completions", &body).await.events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let choices = put_together(&events, |choice| choice["delta"]["content"].as_str());
    assert_eq!(whole["choices"][0]["message"]["content"], choices[&0].0);
    assert_eq!(choices[&0].1, ["length"]);
    let (last, rest) = events.split_last().expect("events");
    assert_eq!((&last["usage"], &last["choices"]), (&whole["usage"], &json!([])));
    assert!(
        rest.iter().all(|event| event["usage"] == Value::Null && event["object"] == "chat.completion.chunk")
    );
    let refusal =
        server.post("/v1/chat/completions", &json!({ "messages": messages, "stream_options": {} })).await;
    assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some("stream_options")));
    server.finish().await;
}
