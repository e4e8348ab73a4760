//! The CPU device's operations: checked against the oracle on small problems, timed on large ones, held to what this machine was seen
//! to do.

mod attention;
mod operations;

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use tilewright_host::{
    Device,
    cpu::{Ceilings, CpuDevice},
};

pub use self::operations::{Run, name, operation};
use crate::{
    cells::{Cell, Mode},
    error::Result,
    machine::{Machine, commit, now},
    problem::{Cost, Decode, Gemm, GemmWeights, KvFormat, Prefill, Problem, RopeAppend, Rows},
    report::{Ceiling, Failure, Limit, Report, Row, SCHEMA},
    stats::Stats,
};

/// Runs are timed together until they take this long, so that the clock's grain is no matter.
const GRAIN: Duration = Duration::from_micros(200);
/// Runs timed together at most.
const MOST_TOGETHER: usize = 1000;

/// The operations that the criterion benchmarks time.
pub fn cells() -> Vec<Cell> {
    let (q_heads, kv_heads, head_dim, page_size, kv) = (8, 2, 64, 16, KvFormat::Bf16);
    let prefill = Prefill {
        seqs: 2,
        seq_len: 256,
        q_heads,
        kv_heads,
        head_dim,
        causal: true,
        page_size: Some(page_size),
    };
    let decode = Decode { seqs: 4, context: 1024, q_heads, kv_heads, head_dim, page_size, kv };
    let append = RopeAppend { tokens: 256, q_heads, kv_heads, head_dim, page_size, kv };
    let gemm = |m, n, k| Problem::Gemm(Gemm { weights: GemmWeights::Bf16, m, n, k });
    let wide = Rows { rows: 256, cols: 1024 };
    let logits = Rows { rows: 4, cols: 32_768 };
    let problems = [
        ("attention_prefill/2x256", Problem::Prefill(prefill)),
        ("attention_decode/4x1024", Problem::Decode(decode)),
        ("rope_append/256", Problem::RopeAppend(append)),
        ("gemm_bf16/64x512x512", gemm(64, 512, 512)),
        ("gemm_bf16/1x2048x512", gemm(1, 2048, 512)),
        ("rms_norm/256x1024", Problem::RmsNorm(wide)),
        ("silu_mul/256x1024", Problem::SiluMul(wide)),
        ("gather_rows/256x1024", Problem::GatherRows(wide)),
        ("argmax/4x32768", Problem::Argmax(logits)),
        ("sample/4x32768", Problem::Sample(logits)),
    ];
    problems.into_iter().map(|(key, problem)| Cell::new(key.to_string(), problem)).collect()
}

/// What a problem costs where activations and caches are f32: weights are as stored.
pub fn cost(problem: &Problem) -> Cost {
    let cost = problem.cost();
    let bytes = match problem {
        Problem::Gemm(gemm) => gemm.weight_bytes() + 2 * (cost.bytes - gemm.weight_bytes()),
        // Logits and token ids are words on either device.
        Problem::Argmax(_) | Problem::Sample(_) => cost.bytes,
        _ => 2 * cost.bytes,
    };
    Cost { bytes, ..cost }
}

/// Bytes a second of this CPU where the same `bytes` are read again and again.
pub fn read_rate(bytes: usize) -> f64 {
    CpuDevice::new().read_rate(bytes)
}

/// What a run is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Timings of each cell.
    pub iters: usize,
    /// Work before each cell's first timing.
    pub warm: Duration,
}

/// A run on the CPU.
pub struct CpuRunner {
    device: CpuDevice,
    effort: Effort,
    /// What this machine was seen to do.
    pub ceilings: Ceilings,
    /// Small problems that an operation has passed.
    checked: HashSet<Problem>,
    wrong: usize,
    /// What has been measured so far.
    pub report: Report,
}

impl CpuRunner {
    /// Measures the ceilings.
    pub fn start(effort: Effort, told: Option<&str>, command: String) -> CpuRunner {
        let device = CpuDevice::new();
        let ceilings = device.measure_ceilings();
        let machine = Machine {
            device: device.describe(),
            multiprocessors: ceilings.threads as u32,
            driver: "none".into(),
            ..Machine::default()
        };
        let ceiling = |name: &str, limit, per_second| Ceiling {
            name: name.into(),
            by: format!("{} threads", ceilings.threads),
            limit,
            per_second,
        };
        let report = Report {
            schema: SCHEMA,
            machine,
            commit: commit(told),
            date: now(),
            command,
            ceilings: vec![
                ceiling("read", Limit::Bandwidth, ceilings.read_bytes_per_second),
                ceiling("f32 multiply-add", Limit::F32, ceilings.flops_per_second),
            ],
            results: Vec::new(),
            failures: Vec::new(),
            peers: Vec::new(),
            end_to_end: Vec::new(),
        };
        CpuRunner { device, effort, ceilings, checked: HashSet::new(), wrong: 0, report }
    }

    /// How many timings were refused because an operation was wrong.
    pub fn wrong(&self) -> usize {
        self.wrong
    }

    /// Checks an operation on a small problem of the cell's kind, and times it on the cell's.
    ///
    /// # Errors
    /// The device's. An operation that is wrong is a failure of the report.
    pub fn cell(&mut self, cell: &Cell) -> Result<()> {
        let by = name(&cell.problem);
        let small = cell.problem.small();
        if !self.checked.contains(&small) {
            if let Err(error) = operation(&self.device, &small, true) {
                self.wrong += 1;
                self.report.failures.push(Failure {
                    cell: cell.key.clone(),
                    by: by.into(),
                    reason: error.to_string(),
                });
                return Ok(());
            }
            self.checked.insert(small);
        }
        let mut run = operation(&self.device, &cell.problem, false)?;
        let times = self.effort.times_us(&mut *run)?;
        drop(run);
        let Some(time) = Stats::of(&times) else {
            let reason = "its timings are no positive numbers".to_string();
            self.report.failures.push(Failure { cell: cell.key.clone(), by: by.into(), reason });
            return Ok(());
        };
        let mut row = Row::new(cell, by, true, Mode::Clock, 1, false, time);
        row.cost = cost(&cell.problem);
        self.report.results.push(row);
        self.report.apply_ceilings();
        Ok(())
    }
}

impl Effort {
    fn times_us(&self, run: &mut dyn FnMut() -> tilewright_host::Result<()>) -> Result<Vec<f64>> {
        let began = Instant::now();
        let (mut runs, mut shortest) = (0, Duration::MAX);
        while runs == 0 || began.elapsed() < self.warm {
            let start = Instant::now();
            run()?;
            shortest = shortest.min(start.elapsed());
            runs += 1;
        }
        let together = GRAIN.as_nanos().div_ceil(shortest.as_nanos().max(1)) as usize;
        let together = together.clamp(1, MOST_TOGETHER);
        let mut times = Vec::with_capacity(self.iters);
        for _ in 0..self.iters.max(1) {
            let start = Instant::now();
            for _ in 0..together {
                run()?;
            }
            times.push(start.elapsed().as_secs_f64() * 1e6 / together as f64);
        }
        Ok(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_right_and_timed() {
        let effort = Effort { iters: 2, warm: Duration::ZERO };
        let mut runner = CpuRunner::start(effort, Some("0"), "test".into());
        let mut cells = cells();
        for weights in [GemmWeights::Int8, GemmWeights::Int4] {
            for m in [1, 9] {
                let problem = Problem::Gemm(Gemm { weights, m, n: 256, k: 384 });
                cells.push(Cell::new(format!("gemm/{}/{m}x256x384", weights.name()), problem));
            }
        }
        for cell in &cells {
            runner.cell(cell).expect("the device does it");
        }
        assert_eq!(runner.report.failures, []);
        assert_eq!((runner.report.results.len(), runner.wrong()), (cells.len(), 0));
        // Of products of bytes arithmetic has no ceiling that is measured.
        let by_bytes = |row: &Row| row.cell.starts_with("gemm/int8/9x");
        let results = &runner.report.results;
        assert!(
            results.iter().all(|row| by_bytes(row) || row.fraction.is_some_and(|fraction| fraction > 0.0))
        );
    }

    #[test]
    fn caches_and_activations_count_as_f32() {
        let decode = Decode {
            seqs: 2,
            context: 100,
            q_heads: 4,
            kv_heads: 2,
            head_dim: 64,
            page_size: 16,
            kv: KvFormat::Bf16,
        };
        let vectors = 2 * 2 * 100 * 2;
        assert_eq!(cost(&Problem::Decode(decode)).bytes, vectors * 64 * 4 + 2 * 2 * 4 * 64 * 4);
        let gemm = Gemm { weights: GemmWeights::Bf16, m: 2, n: 3, k: 8 };
        assert_eq!(cost(&Problem::Gemm(gemm)).bytes, 2 * 24 + 4 * (16 + 6));
        assert_eq!(cost(&Problem::Argmax(Rows { rows: 2, cols: 100 })).bytes, 2 * 404);
    }
}
