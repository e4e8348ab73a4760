//! The host's part of bringing a layer's linear layers to a GPU, of Llama 3.1 8B's shape: reading what the checkpoint has mapped, and laying it out
//! for a driver that drops what it is given. A model takes this as often as it has layers; its first layer is also checked.
//!
//! `cargo bench -p tilewright-benches --bench loading`.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use tilewright::{checkpoint::Checkpoint, config::ModelConfig, quantized::read_linear};
use tilewright_benches::{
    e2e::shape::{self, Weights},
    random::{Kind, Random},
};
use tilewright_host::{DType, Device, HostMatrix, HostQuantized, gpu::GpuDevice};
use tilewright_tests::idle::Idle;

/// Matrices of a layer that are kept as one.
struct Joined {
    names: &'static [&'static str],
    /// Outputs of each.
    rows: &'static [usize],
    /// Inputs of all.
    cols: usize,
    /// Whether they are a gate and what it gates, whose rows are laid out in turn.
    gated: bool,
}

const MATRICES: [Joined; 4] = [
    Joined {
        names: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        rows: &[4096, 1024, 1024],
        cols: 4096,
        gated: false,
    },
    Joined { names: &["self_attn.o_proj"], rows: &[4096], cols: 4096, gated: false },
    Joined { names: &["mlp.gate_proj", "mlp.up_proj"], rows: &[14_336, 14_336], cols: 4096, gated: true },
    Joined { names: &["mlp.down_proj"], rows: &[4096], cols: 14_336, gated: false },
];

impl Joined {
    fn elements(&self) -> usize {
        self.rows.iter().sum::<usize>() * self.cols
    }
}

fn a_layer() -> u64 {
    MATRICES.iter().map(|joined| joined.elements() as u64).sum()
}

fn config(weights: Weights) -> ModelConfig {
    let config = shape::config("llama-3.1-8b", weights).expect("a shape");
    // Of embeddings no more than there must be.
    ModelConfig { layers: 1, vocab_size: 8, ..config }
}

/// A layer as the device is given it.
fn read(checkpoint: &Checkpoint, config: &ModelConfig) -> Vec<HostQuantized> {
    let quantization = config.quantization.as_ref().expect("quantised");
    let matrix = |joined: &Joined| {
        let parts = joined.names.iter().zip(joined.rows).map(|(name, &rows)| {
            let name = format!("model.layers.0.{name}");
            read_linear(checkpoint, quantization, &name, rows, joined.cols).expect("a part")
        });
        HostQuantized::new(parts.collect()).expect("parts")
    };
    MATRICES.iter().map(matrix).collect()
}

fn quantised(criterion: &mut Criterion) {
    let device = GpuDevice::new(Idle::hopper());
    for weights in [Weights::Int4, Weights::Int4ActOrder, Weights::Int8, Weights::W8a8] {
        let config = config(weights);
        let checkpoint = Checkpoint::random(&config, 1).expect("a checkpoint");
        let matrices = read(&checkpoint, &config);
        let mut group = criterion.benchmark_group(format!("{weights:?}"));
        group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(a_layer()));
        group.bench_function(BenchmarkId::from_parameter("read"), |bencher| {
            bencher.iter(|| read(&checkpoint, &config));
        });
        group.bench_function(BenchmarkId::from_parameter("lay out"), |bencher| {
            bencher.iter(|| {
                for (joined, matrix) in MATRICES.iter().zip(&matrices) {
                    let made = match joined.gated {
                        true => device.gated_quantized(matrix),
                        false => device.quantized(matrix),
                    };
                    drop(made.expect("a matrix"));
                }
            });
        });
        group.finish();
    }
}

fn plain(criterion: &mut Criterion) {
    let device = GpuDevice::new(Idle::hopper());
    let stored = MATRICES.map(|joined| {
        let mut bytes = vec![0; joined.elements() * 2];
        Random { kind: Kind::Bf16, seed: 1 }.fill(0, &mut bytes);
        bytes
    });
    let mut group = criterion.benchmark_group("Bf16");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(a_layer()));
    group.bench_function(BenchmarkId::from_parameter("lay out"), |bencher| {
        bencher.iter(|| {
            for (joined, bytes) in MATRICES.iter().zip(&stored) {
                let mut rest = &bytes[..];
                let parts = joined.rows.iter().map(|&rows| {
                    let (part, others) = rest.split_at(rows * joined.cols * 2);
                    rest = others;
                    (rows, part)
                });
                let host = HostMatrix { parts: parts.collect(), cols: joined.cols, dtype: DType::Bf16 };
                let made = if joined.gated { device.gated(&host) } else { device.matrix(&host) };
                drop(made.expect("a matrix"));
            }
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(10);
    targets = quantised, plain
}
criterion_main!(benches);
