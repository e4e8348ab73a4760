//! The chores of this workspace: `cargo xtask <chore>`.

mod ptx;
mod stub_cuda;
mod tidy;
mod workspace;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

/// What a chore ends with: nothing to say, or one line naming what failed.
type Outcome<T = ()> = Result<T, String>;

#[derive(Parser)]
#[command(name = "xtask", about = "The chores of this workspace")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Make kernels/ptx/*.ptx and its REPORT.md from kernels/src.
    Ptx {
        /// Build elsewhere and compare instead; the compiler must be the same for a difference to count.
        #[arg(long)]
        check: bool,
    },
    /// Print what each kernel takes: registers, spills, stack, shared memory.
    Report,
    /// Check what no compiler does: dependencies between crates, the home of assembly, current PTX, no local paths.
    Tidy,
    /// Run one kernel under emulation on a case of your choice, and print what it did; 'emulate --help' lists kernels and shapes.
    #[command(disable_help_flag = true)]
    Emulate {
        /// Passed on.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Make docs/cli.md from the command's own help.
    CliDocs,
    /// Make DIR look like a CUDA installation: enough to compile, lint and link the feature `cuda`, not to run it.
    StubCuda {
        /// Where to put it; pass it on as CUDA_LIBRARY_PATH.
        dir: PathBuf,
    },
}

/// The tests' crate has the suites, so its binary does the work, says what failed, and ends with the code for it.
fn emulate(args: &[String]) -> Outcome<ExitCode> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let ended = Command::new(cargo)
        .args(["run", "--quiet", "--package", "tilewright-tests", "--bin", "emulate", "--"])
        .args(args)
        .status()
        .map_err(|e| format!("cannot run cargo: {e}"))?;
    Ok(ended.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The command knows its own help; a test of it holds the page to this.
fn cli_docs(root: &Path) -> Outcome {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["run", "--quiet", "--package", "tilewright-cli", "--", "reference"])
        .output()
        .map_err(|e| format!("cannot run cargo: {e}"))?;
    if !output.status.success() {
        return Err(format!("'tilewright reference' failed: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let path = root.join("docs/cli.md");
    std::fs::write(&path, &output.stdout).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

fn main() -> ExitCode {
    let root = workspace::root();
    let outcome = match Args::parse().chore {
        Chore::Ptx { check: false } => ptx::generate(root),
        Chore::Ptx { check: true } => ptx::check(root),
        Chore::Report => ptx::report(root),
        Chore::CliDocs => cli_docs(root),
        Chore::Tidy => tidy::check(root),
        Chore::Emulate { args } => return emulate(&args).unwrap_or_else(failed),
        Chore::StubCuda { dir } => stub_cuda::make(root, &dir),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => failed(message),
    }
}

fn failed(message: String) -> ExitCode {
    eprintln!("xtask: {message}");
    ExitCode::FAILURE
}
