//! Mixed load with faults against a server of the demo model in this process: `soak [SECONDS] [WORKERS]`.
//!
//! Every ten seconds a line: resident memory, pages held, preemptions so far, requests, refusals, and whether the canary, a greedy prompt asked
//! all along, still says what it said at first. Fails if it ever doesn't, if a page is held at the end, or if memory grew by more than a tenth
//! from the eighth of the time before the first quarter is over to the last eighth, by the medians of both: bodies under way make single readings jump.
//! The allocator's arenas fill in the first minutes, so that memory is judged only where the first eighth is that long: from 16 minutes on. A run
//! of that length fails, too, if nothing was preempted: the cache is small so that sequences are.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tilewright::engine::EngineConfig;
use tilewright::{DeviceChoice, Engine, Model};
use tilewright_server::{Limits, Server, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// Until then each thread's first bodies of megabytes add to the allocator's arenas.
const SETTLED: Duration = Duration::from_secs(120);

/// What all workers share.
struct Load {
    address: SocketAddr,
    canary: String,
    ended: AtomicBool,
    requests: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
}

/// Numbers that look random (SplitMix64; Steele, Lea and Flood, 2014).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    tilewright_server::return_freed_memory();
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let seconds = arguments.next().transpose()?.unwrap_or(60);
    let workers = arguments.next().transpose()?.unwrap_or(24);
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo/target");
    let model = Model::load(demo, DeviceChoice::Cpu)?;
    // A short queue, so that requests are refused; less cache than the running sequences may fill, so that some are preempted.
    let config = EngineConfig { cache_tokens: 384, max_running: 8, ..EngineConfig::default() };
    let engine = Engine::new(model, config)?;
    let limits = Limits { queue: 8, head_time: Duration::from_secs(2), ..Limits::default() };
    let server = Server::generating(engine, ServerConfig { limits, ..ServerConfig::new("demo") })?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(soak(server, Duration::from_secs(seconds), workers))
}

async fn soak(server: Server, time: Duration, workers: u64) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (end, told) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(listener, async {
        // A sender that is gone ends it as well.
        let _ = told.await;
    }));
    let canary = ask_canary(address).await.ok_or("the canary got no answer")?;
    let zero = || AtomicU64::new(0);
    let ended = AtomicBool::new(false);
    let load = Arc::new(Load { address, canary, ended, requests: zero(), refused: zero(), broken: zero() });
    let tasks: Vec<_> = (0..workers).map(|seed| tokio::spawn(work(load.clone(), Numbers(seed)))).collect();
    let began = Instant::now();
    let mut resident = Vec::new();
    let mut canaries = 0;
    while began.elapsed() < time {
        tokio::time::sleep(REPORT_EVERY.min(time - began.elapsed().min(time))).await;
        canaries += check_canary(&load).await;
        let (elapsed, kib) = (began.elapsed(), resident_kib());
        resident.push((elapsed, kib));
        report(&load, elapsed, kib, canaries).await;
    }
    load.ended.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await?;
    }
    canaries += check_canary(&load).await;
    let (early, late) = (within_eighth(&resident, time, 2), within_eighth(&resident, time, 8));
    let (early_kib, late_kib) = (middle(&early), middle(&late));
    // The sender is only gone if the server is, which the next line tells.
    let _ = end.send(());
    let stats = serving.await?.ok_or("no engine")?;
    let broken = load.broken.load(Ordering::Relaxed);
    println!("canary asked {canaries} times, {broken} times not as at first");
    println!(
        "resident {} MiB in the second eighth of the time, {} MiB in the last (medians of {} and {} readings)",
        early_kib >> 10,
        late_kib >> 10,
        early.len(),
        late.len()
    );
    println!(
        "pages held {} of {}; {} tokens, {} preemptions",
        stats.pages_held, stats.pages, stats.tokens, stats.preemptions
    );
    let settled = time / 8 >= SETTLED;
    if !settled {
        println!("too short a time to judge memory by: expected at least {} s", 8 * SETTLED.as_secs());
    }
    let is_read = !early.is_empty() && !late.is_empty();
    let is_flat = !settled || (is_read && late_kib <= early_kib + early_kib / 10);
    let is_tight = !settled || stats.preemptions > 0;
    let is_good = broken == 0 && stats.pages_held == 0 && is_flat && is_tight;
    println!("{}", if is_good { "good" } else { "NOT good" });
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn report(load: &Load, elapsed: Duration, kib: u64, canaries: u64) {
    let metrics = send(load.address, &request("GET", "/metrics", "")).await.unwrap_or_default();
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.rsplit(' ').next()).unwrap_or("?").to_string()
    };
    println!(
        "{:5.0} s  {:4} MiB  pages {:>3}  running {:>2}  waiting {:>2}  preempted {:>5}  requests {:>6}  refused {:>6}  canaries {canaries}",
        elapsed.as_secs_f64(),
        kib >> 10,
        value("tilewright_kv_pages_used"),
        value("tilewright_sequences_running"),
        value("tilewright_sequences_waiting"),
        value("tilewright_preemptions_total"),
        load.requests.load(Ordering::Relaxed),
        load.refused.load(Ordering::Relaxed),
    );
}

/// Resident memory of this process, server and load together; 0 where the system doesn't say.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// The readings of an eighth of the time, of which the first is 1. By the clock: a loaded machine reads less often.
fn within_eighth(readings: &[(Duration, u64)], time: Duration, nth: u32) -> Vec<u64> {
    let eighth_of = |elapsed: Duration| (elapsed.as_secs_f64() * 8.0 / time.as_secs_f64()) as u32 + 1;
    // The last reading may come late.
    let of_it = readings.iter().filter(|(elapsed, _)| eighth_of(*elapsed).min(8) == nth);
    of_it.map(|&(_, kib)| kib).collect()
}

/// The median; 0 of nothing.
fn middle(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

async fn work(load: Arc<Load>, mut numbers: Numbers) {
    while !load.ended.load(Ordering::Relaxed) {
        let answer = one(&load, &mut numbers).await;
        load.requests.fetch_add(1, Ordering::Relaxed);
        if answer.is_some_and(|answer| !answer.starts_with("HTTP/1.1 200")) {
            load.refused.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(numbers.below(200))).await;
    }
}

/// One request, good or bad; its response, where there is one.
async fn one(load: &Load, numbers: &mut Numbers) -> Option<String> {
    let prompt =
        ["fn main() {", "impl Iterator for ", "use std::", "/// Returns the"][numbers.below(4) as usize];
    let tokens = 1 + numbers.below(60);
    let mut body = json!({ "prompt": prompt.repeat(1 + numbers.below(30) as usize), "max_tokens": tokens });
    match numbers.below(14) {
        0..=2 => {}
        3 => body["stream"] = json!(true),
        4 => body["n"] = json!(4),
        5 => {
            body["echo"] = json!(true);
            body["logprobs"] = json!(5);
        }
        6 => {
            let chat = json!({ "messages": [{ "role": "user", "content": prompt }], "max_tokens": tokens, "stream": true });
            return post(load, CHAT, &chat.to_string()).await;
        }
        7 => return leave(load, &body, numbers.below(3000)).await,
        8 => return post(load, TEXT, &format!("{{\"prompt\": {}", "[".repeat(50_000))).await,
        9 => return post(load, TEXT, &"x".repeat(5 << 20)).await,
        10 => body["n"] = json!(1_000_000_000),
        11 => body["prompt"] = json!([[99_999_999]]),
        12 => body["stop"] = json!(vec!["x"; 100_000]),
        _ => {
            // A head that never ends.
            let mut stream = TcpStream::connect(load.address).await.ok()?;
            stream.write_all(b"POST /v1/completions HTTP/1.1\r\nX-").await.ok()?;
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.ok()?;
            return None;
        }
    }
    post(load, TEXT, &body.to_string()).await
}

/// Asks for a stream and leaves after some bytes of it.
async fn leave(load: &Load, body: &Value, bytes: u64) -> Option<String> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    body["max_tokens"] = json!(200);
    let mut stream = TcpStream::connect(load.address).await.ok()?;
    stream.write_all(request("POST", TEXT, &body.to_string()).as_bytes()).await.ok()?;
    let mut some = vec![0; bytes as usize];
    stream.read_exact(&mut some).await.ok()?;
    None
}

fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

async fn post(load: &Load, path: &str, body: &str) -> Option<String> {
    send(load.address, &request("POST", path, body)).await
}

/// The whole response, head and body.
async fn send(address: SocketAddr, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.ok()?;
    String::from_utf8(bytes).ok()
}

/// The canary's text, once the queue lets it in.
async fn ask_canary(address: SocketAddr) -> Option<String> {
    let body =
        json!({ "prompt": "fn main() {\n    let mut v = Vec::new();\n", "temperature": 0, "max_tokens": 24 });
    for _ in 0..600 {
        let answer = send(address, &request("POST", TEXT, &body.to_string())).await?;
        if answer.starts_with("HTTP/1.1 200") {
            let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
            return body["choices"][0]["text"].as_str().map(str::to_string);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    None
}

/// Asks the canary again; 1, for the count.
async fn check_canary(load: &Load) -> u64 {
    let said = ask_canary(load.address).await;
    if said.as_deref() != Some(&load.canary) {
        load.broken.fetch_add(1, Ordering::Relaxed);
        println!("the canary says {said:?}, not {:?}", load.canary);
    }
    1
}
