//! `bench`: kernels and whole models against what the device was seen to do.

mod cells;
mod end_to_end;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tilewright::cache::kv_dtype;
use tilewright::config::ModelConfig;
use tilewright::{DeviceChoice, KvDType};
use tilewright_benches::cells::Cell;
use tilewright_benches::cpu::{CpuRunner, Effort};
use tilewright_benches::peers::{self, Answer};
use tilewright_benches::report::{Report, page, table};

use crate::load::{measuring, model_dir};
use crate::output::{Failure, check_writable, print_and_write, print_json, print_line};

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Attention of prompts
    Attention,
    /// Products with weights of each format
    Gemm,
    /// Writing keys and values
    Kv,
    /// Attention of new tokens over cached ones
    Decode,
    /// Whole models
    E2e,
    /// All of it
    All,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to time
    #[arg(value_enum, default_value = "all")]
    pub what: What,
    /// Shapes of a published model (see 'plan --list'); may be given again [default: on a GPU a set of its own, on a CPU the demo model's
    /// and llama-3.2-1b's]
    #[arg(long, value_name = "NAME")]
    pub preset: Vec<String>,
    /// Tokens of a prompt [default: 4096, on a CPU 512]
    #[arg(long, value_name = "TOKENS")]
    pub seq: Option<usize>,
    /// Prompts, and sequences that decode [default: 4, on a CPU 1]
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Tokens cached of each sequence that decodes [default: 4096]
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// Rows of products; may be given again [default: 1, 16 and 4096, on a CPU 1 and 64]
    #[arg(long, value_name = "N")]
    pub rows: Vec<usize>,
    /// Folder of the checkpoint that e2e runs [default: the bundled demo model]
    #[arg(short, long = "model", value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// What e2e caches keys and values as: auto (bf16 on a GPU, f32 on a CPU), int8 or fp8
    #[arg(long, default_value = "auto", value_name = "DTYPE", value_parser = kv_dtype)]
    pub kv_dtype: KvDType,
    /// Timings of each row
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub iters: u32,
    /// Milliseconds of work before each row's first timing
    #[arg(long, default_value_t = 60, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=60_000))]
    pub warm_ms: u64,
    /// A trial in seconds: small shapes, few timings
    #[arg(long)]
    pub quick: bool,
    /// Timings of peers to merge in: what benches/peers/peers.py wrote for the same cells
    #[arg(long, value_name = "FILE")]
    pub peers: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Write a page with roofline and charts, which needs nothing beside it
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

impl BenchArgs {
    /// Whether whole models are among what is timed.
    fn runs_models(&self) -> bool {
        matches!(self.what, What::E2e | What::All)
    }
}

pub fn run(args: &BenchArgs) -> Result<ExitCode, Failure> {
    check(args)?;
    check_writable(args.html.as_deref())?;
    let peers = peers_of(args)?;
    let (mut report, wrong) = match args.device {
        DeviceChoice::Cpu | DeviceChoice::CpuBf16 => on_cpu(args, peers)?,
        DeviceChoice::Cuda(index) => on_gpu(args, index, peers)?,
        DeviceChoice::Auto => match on_gpu(args, 0, peers.clone()) {
            Ok(done) => done,
            Err(Failure::BrokenPipe) => return Err(Failure::BrokenPipe),
            Err(Failure::Message(reason)) => {
                if cfg!(feature = "cuda") {
                    eprintln!("note: running on the CPU: {reason}");
                }
                on_cpu(args, peers)?
            }
        },
    };
    if args.runs_models() {
        measuring("whole models");
        report.end_to_end = end_to_end::measure(args, &report)?;
    }
    let page = match &args.html {
        Some(path) => Some((&**path, page(&report).map_err(failure)?)),
        None => None,
    };
    let print = || if args.json { print_json(&report) } else { print_line(table(&report).trim_end()) };
    print_and_write(print, page)?;
    if let Some(note) = report.disturbance() {
        eprintln!("note: {note}");
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn failure(error: tilewright_benches::Error) -> Failure {
    Failure::Message(error.to_string())
}

/// Refuses, before anything is measured for nothing, sizes of no tokens, and those that no machine has memory for.
fn check(args: &BenchArgs) -> Result<(), Failure> {
    if args.runs_models() {
        ModelConfig::load(&model_dir(args.model.as_ref())?)?;
    }
    const MOST: usize = 1 << 22;
    let sizes = [("seq", args.seq), ("batch", args.batch), ("context", args.context)];
    let rows = args.rows.iter().map(|&rows| ("rows", Some(rows)));
    for (what, size) in sizes.into_iter().chain(rows) {
        if let Some(size) = size.filter(|size| !(1..=MOST).contains(size)) {
            return Err(Failure::expected(what, &format!("1 to {MOST}"), &size));
        }
    }
    let tokens = |tokens: Option<usize>| tokens.unwrap_or(1) * args.batch.unwrap_or(1);
    let most = tokens(args.seq).max(tokens(args.context));
    if most > MOST {
        return Err(Failure::expected("batch", &format!("at most {MOST} tokens in all"), &most));
    }
    Ok(())
}

/// What the peers answered, which a pipe tells once.
fn peers_of(args: &BenchArgs) -> Result<Vec<Answer>, Failure> {
    let Some(path) = &args.peers else { return Ok(Vec::new()) };
    peers::read(path).map_err(|error| Failure::Message(format!("--peers: {error}")))
}

fn take_peers(peers: Vec<Answer>, report: &mut Report, cells: &[Cell]) {
    peers.into_iter().for_each(|answer| report.take(answer, cells));
    report.apply_ceilings();
}

fn command() -> String {
    std::env::args().collect::<Vec<_>>().join(" ")
}

/// The report, and how many operations were wrong.
fn on_cpu(args: &BenchArgs, peers: Vec<Answer>) -> Result<(Report, usize), Failure> {
    let cells = cells::of(args, false)?;
    let effort = Effort {
        iters: if args.quick { 3 } else { args.iters as usize },
        warm: Duration::from_millis(if args.quick { 1 } else { args.warm_ms }),
    };
    measuring("what this CPU can do");
    let mut runner = CpuRunner::start(effort, None, command());
    for cell in &cells {
        measuring(&cell.key);
        runner.cell(cell).map_err(failure)?;
    }
    take_peers(peers, &mut runner.report, &cells);
    let wrong = runner.wrong();
    Ok((runner.report, wrong))
}

#[cfg(feature = "cuda")]
fn on_gpu(args: &BenchArgs, index: usize, peers: Vec<Answer>) -> Result<(Report, usize), Failure> {
    use tilewright_benches::runner::{Options, Runner};

    let cells = cells::of(args, true)?;
    let options = Options {
        device: index,
        iters: if args.quick { 5 } else { args.iters as usize },
        warm: Duration::from_millis(if args.quick { 5 } else { args.warm_ms }),
        in_cache: false,
        mode: None,
        kernels: Vec::new(),
        peers: None,
        peers_file: None,
        ceilings: true,
        commit: None,
        dump: None,
    };
    let mut runner = Runner::start(options, &cells, command()).map_err(failure)?;
    runner.ceilings().map_err(failure)?;
    for cell in &cells {
        measuring(&cell.key);
        runner.cell(cell, |_, _| {}).map_err(failure)?;
    }
    let (mut report, wrong) = (runner.report().clone(), runner.wrong());
    take_peers(peers, &mut report, &cells);
    Ok((report, wrong))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &BenchArgs, index: usize, _: Vec<Answer>) -> Result<(Report, usize), Failure> {
    Err(Failure::Message(format!(
        "cuda:{index}: this program was built without CUDA; build it with --features cuda"
    )))
}
