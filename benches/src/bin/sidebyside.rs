//! Times kernels beside their peers; see `benches/README.md`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, ValueEnum};
use tilewright_benches::{
    Error, Result,
    cells::{self, Cell, Mode},
    peers::Request,
    report::{self, Report},
};

/// What four times the L2 cache comes to on a Hopper GPU, for requests that are written without one.
const COLD_BYTES: usize = 240 << 20;

/// Times this project's kernels, each checked first, beside cuDNN, FlashAttention-2, FlashInfer and cuBLAS.
#[derive(Parser)]
struct Args {
    /// Cells under this name: 'decode', 'prefill/hd128/causal'; may be repeated.
    #[arg(long, value_name = "PREFIX")]
    only: Vec<String>,
    /// The cell of exactly this name; may be repeated.
    #[arg(long, value_name = "NAME")]
    cell: Vec<String>,
    /// Leaves out cells whose name holds this; may be repeated.
    #[arg(long, value_name = "PART")]
    skip: Vec<String>,
    /// Times only this kernel, by its stem; may be repeated.
    #[arg(long, value_name = "STEM")]
    kernel: Vec<String>,
    /// Timings of each row.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    iters: u32,
    /// Milliseconds of work before each row's first timing.
    #[arg(long, default_value_t = 60)]
    warm_ms: u64,
    /// How runs are timed, instead of graphs for short cells and events for the others.
    #[arg(long)]
    mode: Option<ModeArg>,
    /// Leaves inputs in the L2 cache instead of rotating them past it.
    #[arg(long)]
    warm: bool,
    /// Index of the GPU.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Runs the peers' script and alternates with it, cell by cell.
    #[arg(long, conflicts_with = "no_peers")]
    with_peers: bool,
    /// Takes the peers' timings from a file that the script wrote.
    #[arg(long, value_name = "FILE", conflicts_with = "no_peers")]
    peers: Option<PathBuf>,
    /// Times this project's kernels alone.
    #[arg(long)]
    no_peers: bool,
    /// The peers' script.
    #[arg(long, value_name = "FILE", default_value = "benches/peers/peers.py")]
    peers_script: PathBuf,
    /// The interpreter that has PyTorch.
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: String,
    /// Doesn't measure the ceilings.
    #[arg(long)]
    no_ceilings: bool,
    /// The commit that was built, where git can't say; else TILEWRIGHT_COMMIT.
    #[arg(long)]
    commit: Option<String>,
    /// Writes each cell's inputs and outputs into this folder, see benches/peers/attention_error.py.
    #[arg(long, value_name = "FOLDER")]
    dump: Option<PathBuf>,
    /// Prints the cells' names and measures nothing; with --requests, what the peers' script is asked.
    #[arg(long)]
    list: bool,
    /// With --list: a line of JSON a cell, the input of the peers' script.
    #[arg(long, requires = "list")]
    requests: bool,
    /// Shows a report instead of measuring one.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Writes the report as JSON, after every cell.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the report as a page with charts.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Writes the charts into this folder.
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeArg {
    Events,
    Graph,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Mode {
        match mode {
            ModeArg::Events => Mode::Events,
            ModeArg::Graph => Mode::Graph,
        }
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every kernel that was timed was right.
fn run(args: &Args) -> Result<bool> {
    if let Some(path) = &args.from {
        let report = load(path)?;
        show(args, &report)?;
        return Ok(true);
    }
    let mut cells = cells::select(&args.only, &args.cell)?;
    cells.retain(|cell| !args.skip.iter().any(|part| cell.key.contains(part.as_str())));
    if args.list {
        return list(args, &cells).map(|()| true);
    }
    measure(args, &cells)
}

fn list(args: &Args, cells: &[Cell]) -> Result<()> {
    for cell in cells {
        if !args.requests {
            println!("{}", cell.key);
            continue;
        }
        if !cell.has_peers() {
            continue;
        }
        let cell = &Cell { mode: args.mode.map_or(cell.mode, Mode::from), ..cell.clone() };
        let cold_bytes = if args.warm { 0 } else { COLD_BYTES };
        let request = Request { cell, iters: args.iters as usize, warm_ms: args.warm_ms, cold_bytes };
        let line = serde_json::to_string(&request).map_err(|error| Error::Peers(error.to_string()))?;
        println!("{line}");
    }
    Ok(())
}

#[cfg(feature = "cuda")]
fn measure(args: &Args, cells: &[Cell]) -> Result<bool> {
    use tilewright_benches::runner::{Options, Runner};

    let options = Options {
        device: args.device,
        iters: args.iters as usize,
        warm: std::time::Duration::from_millis(args.warm_ms),
        in_cache: args.warm,
        mode: args.mode.map(Mode::from),
        kernels: args.kernel.clone(),
        peers: args.with_peers.then(|| (args.python.clone(), args.peers_script.clone())),
        peers_file: args.peers.clone(),
        ceilings: !args.no_ceilings,
        commit: args.commit.clone(),
        dump: args.dump.clone(),
    };
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    let began = std::time::Instant::now();
    let mut runner = Runner::start(options, cells, command)?;
    eprintln!("{}: ready after {:.1} s", runner.report().machine.device, began.elapsed().as_secs_f64());
    runner.ceilings()?;
    eprintln!("ceilings after {:.1} s", began.elapsed().as_secs_f64());
    for cell in cells {
        runner.cell(cell, |report, row| {
            let rate = row.telling();
            let rate = report.unit(rate).in_words(row.per_second(rate));
            let speedup =
                report.speedup(row).map_or(String::new(), |speedup| format!(", {speedup:.2}x the best peer"));
            let seconds = began.elapsed().as_secs_f64();
            eprintln!(
                "{seconds:6.1} s  {} {}: {:.2} us, {rate}{speedup}",
                row.cell, row.by, row.time.median_us
            );
        })?;
        if let Some(path) = &args.json {
            save(path, runner.report())?;
        }
    }
    show(args, runner.report())?;
    Ok(runner.wrong() == 0)
}

#[cfg(not(feature = "cuda"))]
fn measure(_: &Args, _: &[Cell]) -> Result<bool> {
    Err(Error::NoCuda)
}

fn load(path: &Path) -> Result<Report> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.into(), source })?;
    let mut report: Report = serde_json::from_str(&text).map_err(|source| Error::Json {
        origin: path.display().to_string(),
        expected: "a report of this program",
        source,
    })?;
    // Earlier reports don't say it.
    report.results.iter_mut().for_each(|row| row.disturbed = row.time.is_disturbed());
    Ok(report)
}

fn save(path: &Path, report: &Report) -> Result<()> {
    let origin = || path.display().to_string();
    let text = serde_json::to_string_pretty(report).map_err(|source| Error::Json {
        origin: origin(),
        expected: "a report",
        source,
    })?;
    write(path, &(text + "\n"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|source| Error::File { path: path.into(), source })
}

fn show(args: &Args, report: &Report) -> Result<()> {
    print!("{}", report::table(report));
    if let Some(note) = report.disturbance() {
        eprintln!("note: {note}");
    }
    write_outputs(args, report)
}

fn write_outputs(args: &Args, report: &Report) -> Result<()> {
    if let Some(path) = &args.json {
        save(path, report)?;
    }
    if let Some(path) = &args.html {
        write(path, &report::page(report)?)?;
    }
    if let Some(folder) = &args.svg {
        std::fs::create_dir_all(folder).map_err(|source| Error::File { path: folder.clone(), source })?;
        for chart in report::bars(report)?.into_iter().chain(report::roofline(report)?) {
            write(&folder.join(format!("{}.svg", chart.name)), &chart.svg)?;
        }
    }
    Ok(())
}
