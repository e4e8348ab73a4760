//! What good requests are answered.

use serde_json::{Value, json};
use tilewright_server::Limits;

use super::client::{PROMPT, Running, demo, expected_greedy};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().expect("choices");
    choices.iter().map(|choice| choice["text"].as_str().expect("text").to_string()).collect()
}

#[tokio::test]
async fn a_server_tells_what_it_is() {
    let server = Running::start(Limits::default()).await;
    for (path, status) in [("/health", "ok"), ("/ready", "ready")] {
        assert_eq!(server.get(path).await.json(), json!({ "status": status }));
    }
    let models = server.get("/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], "demo");
    assert_eq!(models["data"][0]["max_model_len"], 2048);
    assert_eq!(models["data"][1]["id"], "an/alias");
    assert_eq!(server.get("/v1/models/an/alias").await.json()["id"], "an/alias");
    let missing = server.get("/v1/models/other").await;
    assert_eq!((missing.status, missing.param().as_deref()), (404, Some("model")));
    server.greedy(4).await;
    for (name, value) in [
        ("tilewright_tokens_total", 4.0),
        ("tilewright_time_to_first_token_seconds_count", 1.0),
        ("tilewright_inter_token_seconds_count", 3.0),
        ("tilewright_kv_pages", 1024.0),
    ] {
        server.settles(name, value).await;
    }
    for name in [
        "tilewright_sequences_waiting",
        "tilewright_sequences_running",
        "tilewright_kv_used_ratio",
        "tilewright_preemptions_total",
        "tilewright_drafts_accepted_total",
    ] {
        server.settles(name, 0.0).await;
    }
    server.finish().await;
}

#[tokio::test]
async fn completions_are_the_models_own() {
    let server = Running::start(Limits::default()).await;
    let expected = expected_greedy(12);
    assert_eq!(server.greedy(12).await, expected);
    let ids = demo().tokenizer().expect("a tokenizer").encode(PROMPT).expect("ids");
    let base = json!({ "model": "demo", "temperature": 0, "max_tokens": 12 });
    let with = |prompt: Value| {
        let mut body = base.clone();
        body["prompt"] = prompt;
        body
    };
    let one = server.ask(TEXT, &with(json!(ids))).await;
    assert_eq!(texts(&one), std::slice::from_ref(&expected));
    let count = ids.len();
    let usage = json!({ "prompt_tokens": count, "completion_tokens": 12, "total_tokens": count + 12 });
    assert_eq!(one["usage"], usage);
    assert_eq!(
        (&one["object"], &one["choices"][0]["finish_reason"]),
        (&json!("text_completion"), &json!("length"))
    );
    let other = texts(&server.ask(TEXT, &with(json!("impl Iterator for "))).await);
    let batch = server.ask(TEXT, &with(json!([PROMPT, "impl Iterator for ", PROMPT]))).await;
    assert_eq!(texts(&batch), [expected.clone(), other[0].clone(), expected.clone()]);
    assert_eq!(texts(&server.ask(TEXT, &with(json!([ids, [1, 2, 3]]))).await)[0], expected);
    // Where a request doesn't say, 16 tokens are made.
    let short = server.ask(TEXT, &json!({ "prompt": PROMPT, "temperature": 0 })).await;
    assert_eq!(texts(&short), [expected_greedy(16)]);
    server.finish().await;
}

#[tokio::test]
async fn chats_are_rendered_and_answered() {
    let server = Running::start(Limits::default()).await;
    let body = json!({
        "model": "demo",
        "messages": [
            { "role": "system", "content": "Write Rust." },
            { "role": "user", "content": [{ "type": "text", "text": "fn " }, { "type": "text", "text": "main()" }] },
        ],
        "temperature": 0,
        "max_completion_tokens": 8,
        "user": "somebody",
        "tools": [],
        "response_format": { "type": "text" },
    });
    let answer = server.ask(CHAT, &body).await;
    let prompt = "system: Write Rust.\nuser: fn main()\nassistant:";
    let text = server.ask(TEXT, &json!({ "prompt": prompt, "temperature": 0, "max_tokens": 8 })).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], text["choices"][0]["text"]);
    assert_eq!(message["role"], "assistant");
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["usage"], text["usage"]);
    let again = server.ask(CHAT, &body).await;
    assert_eq!(again["choices"], answer["choices"]);
    assert_ne!(again["id"], answer["id"]);
    server.finish().await;
}

#[tokio::test]
async fn several_answers_follow_from_the_seed() {
    let server = Running::start(Limits::default()).await;
    let body =
        json!({ "prompt": [PROMPT, PROMPT], "n": 3, "seed": -5, "temperature": 1.2, "max_tokens": 10 });
    let first = texts(&server.ask(TEXT, &body).await);
    assert_eq!(first.len(), 6);
    assert_eq!(texts(&server.ask(TEXT, &body).await), first);
    assert!(first.iter().any(|text| *text != first[0]), "{first:?}");
    let mut other = body.clone();
    other["seed"] = json!(6);
    assert_ne!(texts(&server.ask(TEXT, &other).await), first);
    // Without a seed, each request draws anew.
    other["seed"] = Value::Null;
    assert_ne!(texts(&server.ask(TEXT, &other).await), texts(&server.ask(TEXT, &other).await));
    server.finish().await;
}

#[tokio::test]
async fn stops_and_biases_are_kept_to() {
    let server = Running::start(Limits::default()).await;
    // Greedy text: "}\n\nfn foo(v: &mut Vec<i32>) {…".
    let body =
        json!({ "prompt": PROMPT, "temperature": 0, "max_tokens": 64, "stop": ["nowhere", "foo(v: &"] });
    let answer = server.ask(TEXT, &body).await;
    assert_eq!(texts(&answer), ["}\n\nfn "]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let tokenizer_ids = demo().tokenizer().expect("a tokenizer").encode_plain(" mut").expect("ids");
    let [id] = tokenizer_ids[..] else { panic!("' mut' is {tokenizer_ids:?}") };
    let body =
        json!({ "prompt": PROMPT, "temperature": 0, "max_tokens": 3, "logit_bias": { id.to_string(): 100 } });
    assert_eq!(texts(&server.ask(TEXT, &body).await), [" mut mut mut"]);
    server.finish().await;
}

#[tokio::test]
async fn logprobs_are_those_of_the_tokens() {
    let server = Running::start(Limits::default()).await;
    let body = json!({ "prompt": PROMPT, "temperature": 0, "max_tokens": 6, "logprobs": 3 });
    let answer = server.ask(TEXT, &body).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    let tokens: Vec<&str> =
        logprobs["tokens"].as_array().expect("tokens").iter().flat_map(Value::as_str).collect();
    assert_eq!(tokens.concat(), expected_greedy(6));
    assert_eq!(logprobs["text_offset"][1], json!(tokens[0].chars().count()));
    for (index, token) in tokens.iter().enumerate() {
        let top = logprobs["top_logprobs"][index].as_object().expect("top");
        assert_eq!(top.len(), 3);
        // Greedy: the token is the likeliest.
        let chosen = logprobs["token_logprobs"][index].as_f64().expect("a number");
        assert!(top.values().all(|other| other.as_f64().is_some_and(|other| other <= chosen)), "{token}");
        assert_eq!(top[*token].as_f64(), Some(chosen));
    }
    let message = json!([{ "role": "user", "content": "fn main() {" }]);
    let mut body = json!({ "messages": message, "temperature": 0, "max_tokens": 4, "logprobs": true, "top_logprobs": 2 });
    let answer = server.ask(CHAT, &body).await;
    let content = answer["choices"][0]["logprobs"]["content"].as_array().expect("content");
    assert_eq!(content.len(), 4);
    let bytes: Vec<u8> = content
        .iter()
        .flat_map(|token| token["bytes"].as_array().expect("bytes"))
        .map(|byte| byte.as_u64().expect("a byte") as u8)
        .collect();
    assert_eq!(std::str::from_utf8(&bytes).ok(), answer["choices"][0]["message"]["content"].as_str());
    assert_eq!(content[0]["top_logprobs"][0]["logprob"], content[0]["logprob"]);
    body["logprobs"] = json!(false);
    let refusal = server.post(CHAT, &body).await;
    assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some("top_logprobs")));
    server.finish().await;
}

#[tokio::test]
async fn an_echo_judges_the_prompt() {
    let server = Running::start(Limits::default()).await;
    let ids = demo().tokenizer().expect("a tokenizer").encode(PROMPT).expect("ids");
    let numbers = |value: &Value| -> Vec<Option<f64>> {
        value.as_array().expect("an array").iter().map(Value::as_f64).collect()
    };
    let body = json!({ "prompt": ids, "temperature": 0, "max_tokens": 4, "logprobs": 1, "echo": true });
    let answer = server.ask(TEXT, &body).await;
    assert_eq!(texts(&answer), [format!("{PROMPT}{}", expected_greedy(4))]);
    let judged = numbers(&answer["choices"][0]["logprobs"]["token_logprobs"]);
    assert_eq!(judged.len(), ids.len() + 4);
    assert_eq!(judged[0], None);
    assert!(judged[1..].iter().all(|logprob| logprob.is_some_and(|logprob| logprob < 0.0)));
    // By another way: a mean over the text, as `evaluate` has it.
    let evaluation =
        tilewright::eval::evaluate(&demo(), PROMPT, 2048, &mut |_, _| {}).expect("an evaluation");
    let mean = -judged[1..ids.len()].iter().flatten().sum::<f64>() / (ids.len() - 1) as f64;
    assert!((mean - evaluation.nll).abs() < 1e-4, "{mean} {}", evaluation.nll);
    // Nothing generated: the prompt alone. As text it's the same.
    let body = json!({ "prompt": [PROMPT, PROMPT], "max_tokens": 0, "logprobs": 0, "echo": true });
    let answer = server.ask(TEXT, &body).await;
    assert_eq!(texts(&answer), [PROMPT, PROMPT]);
    for choice in [0, 1] {
        assert_eq!(numbers(&answer["choices"][choice]["logprobs"]["token_logprobs"]), judged[..ids.len()]);
    }
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    // Each token is where it's said to be; the first isn't part of the text.
    let logprobs = &answer["choices"][0]["logprobs"];
    let offset = |index: usize| logprobs["text_offset"][index].as_u64().expect("an offset") as usize;
    assert_eq!((offset(0), offset(1)), (0, 0));
    for index in 1..ids.len() {
        let token = logprobs["tokens"][index].as_str().expect("text");
        assert!(PROMPT[offset(index)..].starts_with(token), "{token:?} at {}", offset(index));
    }
    server.finish().await;
}
