//! A server within the test, and a client that can also misbehave.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tilewright::engine::{EngineConfig, EngineStats};
use tilewright::{DeviceChoice, Engine, Model};
use tilewright_server::{Limits, Server, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A prompt whose greedy continuation is known.
pub const PROMPT: &str = "fn main() {\n    let mut v = Vec::new();\n";

/// The folder of a demo model.
pub fn demo_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo").join(name)
}

/// The demo model, loaded once.
pub fn demo() -> Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    let load = || Model::load(demo_dir("target"), DeviceChoice::Cpu).expect("the demo model");
    MODEL.get_or_init(load).clone()
}

/// A server under way.
pub struct Running {
    pub address: SocketAddr,
    end: oneshot::Sender<()>,
    task: JoinHandle<Option<EngineStats>>,
    pub key: Option<&'static str>,
}

/// A response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The data of server-sent events; the last must be `[DONE]`, and isn't among them.
    pub fn events(&self) -> Vec<Value> {
        let text = std::str::from_utf8(&self.body).expect("UTF-8");
        let mut data: Vec<&str> =
            text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{text}");
        data.into_iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
    }

    /// The field that an error names, after a look at its form.
    pub fn param(&self) -> Option<String> {
        let error = &self.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        assert!(error.get("param").is_some() && error.get("code").is_some(), "{error}");
        error["param"].as_str().map(str::to_string)
    }
}

impl Running {
    pub async fn start(limits: Limits) -> Running {
        Running::with(limits, EngineConfig::default(), None).await
    }

    pub async fn with(limits: Limits, engine: EngineConfig, key: Option<&'static str>) -> Running {
        let engine = Engine::new(demo(), engine).expect("an engine");
        let api_key = key.map(str::to_string);
        let aliases = vec!["an/alias".to_string()];
        let config = ServerConfig { limits, api_key, aliases, ..ServerConfig::new("demo") };
        Running::of(Server::generating(engine, config).expect("a server"), key).await
    }

    pub async fn of(server: Server, key: Option<&'static str>) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (end, told) = oneshot::channel::<()>();
        let task = tokio::spawn(server.serve(listener, async {
            // A test that ended early ends its server too.
            let _ = told.await;
        }));
        Running { address, end, task, key }
    }

    /// Tells the server to end; the handle waits for it.
    pub fn end(self) -> JoinHandle<Option<EngineStats>> {
        self.end.send(()).expect("a server that runs");
        self.task
    }

    /// Ends the server, which must have given all pages back.
    pub async fn finish(self) -> EngineStats {
        let stats = self.end().await.expect("no panic").expect("an engine");
        assert_eq!(stats.pages_held, 0, "{stats:?}");
        stats
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("a connection")
    }

    /// A request's bytes.
    pub fn request(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Vec<u8> {
        let key = self.key.map_or(String::new(), |key| format!("Authorization: Bearer {key}\r\n"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{key}Content-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    }

    /// Sends bytes and reads what comes back until the connection ends.
    pub async fn send(&self, bytes: &[u8]) -> Reply {
        let mut stream = self.connect().await;
        // A server that has read enough answers all the same.
        let _ = stream.write_all(bytes).await;
        read_reply(stream).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(&self.request("GET", path, "text/plain", b"")).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_bytes(path, body.to_string().as_bytes()).await
    }

    pub async fn post_bytes(&self, path: &str, body: &[u8]) -> Reply {
        self.send(&self.request("POST", path, "application/json", body)).await
    }

    /// As [`Running::post`], of what must succeed.
    pub async fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body).await;
        assert_eq!(reply.status, 200, "{body}: {}", String::from_utf8_lossy(&reply.body));
        reply.json()
    }

    /// The greedy text of a prompt.
    pub async fn greedy(&self, max_tokens: usize) -> String {
        let body = json!({ "prompt": PROMPT, "temperature": 0, "max_tokens": max_tokens });
        let answer = self.ask("/v1/completions", &body).await;
        answer["choices"][0]["text"].as_str().expect("text").to_string()
    }

    /// A gauge or counter without labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let reply = self.get("/metrics").await;
        let text = String::from_utf8(reply.body).expect("text");
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
    }

    /// Waits until a metric has a value.
    pub async fn settles(&self, name: &str, value: f64) {
        for _ in 0..6000 {
            if self.metric(name).await == value {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{name} is {}, not {value}", self.metric(name).await);
    }
}

/// What the model itself says greedily.
pub fn expected_greedy(max_tokens: usize) -> String {
    let params = tilewright::GenerateParams { max_tokens, ..Default::default() };
    let model = demo();
    let generation = model.generate(PROMPT, &params).expect("a generation");
    generation.map(|token| token.expect("a token").text).collect()
}

pub async fn read_reply(mut stream: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    // A reset behind the response is no loss.
    let _ = stream.read_to_end(&mut bytes).await;
    let split = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let split = split.unwrap_or_else(|| panic!("no response: {:?}", String::from_utf8_lossy(&bytes)));
    let head = String::from_utf8(bytes[..split].to_vec()).expect("a head").to_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let body = bytes[split + 4..].to_vec();
    let body = if head.contains("transfer-encoding: chunked") { dechunk(&body) } else { body };
    Reply { status, head, body }
}

fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let length = std::str::from_utf8(&bytes[..end]).expect("a length");
        let length = usize::from_str_radix(length, 16).expect("a length");
        body.extend_from_slice(&bytes[end + 2..end + 2 + length]);
        bytes = &bytes[end + 4 + length..];
    }
    body
}
