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

/// Names, outputs and inputs of a layer's matrices. Of the third, the rows of a gate and of what it gates.
const MATRICES: [(&[&str], &[usize], usize); 4] = [
    (&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], &[4096, 1024, 1024], 4096),
    (&["self_attn.o_proj"], &[4096], 4096),
    (&["mlp.gate_proj", "mlp.up_proj"], &[14_336, 14_336], 4096),
    (&["mlp.down_proj"], &[4096], 14_336),
];

fn a_layer() -> u64 {
    MATRICES.iter().map(|(_, rows, cols)| (rows.iter().sum::<usize>() * cols) as u64).sum()
}

fn config(weights: Weights) -> ModelConfig {
    let config = shape::config("llama-3.1-8b", weights).expect("a shape");
    // Of embeddings no more than there must be.
    ModelConfig { layers: 1, vocab_size: 8, ..config }
}

/// A layer as the device is given it.
fn read(checkpoint: &Checkpoint, config: &ModelConfig) -> Vec<HostQuantized> {
    let quantization = config.quantization.as_ref().expect("quantised");
    let matrix = |&(names, rows, cols): &(&[&str], &[usize], usize)| {
        let parts = names.iter().zip(rows).map(|(name, &rows)| {
            let name = format!("model.layers.0.{name}");
            read_linear(checkpoint, quantization, &name, rows, cols).expect("a part")
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
                for (index, matrix) in matrices.iter().enumerate() {
                    let made =
                        if index == 2 { device.gated_quantized(matrix) } else { device.quantized(matrix) };
                    drop(made.expect("a matrix"));
                }
            });
        });
        group.finish();
    }
}

fn plain(criterion: &mut Criterion) {
    let device = GpuDevice::new(Idle::hopper());
    let stored = MATRICES.map(|(_, rows, cols)| {
        let mut bytes = vec![0; rows.iter().sum::<usize>() * cols * 2];
        Random { kind: Kind::Bf16, seed: 1 }.fill(0, &mut bytes);
        bytes
    });
    let mut group = criterion.benchmark_group("Bf16");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(a_layer()));
    group.bench_function(BenchmarkId::from_parameter("lay out"), |bencher| {
        bencher.iter(|| {
            for (index, ((_, rows, cols), bytes)) in MATRICES.iter().zip(&stored).enumerate() {
                let mut rest = &bytes[..];
                let parts = rows.iter().map(|&rows| {
                    let (part, others) = rest.split_at(rows * cols * 2);
                    rest = others;
                    (rows, part)
                });
                let host = HostMatrix { parts: parts.collect(), cols: *cols, dtype: DType::Bf16 };
                let made = if index == 2 { device.gated(&host) } else { device.matrix(&host) };
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
