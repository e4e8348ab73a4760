//! The host's part of a step of the engine, over a driver that does nothing: planning, what the device waits for between
//! (drafts, batch, metadata, choices), committing, and delivering, each for one step of so many sequences of the demo model.
//!
//! `cargo bench -p tilewright-benches --bench engine`.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use criterion::{BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use tilewright::{
    Model,
    engine::{Engine, EngineConfig, EngineStats, Output, Request},
};
use tilewright_host::gpu::GpuDevice;
use tilewright_tests::idle::Idle;

/// Tokens of a prompt and of an answer.
const PROMPT: usize = 128;
const ANSWER: usize = 64;

/// What an engine did for so many requests at once.
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
    let said = Arc::new(AtomicUsize::new(0));
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
    assert_eq!(said.load(Ordering::Relaxed), sequences * ANSWER);
    stats
}

type Seconds = fn(&EngineStats) -> f64;

const PARTS: [(&str, Seconds); 5] = [
    ("planning", |stats| stats.schedule_seconds),
    ("batch, metadata, choices", |stats| stats.run_seconds),
    ("committing", |stats| stats.commit_seconds),
    ("delivering", |stats| stats.deliver_seconds),
    ("delivering with nothing under way", |stats| stats.deliver_seconds - stats.hidden_seconds),
];

/// Whatever else the machine does makes some rounds slower, and none faster.
const LEAST_OF: usize = 5;

fn host_part(criterion: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/target");
    let model = Model::load_on(folder, Arc::new(GpuDevice::new(Idle::default()))).expect("the demo loads");
    for (part, seconds) in PARTS {
        let mut group = criterion.benchmark_group(part);
        // A round is many steps.
        group.sampling_mode(SamplingMode::Flat);
        for sequences in [1, 32, 128] {
            group.bench_function(BenchmarkId::from_parameter(sequences), |bencher| {
                bencher.iter_custom(|steps| {
                    let (mut rounds, mut done, mut least) = (0, 0, f64::INFINITY);
                    while rounds < LEAST_OF || done < steps {
                        let stats = serve(&model, sequences);
                        rounds += 1;
                        done += stats.steps as u64;
                        least = least.min(seconds(&stats) / stats.steps as f64);
                    }
                    Duration::from_secs_f64(least * steps as f64)
                });
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(10);
    targets = host_part
}
criterion_main!(benches);
