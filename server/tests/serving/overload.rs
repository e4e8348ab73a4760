//! Too many, too slow, gone, and the end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tilewright::engine::EngineConfig;
use tilewright_server::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{PROMPT, Running, expected_greedy, read_reply};

const TEXT: &str = "/v1/completions";

/// A request that goes on for long.
fn endless(stream: bool) -> Value {
    json!({ "prompt": PROMPT, "max_tokens": 1900, "ignore_eos": true, "temperature": 0, "stream": stream })
}

impl Running {
    /// Sends a request and leaves the response to be read.
    async fn begin(&self, body: &Value) -> TcpStream {
        let mut stream = self.connect().await;
        let bytes = self.request("POST", TEXT, "application/json", body.to_string().as_bytes());
        stream.write_all(&bytes).await.expect("sent");
        stream
    }
}

#[tokio::test]
async fn connections_that_never_finish_a_request_hinder_nobody() {
    // Both ends are here: two descriptors a connection.
    let descriptors = rlimit::increase_nofile_limit(4096).expect("a limit");
    let count = if descriptors >= 2200 { 1000 } else { 200 };
    let limits =
        Limits { head_time: Duration::from_secs(2), body_time: Duration::from_secs(2), ..Limits::default() };
    let server = Running::start(limits).await;
    let mut open = Vec::new();
    for index in 0..count {
        let mut stream = server.connect().await;
        let beginnings: [&[u8]; 3] = [
            b"",
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-",
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{\"p",
        ];
        stream.write_all(beginnings[index % 3]).await.expect("sent");
        open.push(stream);
    }
    assert_eq!(server.greedy(8).await, expected_greedy(8));
    let began = Instant::now();
    for mut stream in open {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes)).await;
        assert!(read.is_ok(), "a connection is still open after {:?}", began.elapsed());
    }
    server.finish().await;
}

#[tokio::test]
async fn who_leaves_is_forgotten_within_a_step() {
    let server = Running::start(Limits::default()).await;
    let used = "tilewright_kv_pages_used";
    for stream in [true, false] {
        let mut body = endless(stream);
        body["n"] = json!(4);
        let mut connection = server.begin(&body).await;
        if stream {
            let mut bytes = [0; 2000];
            connection.read_exact(&mut bytes).await.expect("some of it");
        }
        while server.metric("tilewright_sequences_running").await < 4.0 {}
        assert!(server.metric(used).await > 0.0);
        drop(connection);
        server.settles(used, 0.0).await;
        assert_eq!(server.metric("tilewright_sequences_running").await, 0.0);
    }
    assert_eq!(server.greedy(8).await, expected_greedy(8));
    let stats = server.finish().await;
    assert!(stats.tokens < 4 * 1900, "{stats:?}");
}

#[tokio::test]
async fn a_full_queue_says_when_to_try_again() {
    let config = EngineConfig { max_running: 2, ..EngineConfig::default() };
    let server = Running::with(Limits { queue: 1, ..Limits::default() }, config, None).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut connection = server.begin(&endless(true)).await;
        connection.read_exact(&mut [0; 12]).await.expect("a response");
        open.push(connection);
    }
    let refusal = server.post(TEXT, &endless(false)).await;
    assert_eq!(refusal.status, 429);
    assert!(refusal.head.contains("\r\nretry-after: 1"), "{}", refusal.head);
    assert_eq!(refusal.json()["error"]["code"], "queue_full");
    // More than there will ever be room for is another matter.
    let mut body = endless(false);
    body["n"] = json!(4);
    let refusal = server.post(TEXT, &body).await;
    assert_eq!((refusal.status, refusal.param().as_deref()), (400, Some("n")));
    // Others need no place.
    assert_eq!(server.get("/health").await.status, 200);
    drop(open);
    server.settles("tilewright_kv_pages_used", 0.0).await;
    assert_eq!(server.greedy(8).await, expected_greedy(8));
    server.finish().await;
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_ended() {
    let limits = Limits { request_time: Duration::from_millis(300), ..Limits::default() };
    let server = Running::start(limits).await;
    let refusal = server.post(TEXT, &endless(false)).await;
    assert_eq!(refusal.status, 504);
    assert_eq!(refusal.json()["error"]["code"], "timeout");
    let cut = server.post(TEXT, &endless(true)).await;
    let text = String::from_utf8(cut.body).expect("text");
    assert!(
        text.trim_end().lines().last().is_some_and(|last| last.contains("\"code\":\"timeout\"")),
        "{text}"
    );
    server.settles("tilewright_kv_pages_used", 0.0).await;
    // A busy machine may need several tries within so short a time.
    let body = json!({ "prompt": PROMPT, "temperature": 0, "max_tokens": 2 });
    let mut said = None;
    for _ in 0..100 {
        let reply = server.post(TEXT, &body).await;
        if reply.status == 200 {
            said = reply.json()["choices"][0]["text"].as_str().map(str::to_string);
            break;
        }
    }
    assert_eq!(said, Some(expected_greedy(2)));
    server.finish().await;
}

#[tokio::test]
async fn the_end_lets_requests_under_way_finish() {
    let server = Running::start(Limits::default()).await;
    let mut body = endless(true);
    body["max_tokens"] = json!(60);
    let mut connection = server.begin(&body).await;
    let mut first = vec![0; 300];
    connection.read_exact(&mut first).await.expect("the beginning");
    let address = server.address;
    let ended = server.end();
    // The port is given up at once; what is under way goes on.
    for _ in 0..1000 {
        if TcpStream::connect(address).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(TcpStream::connect(address).await.is_err());
    let mut rest = Vec::new();
    connection.read_to_end(&mut rest).await.expect("the rest");
    let text = String::from_utf8([first, rest].concat()).expect("text");
    assert!(text.contains("\"finish_reason\":\"length\"") && text.contains("data: [DONE]"), "{text}");
    let stats = ended.await.expect("no panic").expect("an engine");
    assert_eq!((stats.tokens, stats.pages_held), (60, 0));
}

#[tokio::test]
async fn the_end_does_not_wait_for_ever() {
    let limits = Limits { drain_time: Duration::from_millis(200), ..Limits::default() };
    let server = Running::start(limits).await;
    let mut connection = server.begin(&endless(true)).await;
    connection.read_exact(&mut [0; 300]).await.expect("the beginning");
    let began = Instant::now();
    let ended = server.end();
    assert!(ended.await.expect("no panic").is_some());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let reply = read_rest(connection).await;
    assert!(!reply.contains("[DONE]"));
}

#[tokio::test]
async fn who_has_no_answer_yet_at_the_end_gets_one() {
    let limits = Limits { drain_time: Duration::from_secs(4), ..Limits::default() };
    let server = Running::start(limits).await;
    let body = json!({ "prompt": PROMPT, "temperature": 0, "max_tokens": 4 });
    let bytes = server.request("POST", TEXT, "application/json", body.to_string().as_bytes());
    let (first, rest) = bytes.split_at(bytes.len() - 20);
    let (mut sends, mut stalls) = (server.connect().await, server.connect().await);
    for connection in [&mut sends, &mut stalls] {
        connection.write_all(first).await.expect("sent");
    }
    let waits = server.begin(&endless(false)).await;
    while server.metric("tilewright_sequences_running").await < 1.0 {}
    let ended = server.end();
    tokio::time::sleep(Duration::from_millis(200)).await;
    sends.write_all(rest).await.expect("sent");
    assert_eq!(read_reply(sends).await.json()["choices"][0]["text"], expected_greedy(4));
    for connection in [stalls, waits] {
        let refusal = read_reply(connection).await;
        assert_eq!((refusal.status, refusal.param()), (503, None));
        assert_eq!(refusal.json()["error"]["message"], "the server is ending");
    }
    let stats = ended.await.expect("no panic").expect("an engine");
    assert_eq!(stats.pages_held, 0);
}

async fn read_rest(mut connection: TcpStream) -> String {
    let mut bytes = Vec::new();
    // Cut off, so an error is as good as an end.
    let _ = connection.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn what_is_sent_in_small_pieces_is_read_all_the_same() {
    let server = Running::start(Limits::default()).await;
    let body = json!({ "prompt": PROMPT, "temperature": 0, "max_tokens": 4 }).to_string();
    let mut stream = server.connect().await;
    for piece in server.request("POST", TEXT, "application/json; charset=utf-8", body.as_bytes()).chunks(7) {
        stream.write_all(piece).await.expect("sent");
        stream.flush().await.expect("sent");
    }
    let reply = read_reply(stream).await;
    assert_eq!(reply.json()["choices"][0]["text"], expected_greedy(4));
    server.finish().await;
}
