//! The host's part of a step, over a driver that does nothing: what a device would have to wait for.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tilewright::{
    Model,
    engine::{Engine, EngineConfig, EngineStats, Output, Request},
};
use tilewright_host::{
    Result,
    gpu::{Driver, GpuDevice, GpuInfo, Launch},
};
use tilewright_kernels::abi::{KernelSpec, TensorMap, TensorMapSpec};

/// A driver whose device takes no time; all that is read from it are tokens, each of this number.
struct Idle {
    info: GpuInfo,
    /// Where the next allocation would be.
    end: AtomicU64,
}

const TOKEN: u32 = 100;

impl Driver for Idle {
    type Buffer = u64;
    type Graph = ();

    fn info(&self) -> &GpuInfo {
        &self.info
    }

    fn alloc(&self, bytes: usize, _: &'static str) -> Result<u64> {
        Ok(self.end.fetch_add(bytes.next_multiple_of(256) as u64, Ordering::Relaxed))
    }

    fn address(&self, buffer: &u64) -> u64 {
        *buffer
    }

    fn upload(&self, _: &u64, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn download(&self, _: &u64, _: usize, out: &mut [u8]) -> Result<()> {
        out.chunks_exact_mut(4).for_each(|word| word.copy_from_slice(&TOKEN.to_le_bytes()));
        Ok(())
    }

    fn zero(&self, _: &u64) -> Result<()> {
        Ok(())
    }

    fn tensor_map(&self, _: &TensorMapSpec<'_>) -> Result<TensorMap> {
        unreachable!("kernels of compute capability 8.0 take none")
    }

    unsafe fn launch(&self, _: &'static KernelSpec, _: [u32; 3], _: &[u8]) -> Result<()> {
        Ok(())
    }

    unsafe fn graph(&self, _: &[Launch]) -> Result<Option<()>> {
        Ok(Some(()))
    }

    unsafe fn replay(&self, (): &()) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

/// Tokens of a prompt and of an answer.
const PROMPT: usize = 128;
const ANSWER: usize = 64;

/// What the engine did for so many requests at once.
fn serve(model: &Model, sequences: usize) -> EngineStats {
    let config = EngineConfig {
        cache_tokens: sequences * (PROMPT + ANSWER),
        step_tokens: 2048,
        chunk_tokens: 2048,
        max_running: sequences,
        prefix_cache: false,
        ..EngineConfig::default()
    };
    let engine = Engine::new(model.clone(), config).expect("an engine");
    let request = |index: u32| {
        let prompt: Vec<u32> = (0..PROMPT as u32).map(|at| (index * 31 + at * 7) % 4096).collect();
        Request { max_tokens: ANSWER, ignore_eos: true, ..Request::new(prompt) }
    };
    let said = Arc::new(AtomicU64::new(0));
    let tickets: Vec<_> = (0..sequences as u32)
        .map(|index| {
            let said = said.clone();
            let listener = move |output: tilewright::Result<Output>| {
                said.fetch_add(1, Ordering::Relaxed);
                output.is_ok()
            };
            engine.submit_to(request(index), listener).expect("a ticket")
        })
        .collect();
    let stats = engine.shutdown();
    drop(tickets);
    assert_eq!(said.load(Ordering::Relaxed), (sequences * ANSWER) as u64);
    stats
}

/// Steps of the shape of Llama 3.1 8B with 4-bit weights on an H200, in seconds, by the number of sequences
/// (`docs/notes/2026-11-25-decode-steps.md`).
const STEPS: [(usize, f64); 3] = [(1, 2.17e-3), (32, 3.79e-3), (128, 10.19e-3)];

#[test]
fn planning_and_committing_take_less_than_a_twentieth_of_a_step() {
    let info = GpuInfo {
        name: "idle".into(),
        compute_capability: (8, 0),
        multiprocessors: 132,
        memory_bytes: 1 << 40,
    };
    let device = Arc::new(GpuDevice::new(Idle { info, end: AtomicU64::new(1 << 20) }));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/target");
    let model = Model::load_on(folder, device).expect("the demo loads");
    for (sequences, step_seconds) in STEPS {
        // Whatever else the machine does makes some rounds slower, and none faster.
        let parts = |stats: &EngineStats| {
            [stats.schedule_seconds, stats.run_seconds, stats.commit_seconds]
                .map(|it| it / stats.steps as f64)
        };
        let host = |parts: &[f64; 3]| parts[0] + parts[2];
        let rounds = (0..5).map(|_| parts(&serve(&model, sequences)));
        let least = rounds.min_by(|a, b| host(a).total_cmp(&host(b))).expect("rounds");
        let [schedule, run, commit] = least.map(|seconds| 1e6 * seconds);
        let share = host(&least) / step_seconds;
        println!(
            "{sequences} sequences: {schedule:.1} us of planning, {commit:.1} of committing, {run:.1} of what the device waits for between; {:.2}% of a step",
            100.0 * share
        );
        assert!(share < 0.05, "{share} of a step of {sequences} sequences");
    }
}
