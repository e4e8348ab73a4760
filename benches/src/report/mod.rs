//! What a run leaves: a table on the screen, JSON to keep, charts to look at.

mod chart;
mod html;
mod rates;
mod remarks;
mod table;

use serde::{Deserialize, Serialize};
use tilewright::plan::Bound;

use self::rates::digits;
pub(crate) use self::remarks::NO_RESULT;
pub use self::{
    chart::{Chart, Ratio, bars, ratios, roofline},
    html::{escaped, page},
    rates::{Rate, Unit},
    table::table,
};
use crate::{
    cells::{Cell, Mode},
    machine::{Clocks, Machine},
    problem::{Cost, GemmWeights, Problem},
    stats::Stats,
};

/// Counted up when a field changes its meaning.
pub const SCHEMA: u32 = 1;

/// Everything that a run measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema: u32,
    pub machine: Machine,
    pub commit: String,
    /// UTC.
    pub date: String,
    /// As it was called.
    pub command: String,
    pub ceilings: Vec<Ceiling>,
    pub results: Vec<Row>,
    /// What should have been measured and was not.
    pub failures: Vec<Failure>,
    /// Versions of the peers.
    pub peers: Vec<String>,
    /// Whole models.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub end_to_end: Vec<EndToEnd>,
}

/// A whole model's speed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndToEnd {
    /// What it did: `prefill 512`, `decode, 16 sequences`.
    pub what: String,
    /// The model.
    pub model: String,
    /// Tokens a second, of all sequences, of the fastest run.
    pub tokens_per_second: f64,
    /// At most, by the ceilings.
    pub ceiling: Option<f64>,
    /// Runs that were timed.
    #[serde(default)]
    pub runs: usize,
    /// How far apart the outer tenths of their times are, as a part of the median.
    #[serde(default)]
    pub spread: f64,
    /// Whether that is so far that they are no result.
    #[serde(default)]
    pub disturbed: bool,
}

impl EndToEnd {
    /// Of what repeated runs came to, in tokens a second.
    pub fn new(what: String, model: &str, rates: &[f64], ceiling: Option<f64>) -> EndToEnd {
        let times_us: Vec<f64> = rates.iter().map(|rate| 1e6 / rate).collect();
        // Rates that are none are no result either.
        let (spread, disturbed) =
            Stats::of(&times_us).map_or((0.0, true), |time| (time.spread(), time.is_disturbed()));
        let tokens_per_second = rates.iter().copied().fold(0.0, f64::max);
        let (model, runs) = (model.to_string(), rates.len());
        EndToEnd { what, model, tokens_per_second, ceiling, runs, spread, disturbed }
    }
}

/// What a ceiling limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Bytes moved, read and written alike.
    Bandwidth,
    /// bf16 operations on tensor cores.
    Bf16,
    /// f32 operations of a CPU's vectors.
    F32,
    /// Other operations on tensor cores; no cell is held to it.
    Other,
}

/// The most that this device was seen to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// `copy`, `read`, `bf16 matmul 8192`.
    pub name: String,
    pub by: String,
    pub limit: Limit,
    /// Bytes or operations a second.
    pub per_second: f64,
}

/// Somebody's timing of one cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub cell: String,
    /// The cell whose peers it is compared with.
    pub beside: String,
    /// The kernel's stem, or the peer.
    pub by: String,
    /// Whether it is one of this project's.
    pub ours: bool,
    pub problem: Problem,
    pub mode: Mode,
    /// Whether inputs were rotated past the L2 cache.
    pub cold: bool,
    /// Input sets that were rotated.
    pub sets: usize,
    pub time: Stats,
    /// Whether the timings lie so far apart that they are no result: what stands here of them is what a busy machine did.
    #[serde(default)]
    pub disturbed: bool,
    pub cost: Cost,
    /// The least time by the ceilings over the median; absent where a ceiling that it takes was not measured.
    pub fraction: Option<f64>,
    /// Under load, where they were read.
    pub clocks: Option<Clocks>,
}

/// A cell that somebody did not solve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub cell: String,
    pub by: String,
    pub reason: String,
}

impl Row {
    /// A timing, its fraction of the ceilings left open.
    pub fn new(cell: &Cell, by: &str, ours: bool, mode: Mode, sets: usize, cold: bool, time: Stats) -> Row {
        Row {
            cell: cell.key.clone(),
            beside: cell.beside.clone(),
            by: by.to_string(),
            ours,
            problem: cell.problem,
            mode,
            cold,
            sets,
            time,
            disturbed: time.is_disturbed(),
            cost: cell.problem.cost(),
            fraction: None,
            clocks: None,
        }
    }
}

impl Report {
    /// The highest ceiling of a kind, per second.
    pub fn ceiling(&self, limit: Limit) -> Option<f64> {
        let of_kind = self.ceilings.iter().filter(|ceiling| ceiling.limit == limit);
        of_kind.map(|ceiling| ceiling.per_second).max_by(f64::total_cmp)
    }

    /// The highest ceiling of arithmetic, per second.
    pub fn compute_ceiling(&self) -> Option<f64> {
        self.ceiling(Limit::Bf16).or_else(|| self.ceiling(Limit::F32))
    }

    /// What the roofline says holds a row up: whether it moves bytes or computes longer, at the ceilings.
    pub fn bound(&self, row: &Row) -> Option<Bound> {
        let bytes = row.cost.bytes as f64 / self.ceiling(Limit::Bandwidth)?;
        let flops = row.cost.flops as f64 / self.compute_ceiling()?;
        Some(Bound::of(bytes, flops))
    }

    /// Sets every row's fraction by the ceilings there are.
    pub fn apply_ceilings(&mut self) {
        let (bandwidth, bf16) = (self.ceiling(Limit::Bandwidth), self.compute_ceiling());
        let bounds: Vec<Option<Bound>> = self.results.iter().map(|row| self.bound(row)).collect();
        for (row, bound) in self.results.iter_mut().zip(bounds) {
            let least_seconds =
                |work: u64, ceiling: Option<f64>| ceiling.map(|ceiling| work as f64 / ceiling);
            let bytes = least_seconds(row.cost.bytes, bandwidth);
            let flops = if multiplies_bytes(row) { None } else { least_seconds(row.cost.flops, bf16) };
            let computes = bound.map_or(row.problem.is_compute(), |bound| bound == Bound::Compute);
            let least = match (bytes, flops) {
                (Some(bytes), Some(flops)) => Some(bytes.max(flops)),
                (bytes, flops) => {
                    if computes {
                        flops
                    } else {
                        bytes
                    }
                }
            };
            row.fraction = least.map(|seconds| (seconds * 1e6 / row.time.median_us * 1e5).round() / 1e5);
        }
    }

    /// The fastest peer of a cell.
    pub fn best_peer(&self, cell: &str) -> Option<&Row> {
        let peers = self.results.iter().filter(|row| !row.ours && row.cell == cell);
        peers.min_by(|a, b| a.time.median_us.total_cmp(&b.time.median_us))
    }

    /// How many times faster than the fastest peer one of our rows is, where both are results.
    pub fn speedup(&self, row: &Row) -> Option<f64> {
        let peer = self.best_peer(&row.beside).filter(|_| row.ours)?;
        (!row.disturbed && !peer.disturbed).then(|| peer.time.median_us / row.time.median_us)
    }
}

/// Whether no ceiling of arithmetic that is measured is a row's.
fn multiplies_bytes(row: &Row) -> bool {
    matches!(row.problem, Problem::Gemm(gemm) if gemm.weights == GemmWeights::Int8)
}

/// A report of made-up numbers in every kind of cell, for looking at the charts and for tests.
#[doc(hidden)]
pub fn sample() -> Report {
    let cells = crate::cells::all();
    let machine =
        Machine { device: "an imaginary GPU".into(), driver: "imaginary, too".into(), ..Machine::default() };
    let ceiling = |name: &str, limit, per_second| Ceiling {
        name: name.into(),
        by: "made up".into(),
        limit,
        per_second,
    };
    let mut report = Report {
        schema: SCHEMA,
        machine,
        commit: "0".repeat(12),
        date: "1970-01-01T00:00:00Z".into(),
        command: "made up".into(),
        ceilings: vec![
            ceiling("copy", Limit::Bandwidth, 4.2e12),
            ceiling("bf16 matmul 8192", Limit::Bf16, 780e12),
        ],
        results: Vec::new(),
        failures: Vec::new(),
        peers: Vec::new(),
        end_to_end: Vec::new(),
    };
    for (index, cell) in cells.iter().enumerate() {
        let cost = cell.problem.cost();
        let least_us = (cost.bytes as f64 / 4.2e6).max(cost.flops as f64 / 780e6) + 4.0;
        let wave = 0.1 * (index as f64 * 1.7).sin();
        let mut row = |by: &str, ours, fraction: f64| {
            let median_us = least_us / (fraction + wave * fraction);
            let times = [0.98, 0.99, 1.0, 1.01, 1.03].map(|factor| median_us * factor);
            let Some(time) = Stats::of(&times) else { return };
            report.results.push(Row::new(cell, by, ours, cell.mode, 1, true, time));
        };
        row("ours", true, 0.75);
        if cell.has_peers() {
            row("cudnn", false, 0.7);
            row("fa2", false, 0.4);
            row("flashinfer", false, 0.72);
        }
    }
    report.apply_ceilings();
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_brings_back_what_was_written() {
        let mut report = sample();
        report.results[0].clocks = Some(Clocks { sm_mhz: 1980.0, memory_mhz: 3201.0, power_watts: 512.5 });
        report.failures.push(Failure {
            cell: "a/b".into(),
            by: "fa2".into(),
            reason: "no \"such\" kernel".into(),
        });
        let text = serde_json::to_string(&report).expect("numbers and strings");
        let back: Report = serde_json::from_str(&text).expect("what was just written");
        assert!(back == report, "not the same after writing and reading");
    }

    #[test]
    fn the_fraction_is_of_the_binding_ceiling() {
        let mut report = sample();
        report.apply_ceilings();
        for row in &report.results {
            let bytes = row.per_second(Rate::Bytes) / 4.2e12;
            let flops = row.per_second(Rate::Operations) / 780e12;
            if multiplies_bytes(row) {
                // Where arithmetic holds it up there is no ceiling of its arithmetic to be a fraction of.
                let memory = report.bound(row) == Some(Bound::Memory);
                assert_eq!(row.fraction.is_some(), memory, "{}", row.cell);
                continue;
            }
            let fraction = row.fraction.expect("both ceilings are there");
            assert!((fraction - bytes.max(flops)).abs() < 1e-5, "{}", row.cell);
        }
        report.ceilings.retain(|ceiling| ceiling.limit == Limit::Bandwidth);
        report.apply_ceilings();
        let known = |op: &str| {
            report.results.iter().filter(|row| row.cell.starts_with(op)).all(|row| row.fraction.is_some())
        };
        assert!(known("decode") && !known("prefill"));
    }

    #[test]
    fn the_roofline_says_what_holds_a_row_up() {
        let mut report = sample();
        let bound = |report: &Report, cell: &str| {
            report.bound(report.results.iter().find(|row| row.cell == cell).expect("a cell"))
        };
        assert_eq!(bound(&report, "decode/bf16/1x4096"), Some(Bound::Memory));
        assert_eq!(bound(&report, "gemm/bf16/8192x8192x8192"), Some(Bound::Compute));
        report.ceilings.retain(|ceiling| ceiling.limit == Limit::Bandwidth);
        assert_eq!(bound(&report, "decode/bf16/1x4096"), None);
        report.ceilings.push(Ceiling {
            name: "fma".into(),
            by: "x".into(),
            limit: Limit::F32,
            per_second: 1e11,
        });
        assert_eq!(bound(&report, "decode/bf16/1x4096"), Some(Bound::Compute));
    }

    #[test]
    fn a_cell_without_peers_stands_beside_another() {
        let report = sample();
        let paged =
            report.results.iter().find(|row| row.cell == "prefill/hd128/full/512/page16").expect("a cell");
        let peer = report.best_peer("prefill/hd128/full/512").expect("three peers");
        assert_eq!(peer.by, "flashinfer");
        assert_eq!(report.speedup(paged), Some(peer.time.median_us / paged.time.median_us));
        assert_eq!(report.speedup(peer), None);
    }
}
