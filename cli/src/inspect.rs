use std::fmt::Write;
use std::process::ExitCode;

use serde::Serialize;
use tilewright::checkpoint::{Checkpoint, TensorSummary};
use tilewright::config::ModelConfig;

use crate::args::InspectArgs;
use crate::output::{Failure, bytes_in_words, print_json, print_line};

#[derive(Serialize)]
struct Report {
    config: ModelConfig,
    parameters: usize,
    bytes: usize,
    kv_bytes_per_token: usize,
    tensors: Vec<TensorSummary>,
}

pub fn run(args: &InspectArgs) -> Result<ExitCode, Failure> {
    let config = ModelConfig::load(&args.dir)?;
    let tensors: Vec<TensorSummary> = Checkpoint::open(&args.dir)?.tensors().collect();
    let report = Report {
        parameters: tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum(),
        bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        // Keys and values in bf16.
        kv_bytes_per_token: 2 * 2 * config.layers * config.kv_heads * config.head_dim,
        config,
        tensors,
    };
    if args.json {
        print_json(&report)?;
    } else {
        print_line(&in_words(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn in_words(report: &Report) -> String {
    let config = &report.config;
    let mut text = format!(
        "{:?}: {} layers, hidden {}, {} query / {} KV heads of {}, MLP {}, vocabulary {}, context {}\n",
        config.architecture,
        config.layers,
        config.hidden_size,
        config.q_heads,
        config.kv_heads,
        config.head_dim,
        config.intermediate_size,
        config.vocab_size,
        config.context
    );
    // Writing to a string can't fail.
    let _ = writeln!(text, "rope: theta {}, scaling {:?}", config.rope.theta, config.rope.scaling);
    let sliding = config.windows.iter().flatten().count();
    if let Some(window) = config.windows.iter().flatten().next() {
        let _ = writeln!(text, "sliding window: {window} tokens in {sliding} of {} layers", config.layers);
    }
    let _ = writeln!(
        text,
        "tied embeddings: {}, BOS: {:?}, EOS: {:?}",
        config.tie_word_embeddings, config.bos_token_id, config.eos_token_ids
    );
    let _ = writeln!(
        text,
        "{} tensors, {:.2} M parameters, {}; KV cache {} a token in bf16\n",
        report.tensors.len(),
        report.parameters as f64 / 1e6,
        bytes_in_words(report.bytes),
        bytes_in_words(report.kv_bytes_per_token)
    );
    let width = report.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
    for tensor in &report.tensors {
        let shape = format!("{:?}", tensor.shape);
        let bytes = bytes_in_words(tensor.bytes);
        let _ = writeln!(text, "{:width$}  {:5} {shape:14} {bytes:>10}", tensor.name, tensor.dtype);
    }
    text.truncate(text.trim_end().len());
    text
}
