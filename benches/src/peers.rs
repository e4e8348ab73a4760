//! The peers: a Python program that is handed a line a cell and answers with lines of timings, in the same process tree or before.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tilewright::checkpoint::read_any;

use crate::{
    cells::{Cell, Mode},
    error::{Error, Result},
    problem::Problem,
    report::{Ceiling, Failure, Report, Row},
    stats::Stats,
};

/// Some peers compile themselves on first use.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of a file of answers.
const MAX_BYTES: u64 = 64 << 20;

/// What a peer is asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Request<'c> {
    /// The cell.
    #[serde(flatten)]
    pub cell: &'c Cell,
    /// Timings.
    pub iters: usize,
    /// Milliseconds of work before the first timing.
    pub warm_ms: u64,
    /// Inputs are rotated until they are as large as this.
    pub cold_bytes: usize,
}

/// What a peer answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Answer {
    /// Before all else: who takes part.
    Ready { versions: Vec<String> },
    /// One peer's timings of one cell.
    Time { cell: String, by: String, mode: Mode, sets: usize, cold: bool, times_us: Vec<f64> },
    /// One peer's refusal of one cell.
    Failure(Failure),
    /// What the device can do.
    Ceiling(Ceiling),
    /// All of a request's answers have been given.
    Done,
}

impl Report {
    /// Takes an answer over, if it is of one of `cells`.
    pub fn take(&mut self, answer: Answer, cells: &[Cell]) {
        match answer {
            Answer::Ready { versions } => self.peers.extend(versions),
            Answer::Ceiling(ceiling) => self.ceilings.push(ceiling),
            Answer::Failure(failure) => self.failures.push(failure),
            Answer::Done => {}
            Answer::Time { cell, by, mode, sets, cold, times_us } => {
                let Some(cell) = cells.iter().find(|known| known.key == cell) else { return };
                match Stats::of(&times_us) {
                    Some(time) => self.results.push(Row::new(cell, &by, false, mode, sets, cold, time)),
                    None => self.failures.push(Failure {
                        cell: cell.key.clone(),
                        by,
                        reason: "its timings are no positive numbers".into(),
                    }),
                }
            }
        }
    }
}

/// A line of a peer's output.
///
/// # Errors
/// [`Error::Json`] if it is none.
pub fn parse(line: &str, origin: &str) -> Result<Answer> {
    serde_json::from_str(line).map_err(|source| Error::Json {
        origin: origin.to_string(),
        expected: "a line of a peer's answer",
        source,
    })
}

/// The answers in a file or a pipe, which is read to its end.
///
/// # Errors
/// A file that can't be read or is no text; [`Error::Json`] naming the line.
pub fn read(path: &Path) -> Result<Vec<Answer>> {
    let no_text =
        |error| Error::File { path: path.into(), source: io::Error::new(ErrorKind::InvalidData, error) };
    let text = String::from_utf8(read_any(path, MAX_BYTES)?).map_err(no_text)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(index, line)| parse(line, &format!("{}, line {}", path.display(), index + 1))).collect()
}

/// The kernels that peers compile for `cells`, as the script names them.
pub fn compiled_for(cells: &[Cell]) -> Vec<String> {
    let mut names = Vec::new();
    for cell in cells.iter().filter(|cell| cell.has_peers()) {
        match cell.problem {
            // FlashInfer's kernels for Hopper have no other head dims.
            Problem::Prefill(problem) if [64, 128, 256].contains(&problem.head_dim) => {
                names.push(format!("prefill{}", problem.head_dim))
            }
            Problem::Decode(problem) => names.push(format!("decode{}", problem.head_dim)),
            _ => {}
        }
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// The program, running.
pub struct Peers {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Peers {
    /// Starts `script`, which first compiles what `cells` need; until then it isn't [`ready`](Peers::ready).
    ///
    /// # Errors
    /// [`Error::Peers`] if it doesn't start.
    pub fn start(python: &str, script: &Path, cells: &[Cell]) -> Result<Peers> {
        let mut command = Command::new(python);
        command
            .arg(script)
            .arg("--compile")
            .args(compiled_for(cells))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|error| Error::Peers(format!("cannot run '{python} {}': {error}", script.display())))?;
        let (sender, lines) = channel();
        let stdout = child.stdout.take();
        std::thread::spawn(move || {
            let Some(stdout) = stdout else { return };
            for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let stdin = child.stdin.take();
        Ok(Peers { child, stdin, lines })
    }

    fn next(&mut self) -> Result<Answer> {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).map_err(|error| match error {
                RecvTimeoutError::Timeout => Error::Peers(format!("no answer in {} s", PATIENCE.as_secs())),
                RecvTimeoutError::Disconnected => Error::Peers("they ended before they had answered".into()),
            })?;
            // Libraries print what they like: an answer begins as JSON does.
            if line.starts_with('{') {
                return parse(&line, "the peers' script");
            }
            eprintln!("peers: {line}");
        }
    }

    /// Waits until it has loaded and compiled what it needs.
    ///
    /// # Errors
    /// [`Error::Peers`] if it ends instead, or takes too long.
    pub fn ready(&mut self) -> Result<Answer> {
        self.next()
    }

    /// Asks for one cell and waits for all answers.
    ///
    /// # Errors
    /// [`Error::Peers`] if it ends instead, or takes too long.
    pub fn ask(&mut self, request: &Request<'_>) -> Result<Vec<Answer>> {
        let line = serde_json::to_string(request).map_err(|error| Error::Peers(error.to_string()))?;
        self.send(&line)
    }

    /// Asks for the ceilings.
    ///
    /// # Errors
    /// [`Error::Peers`] if it ends instead, or takes too long.
    pub fn ceilings(&mut self) -> Result<Vec<Answer>> {
        self.send("{\"ceilings\": true}")
    }

    fn send(&mut self, line: &str) -> Result<Vec<Answer>> {
        let Some(stdin) = &mut self.stdin else { return Ok(Vec::new()) };
        writeln!(stdin, "{line}")
            .and_then(|()| stdin.flush())
            .map_err(|error| Error::Peers(format!("they ended: {error}")))?;
        let mut answers = Vec::new();
        loop {
            match self.next()? {
                Answer::Done => return Ok(answers),
                answer => answers.push(answer),
            }
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // At the end of its input it ends by itself; one that hangs doesn't.
        drop(self.stdin.take());
        for _ in 0..50 {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cells, report};

    #[test]
    fn a_request_names_all_that_a_peer_needs() {
        let cells = cells::select(&[], &["decode/bf16/8x4096".into()]).expect("a cell");
        let request = Request { cell: &cells[0], iters: 20, warm_ms: 100, cold_bytes: 1 << 28 };
        let value = serde_json::to_value(&request).expect("numbers and strings");
        assert_eq!(value["cell"], "decode/bf16/8x4096");
        assert_eq!(value["mode"], "graph");
        assert_eq!(value["problem"]["op"], "decode");
        assert_eq!(value["problem"]["context"], 4096);
        assert_eq!(value["cold_bytes"], 1 << 28);
    }

    #[test]
    fn answers_become_rows_and_failures() {
        let cells = cells::select(&["decode/bf16".into()], &[]).expect("cells");
        let mut report = report::sample();
        let (rows, ceilings) = (report.results.len(), report.ceilings.len());
        for line in [
            r#"{"kind": "ready", "versions": ["torch 2.11"]}"#,
            r#"{"kind": "ceiling", "name": "read", "by": "torch", "limit": "bandwidth", "per_second": 4.3e12}"#,
            r#"{"kind": "time", "cell": "decode/bf16/8x4096", "by": "x", "mode": "events", "sets": 2, "cold": true, "times_us": [3, 1, 2]}"#,
            r#"{"kind": "time", "cell": "decode/bf16/1x4096", "by": "x", "mode": "graph", "sets": 2, "cold": true, "times_us": []}"#,
            r#"{"kind": "time", "cell": "no/such", "by": "x", "mode": "graph", "sets": 2, "cold": true, "times_us": [1]}"#,
            r#"{"kind": "failure", "cell": "decode/bf16/16x8192", "by": "y", "reason": "refused"}"#,
            r#"{"kind": "done"}"#,
        ] {
            report.take(parse(line, "a test").expect("an answer"), &cells);
        }
        assert_eq!(report.ceilings.len(), ceilings + 1);
        assert_eq!(report.results.len(), rows + 1);
        let row = &report.results[rows];
        assert_eq!((row.time.median_us, row.ours, row.sets, row.mode), (2.0, false, 2, Mode::Events));
        let reasons: Vec<&str> = report.failures.iter().map(|failure| failure.reason.as_str()).collect();
        assert_eq!(reasons, ["its timings are no positive numbers", "refused"]);
    }

    #[test]
    fn what_cells_need_is_compiled_once() {
        let needs = |only: &str| compiled_for(&cells::select(&[only.into()], &[]).expect("cells"));
        assert_eq!(needs("prefill"), ["prefill128", "prefill256", "prefill64"]);
        assert_eq!(needs("decode"), ["decode128"]);
        assert_eq!(needs("rope_append"), [""; 0]);
    }

    #[test]
    fn a_line_that_is_no_answer_is_refused_in_a_line() {
        let error =
            parse("{\"kind\": \"tme\"}", "peers.jsonl, line 3").expect_err("no such kind").to_string();
        assert!(error.starts_with("peers.jsonl, line 3: expected a line of a peer's answer: "), "{error}");
        assert!(!error.contains('\n'));
    }
}
