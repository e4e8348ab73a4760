//! Times every kernel that solves a cell, and the peers beside it.

use std::{
    collections::HashSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use tilewright_host::gpu::{Driver, cuda::CudaDriver};

use crate::{
    cells::{self, Cell, Mode},
    check::{Extent, check, check_small},
    dump::dump,
    error::{Error, Result},
    kernels::{self, Kernel},
    machine::{Machine, Sampler, commit, driver_version, now},
    measure::{Effort, times_us},
    peers::{Peers, Request, read},
    prepared::Prepared,
    problem::Problem,
    random::Kind,
    report::{Ceiling, Failure, Limit, Report, Row, SCHEMA},
    stats::Stats,
};

/// Input sets are rotated until together they are this many times the L2 cache.
const COLD_L2: usize = 4;
/// Input sets at most.
const MOST_SETS: usize = 64;
/// Bytes that are copied to measure the bandwidth.
const CEILING_BYTES: usize = 2 << 30;
/// The cell whose product is the most that arithmetic does, where no peer says.
const CEILING_PRODUCT: &str = "gemm/bf16/8192x8192x8192";

/// What a run is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The GPU's index.
    pub device: usize,
    /// Timings of each row.
    pub iters: usize,
    /// Work before each row's first timing.
    pub warm: Duration,
    /// Leaves inputs in the L2 cache.
    pub in_cache: bool,
    /// Instead of each cell's own.
    pub mode: Option<Mode>,
    /// Kernels by stem; all if empty.
    pub kernels: Vec<String>,
    /// The interpreter and the script, to run the peers beside.
    pub peers: Option<(String, PathBuf)>,
    /// Answers of an earlier run of the script.
    pub peers_file: Option<PathBuf>,
    /// Whether to measure the ceilings.
    pub ceilings: bool,
    /// The commit, as told.
    pub commit: Option<String>,
    /// Where each cell's first inputs and outputs go.
    pub dump: Option<PathBuf>,
}

/// A run.
pub struct Runner {
    options: Options,
    driver: CudaDriver,
    kernels: Vec<Box<dyn Kernel<CudaDriver>>>,
    sampler: Sampler,
    peers: Option<Peers>,
    /// Small problems that a kernel has passed.
    checked: HashSet<(&'static str, Problem)>,
    cold_bytes: usize,
    /// Timings that were refused because the kernel was wrong.
    wrong: usize,
    report: Report,
}

impl Runner {
    /// Opens the device and, if they are asked for, waits for the peers.
    ///
    /// # Errors
    /// The device's, [`Error::UnknownKernel`], [`Error::Peers`] and those of a peers' file.
    pub fn start(options: Options, cells: &[Cell], command: String) -> Result<Runner> {
        let kernels = kernels::select(&options.kernels)?;
        let mut peers =
            options.peers.as_ref().map(|(python, script)| Peers::start(python, script, cells)).transpose()?;
        let driver = CudaDriver::open(options.device)?;
        let (info, l2_bytes) = (driver.info(), driver.l2_bytes()?);
        let sampler = Sampler::start();
        std::thread::sleep(Duration::from_millis(300));
        let machine = Machine {
            device: info.name.clone(),
            compute_capability: format!("{}.{}", info.compute_capability.0, info.compute_capability.1),
            multiprocessors: info.multiprocessors,
            memory_bytes: Some(info.memory_bytes),
            l2_bytes: Some(l2_bytes as u64),
            driver: driver_version().unwrap_or_else(|| "unknown".into()),
            idle: sampler.latest(),
        };
        let mut report = Report {
            schema: SCHEMA,
            machine,
            commit: commit(options.commit.as_deref()),
            date: now(),
            command,
            ceilings: Vec::new(),
            results: Vec::new(),
            failures: Vec::new(),
            peers: Vec::new(),
            end_to_end: Vec::new(),
        };
        if let Some(path) = &options.peers_file {
            read(path)?.into_iter().for_each(|answer| report.take(answer, cells));
        }
        if let Some(peers) = &mut peers {
            report.take(peers.ready()?, cells);
        }
        let cold_bytes = if options.in_cache { 0 } else { COLD_L2 * l2_bytes };
        let checked = HashSet::new();
        Ok(Runner { options, driver, kernels, sampler, peers, checked, cold_bytes, wrong: 0, report })
    }

    /// What has been measured so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// How many timings were refused because a kernel was wrong.
    pub fn wrong(&self) -> usize {
        self.wrong
    }

    /// Measures what the device can do: copies by the driver, whatever the peers measure, and where they measure no products, the fastest of
    /// this project's.
    ///
    /// # Errors
    /// The device's, and [`Error::Peers`].
    pub fn ceilings(&mut self) -> Result<()> {
        if !self.options.ceilings {
            return Ok(());
        }
        let copied = self.copy()?;
        self.report.ceilings.extend(copied);
        if let Some(peers) = &mut self.peers {
            peers.ceilings()?.into_iter().for_each(|answer| self.report.take(answer, &[]));
        }
        if self.report.compute_ceiling().is_none() {
            let product = self.product()?;
            self.report.ceilings.extend(product);
        }
        self.report.apply_ceilings();
        Ok(())
    }

    fn fail(&mut self, cell: &str, by: &str, error: Error) {
        let (cell, by, reason) = (cell.to_string(), by.to_string(), error.to_string());
        self.report.failures.push(Failure { cell, by, reason });
    }

    /// What the fastest of this project's products of a large size does.
    fn product(&mut self) -> Result<Option<Ceiling>> {
        let cells = cells::select(&[], &[CEILING_PRODUCT.to_string()])?;
        let Some(cell) = cells.first() else { return Ok(None) };
        let mut fastest: Option<Row> = None;
        for index in 0..self.kernels.len() {
            if !self.kernels[index].takes(&cell.problem, self.driver.info()) {
                continue;
            }
            match self.ours(index, cell) {
                Ok(row) if fastest.as_ref().is_none_or(|other| row.time.min_us < other.time.min_us) => {
                    fastest = Some(row);
                }
                Ok(_) => {}
                // The cell itself will say so, if it is asked for.
                Err(Error::Wrong { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(fastest.map(|row| Ceiling {
            name: format!("bf16 product {CEILING_PRODUCT}"),
            by: row.by.clone(),
            limit: Limit::Bf16,
            per_second: row.cost.flops as f64 / row.time.min_us * 1e6,
        }))
    }

    fn copy(&self) -> Result<Option<Ceiling>> {
        let mut prepared = Prepared::new(&self.driver);
        prepared.random("source", Kind::Bf16, CEILING_BYTES / 2, 1)?;
        prepared.output("target", CEILING_BYTES)?;
        let (source, target) = (prepared.buffer("source")?, prepared.buffer("target")?);
        for _ in 0..10 {
            self.driver.copy(target, source)?;
        }
        let times = self.driver.time_each(10, |_| self.driver.copy(target, source))?;
        let Some(fastest) = times.iter().min() else { return Ok(None) };
        // Read once, written once.
        let per_second = 2.0 * CEILING_BYTES as f64 / fastest.as_secs_f64();
        let (name, by, limit) = ("copy".into(), "cuMemcpyDtoD".into(), Limit::Bandwidth);
        Ok(Some(Ceiling { name, by, limit, per_second }))
    }

    /// Times one cell; each row as soon as it is there.
    ///
    /// # Errors
    /// The device's. A kernel that is wrong, or a peer that fails, is a failure of the report.
    pub fn cell(&mut self, cell: &Cell, mut each: impl FnMut(&Report, &Row)) -> Result<()> {
        let before = self.report.results.len();
        for index in 0..self.kernels.len() {
            let kernel = &self.kernels[index];
            if !kernel.takes(&cell.problem, self.driver.info()) {
                continue;
            }
            let by = kernel.name();
            match self.ours(index, cell) {
                Ok(row) => self.report.results.push(row),
                Err(error @ Error::Wrong { .. }) => {
                    self.wrong += 1;
                    self.fail(&cell.key, by, error);
                }
                Err(error) => return Err(error),
            }
        }
        self.beside(cell, before);
        self.report.apply_ceilings();
        self.report.results[before..].iter().for_each(|row| each(&self.report, row));
        Ok(())
    }

    /// Asks the peers for a cell, whose rows begin at `before`.
    fn beside(&mut self, cell: &Cell, before: usize) {
        let Some(peers) = self.peers.as_mut().filter(|_| cell.has_peers()) else { return };
        let asked = Cell { mode: self.options.mode.unwrap_or(cell.mode), ..cell.clone() };
        let (iters, warm_ms) = (self.options.iters, self.options.warm.as_millis() as u64);
        let request = Request { cell: &asked, iters, warm_ms, cold_bytes: self.cold_bytes };
        let began = Instant::now();
        match peers.ask(&request) {
            Ok(answers) => {
                for answer in answers {
                    self.report.take(answer, std::slice::from_ref(cell));
                }
            }
            Err(error) => {
                // One that hangs is of no more use; this project's kernels still are.
                self.peers = None;
                self.fail(&cell.key, "peers", error);
            }
        }
        let clocks = self.sampler.since(began);
        let peers = self.report.results[before..].iter_mut().filter(|row| !row.ours);
        peers.for_each(|row| row.clocks = clocks);
    }

    fn ours(&mut self, index: usize, cell: &Cell) -> Result<Row> {
        let (kernel, driver) = (&self.kernels[index], &self.driver);
        let problem = &cell.problem;
        let small = (kernel.name(), problem.small());
        if !self.checked.contains(&small) {
            check_small(kernel.as_ref(), driver, problem)?;
            self.checked.insert(small);
        }
        let count = self.cold_bytes.div_ceil(problem.cost().bytes as usize).clamp(1, MOST_SETS);
        let mut sets = Vec::with_capacity(count);
        for seed in 0..count {
            sets.push(kernel.prepare(driver, problem, 100 + seed as u64)?);
        }
        sets[0].run()?;
        check(kernel.name(), &sets[0], problem, Extent::Sampled)?;
        if let Some(folder) = &self.options.dump {
            dump(folder, kernel.name(), cell, &sets[0])?;
        }
        let mode = self.options.mode.unwrap_or(cell.mode);
        let effort = Effort { iters: self.options.iters, warm: self.options.warm };
        let began = Instant::now();
        let times = times_us(driver, &sets, mode, effort)?;
        let time = Stats::of(&times).ok_or_else(|| {
            let what = "the driver's timings are no positive numbers".to_string();
            Error::Wrong { kernel: kernel.name(), problem: format!("{problem:?}"), what }
        })?;
        let mut row = Row::new(cell, kernel.name(), true, mode, count, !self.options.in_cache, time);
        row.clocks = self.sampler.since(began);
        Ok(row)
    }
}
