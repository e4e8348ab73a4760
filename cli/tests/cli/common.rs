//! Runs the binary, and makes checkpoints to run it on.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A path below the workspace.
pub fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The binary with nothing on standard input.
pub fn tilewright(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tilewright"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts")
}

/// Standard output of a run that must succeed, as JSON.
pub fn json(args: &[&str]) -> Value {
    let output = tilewright(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

/// Asserts that a run fails with one line that holds each of `parts`.
#[track_caller]
pub fn assert_refused(args: &[&str], parts: &[&str]) {
    let output = tilewright(args);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {:?} {stderr}", output.status);
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}: something on standard output");
    for part in parts {
        assert!(stderr.contains(part), "{args:?}: no {part:?} in {stderr}");
    }
}
