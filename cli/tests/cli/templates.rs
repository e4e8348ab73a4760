//! Checkpoints whose chat template is out for the server: what they harm is the process that renders their chats, and that chat alone.

use std::fs;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command};
use std::time::{Duration, Instant};

use serde_json::{Value, json as value};
use tempfile::TempDir;

use crate::common::{assert_refused, workspace};
use crate::serve::start;

/// What a refused chat may take, in a debug build on a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// Resident memory of the server, at its peak. The smaller demo model takes a tenth of it.
const MAX_SERVER_KIB: u64 = 256 << 10;
/// A chat's message on which the template does nothing bad.
const HARMLESS: &str = "fn main() {";

/// What the template does when the chat's first message is `bomb N`.
const BOMBS: &[&str] = &[
    // Values that hold themselves.
    "{% set ns.x = ns %}{{ ns }}",
    "{% set ns.x = ns %}{{ [ns] }}",
    "{% set ns.x = ns %}{{ raise_exception(ns) }}",
    "{% set ns.x = ns %}{{ debug() }}",
    "{% set ns.x = ns %}{{ ns | pprint }}",
    "{% set ns.x = ns %}{{ ns | tojson }}",
    // Values that are cheap until they are looked at.
    "{% set ns.x = [1] %}{% for a in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | join }}",
    "{% set ns.x = [1] %}{% for a in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "{% set ns.x = 'x' %}{% for a in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    // Values that are deep.
    "{% for a in range(20000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "{% for a in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    // Texts that are wide.
    "{{ '{:10000000000}'.format(1) }}",
    "{{ '%10000000000d' | format(1) }}",
    "{{ 'x' | indent(10000000000) }}",
    "{{ 'x' * 10000000000 }}",
    "{{ 'x'.replace('x', 'x' * 100000000) }}",
    "{{ messages | tojson(indent=10000000000) }}",
    "{{ messages | tojson(indent=10000000) }}",
    "{{ [1] * 10000000000 | list }}",
    "{{ range(10000000000) | list }}",
    // Much work.
    "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    // Python's insides, a long refusal, and a prompt of nothing.
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ ().__class__.__mro__[1].__subclasses__() }}",
    "{{ raise_exception('x' * 100000) }}",
    "",
];

/// The bomb whose work has no end that anybody would live to see.
const ENDLESS: usize = 6;

/// Templates that overflow a parser's stack.
fn deep_templates() -> [String; 5] {
    let repeated = |head: &str, part: &str, count, tail: &str| head.to_string() + &part.repeat(count) + tail;
    [
        repeated("{{ ", "not ", 200_000, "1 }}"),
        repeated("{{ 1", "+1", 200_000, " }}"),
        repeated("{{ a", ".a", 200_000, " }}"),
        repeated("{{ a", "|upper", 200_000, " }}"),
        repeated("{% if 0 %}", "{% elif 0 %}", 200_000, "{% endif %}"),
    ]
}

/// A copy of the smaller demo model with a chat template.
fn checkpoint(template: &str) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for file in fs::read_dir(workspace("models/demo/draft")).expect("the demo model") {
        let file = file.expect("a file");
        fs::copy(file.path(), dir.path().join(file.file_name())).expect("copied");
    }
    fs::write(dir.path().join("chat_template.jinja"), template).expect("written");
    dir
}

/// A server, which is killed if its test fails.
struct Served {
    process: Child,
    address: String,
    /// Open, so that it can say how it ends.
    _stderr: BufReader<ChildStderr>,
}

impl Served {
    /// A server of a checkpoint with a template.
    fn of(template: &str) -> (Served, TempDir) {
        let dir = checkpoint(template);
        let (process, _stderr, address) = start(&["-m", dir.path().to_str().expect("UTF-8")]);
        (Served { process, address, _stderr }, dir)
    }

    fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends a chat of one message.
    fn send(&self, content: &str) -> TcpStream {
        let messages = value!([{ "role": "user", "content": content }]);
        let body = value!({ "messages": messages, "max_tokens": 4, "temperature": 0 }).to_string();
        let mut connection = TcpStream::connect(&self.address).expect("a connection");
        let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json";
        write!(connection, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).expect("sent");
        connection
    }

    fn ask(&self, content: &str) -> (u16, Value) {
        receive(self.send(content), content)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
    }
}

/// A template that goes off at the chats that ask for it.
fn bombs() -> String {
    let mut template = "{% set ns = namespace() %}".to_string();
    for (number, bomb) in BOMBS.iter().enumerate() {
        template += &format!("{{% if messages[0].content == 'bomb {number}' %}}{bomb}{{% endif %}}");
    }
    template + "{% if not messages[0].content.startswith('bomb') %}{{ messages[0].content }}{% endif %}"
}

/// The status and body of a response.
fn receive(mut connection: TcpStream, whose: &str) -> (u16, Value) {
    connection.set_read_timeout(Some(3 * SOON)).expect("a limit");
    let mut response = String::new();
    connection.read_to_string(&mut response).unwrap_or_else(|error| panic!("{whose}: {error}"));
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{whose}: {response:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, serde_json::from_str(body).expect("JSON"))
}

/// A number of a process's `/proc/PID/status`.
fn status_of(process: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Processes that another started and that still run.
fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("processes");
    let processes = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes
        .filter(|&process| status_of(process, "PPid") == Some(u64::from(parent)) && runs(process))
        .collect()
}

/// The letter of a process's state.
fn state_of(process: u32) -> Option<char> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("State:"))?.trim().chars().next()
}

/// Whether a process is there, and not just for its parent to take note of its end.
fn runs(process: u32) -> bool {
    state_of(process).is_some_and(|state| !"ZX".contains(state))
}

/// A server's renderers once one of them computes, which they don't while they wait for a chat.
fn once_one_renders(server: &Served) -> Vec<u32> {
    let began = Instant::now();
    loop {
        let rendering = children(server.id());
        if rendering.iter().any(|&process| state_of(process) == Some('R')) {
            return rendering;
        }
        assert!(began.elapsed() < SOON, "nothing renders: {rendering:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_gone(processes: &[u32]) {
    let began = Instant::now();
    while processes.iter().any(|&process| runs(process)) {
        assert!(began.elapsed() < SOON, "still there: {processes:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_bomb_goes_off_where_it_harms_its_own_chat_alone() {
    let (mut server, _dir) = Served::of(&bombs());
    let (status, expected) = server.ask(HARMLESS);
    assert_eq!(status, 200, "{expected}");
    for (number, bomb) in BOMBS.iter().enumerate() {
        let began = Instant::now();
        let (status, refusal) = server.ask(&format!("bomb {number}"));
        assert!(began.elapsed() < SOON, "{bomb} took {:?}", began.elapsed());
        let error = &refusal["error"];
        assert_eq!((status, &error["param"]), (400, &"messages".into()), "{bomb}: {refusal}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.starts_with("messages: expected "), "{bomb}: {message}");
        assert!(!message.contains('\n') && message.len() < 420, "{bomb}: {message}");
        let (status, answer) = server.ask(HARMLESS);
        assert_eq!((status, &answer["choices"]), (200, &expected["choices"]), "after {bomb}: {answer}");
    }
    let peak = status_of(server.id(), "VmHWM").expect("a server that runs");
    assert!(peak < MAX_SERVER_KIB, "a peak of {peak} KiB");
    let rendering = children(server.id());
    assert!(!rendering.is_empty());
    for process in &rendering {
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).expect("a process that runs");
        let limited = |name: &str, soft: &str| {
            limits
                .lines()
                .any(|line| line.strip_prefix(name).is_some_and(|line| line.trim().starts_with(soft)))
        };
        assert!(
            limited("Max address space", "536870912 ") && limited("Max core file size", "0 "),
            "{limits}"
        );
        // What a terminal or a supervisor sends to all processes is for the server alone.
        for signal in ["-INT", "-TERM"] {
            let told = Command::new("kill").args([signal, &process.to_string()]).status().expect("kill");
            assert!(told.success());
        }
    }
    assert_eq!(server.ask(HARMLESS).1["choices"], expected["choices"]);
    assert_eq!(children(server.id()), rendering);
    let told = Command::new("kill").arg(server.id().to_string()).status().expect("kill");
    assert!(told.success() && server.process.wait().expect("an end").success());
    assert_gone(&rendering);
}

#[test]
fn nothing_renders_on_after_a_server_that_was_killed() {
    let (mut server, _dir) = Served::of(&bombs());
    assert_eq!(server.ask(HARMLESS).0, 200);
    let _under_way = server.send(&format!("bomb {ENDLESS}"));
    let rendering = once_one_renders(&server);
    server.process.kill().expect("killed");
    server.process.wait().expect("an end");
    assert_gone(&rendering);
}

#[test]
fn a_chat_that_nobody_waits_for_is_rendered_no_longer() {
    let (server, _dir) = Served::of(&bombs());
    assert_eq!(server.ask(HARMLESS).0, 200);
    let under_way = server.send(&format!("bomb {ENDLESS}"));
    let rendering = once_one_renders(&server);
    drop(under_way);
    assert_gone(&rendering);
    assert_eq!(server.ask(HARMLESS).0, 200);
}

#[test]
fn chats_that_take_long_do_not_keep_texts_waiting() {
    let (server, _dir) = Served::of(&bombs());
    let under_way: Vec<TcpStream> = (0..8).map(|_| server.send(&format!("bomb {ENDLESS}"))).collect();
    once_one_renders(&server);
    let mut connection = TcpStream::connect(&server.address).expect("a connection");
    let body = r#"{"prompt": "fn main() {", "max_tokens": 4}"#;
    let head =
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json";
    write!(connection, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).expect("sent");
    assert_eq!(receive(connection, "a text").0, 200);
    // Two at a time or four, the last of eight ends later.
    let last = under_way.last().expect("a chat");
    last.set_nonblocking(true).expect("a socket");
    let waits = last.peek(&mut [0]).expect_err("a chat that was answered before");
    assert_eq!(waits.kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_template_too_deep_to_read_is_refused() {
    for template in deep_templates() {
        let dir = checkpoint(&template);
        // A server that got beyond its template would fail at its address.
        assert_refused(
            &[
                "serve",
                "--device",
                "cpu",
                "--host",
                "nowhere.invalid",
                "-m",
                dir.path().to_str().expect("UTF-8"),
            ],
            &["chat_template.jinja: expected a chat template, found "],
        );
    }
}

#[test]
fn a_template_that_is_no_text_is_refused() {
    let dir = checkpoint("");
    let path = dir.path().join("chat_template.jinja");
    fs::write(&path, b"a\xff").expect("written");
    let dir = dir.path().to_str().expect("UTF-8");
    let found = "expected UTF-8 text, found invalid utf-8 sequence of 1 bytes from index 1";
    assert_refused(&["serve", "--device", "cpu", "-m", dir], &[&format!("{}: {found}", path.display())]);
}

#[test]
fn a_template_that_repeats_a_chat_has_the_bounds_of_a_body() {
    let (server, _dir) = Served::of("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}");
    for (bytes, said) in [
        (2_100_000, "messages: expected a chat whose prompt has at most 4194304 bytes, found 4200000"),
        (2_000_000, "messages: expected fewer than 2048 tokens, found at least "),
    ] {
        let (status, body) = server.ask(&"a".repeat(bytes));
        assert_eq!((status, body["error"]["param"].as_str()), (400, Some("messages")), "{body}");
        let message = body["error"]["message"].as_str().expect("a message");
        assert!(message.starts_with(said), "{message}");
    }
}

#[test]
fn what_is_no_servers_input_is_called_input() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("input");
    let template = value!({ "source": "", "special_tokens": {} });
    for (input, what) in [
        ("nonsense\n".to_string(), "a template"),
        ("no end of a line".to_string(), "a template"),
        (format!("{template}\n[]\n"), "a chat"),
    ] {
        fs::write(&path, input).expect("written");
        let said = refusal_of(&path);
        let expected = format!("error: standard input: expected {what} as JSON on a line, found ");
        assert!(said.starts_with(&expected) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn a_line_without_an_end_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("input");
    let template = value!({ "source": "", "special_tokens": {} });
    for before in [String::new(), format!("{template}\n")] {
        fs::write(&path, &before).expect("written");
        // Sparse: it takes no room.
        let file = fs::OpenOptions::new().append(true).open(&path).expect("opened");
        file.set_len(1 << 40).expect("made longer");
        let said = refusal_of(&path);
        assert_eq!(said, "error: standard input: expected lines of at most 134217728 bytes, found more\n");
    }
}

/// What the process that renders chats says of input that is no server's.
fn refusal_of(input: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tilewright"))
        .arg("render-chats")
        .stdin(fs::File::open(input).expect("opened"))
        .output()
        .expect("the binary starts");
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).expect("UTF-8")
}
