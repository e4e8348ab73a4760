use std::fmt::Write;
use std::process::ExitCode;

use serde::Serialize;
use tilewright::checkpoint::{Checkpoint, TensorSummary};
use tilewright::config::{EncoderConfig, EncoderInput, ModelConfig, Positions};

use crate::args::InspectArgs;
use crate::load::check_dir;
use crate::output::{Failure, bytes_in_words, print_json, print_line};

/// What a checkpoint is a model of.
#[derive(Serialize)]
#[serde(untagged)]
enum Config {
    Decoder(Box<ModelConfig>),
    Encoder(EncoderConfig),
}

#[derive(Serialize)]
struct Report {
    config: Config,
    parameters: usize,
    bytes: usize,
    /// Keys and values in bf16, where they are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_bytes_per_token: Option<usize>,
    tensors: Vec<TensorSummary>,
}

pub fn run(args: &InspectArgs) -> Result<ExitCode, Failure> {
    check_dir("DIR", &args.dir)?;
    let config = match EncoderConfig::describes(&args.dir)? {
        true => Config::Encoder(EncoderConfig::load(&args.dir)?),
        false => Config::Decoder(Box::new(ModelConfig::load(&args.dir)?)),
    };
    let tensors: Vec<TensorSummary> = Checkpoint::open(&args.dir)?.tensors().collect();
    let report = Report {
        parameters: tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum(),
        bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        kv_bytes_per_token: match &config {
            Config::Decoder(config) => Some(2 * 2 * config.layers * config.kv_heads * config.head_dim),
            Config::Encoder(_) => None,
        },
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

fn decoder_in_words(config: &ModelConfig) -> String {
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
    let _ = match config.positions {
        Positions::Rotary => {
            writeln!(text, "rope: theta {}, scaling {:?}", config.rope.theta, config.rope.scaling)
        }
        Positions::Learned => writeln!(text, "positions: learned"),
    };
    let sliding = config.windows.iter().flatten().count();
    if let Some(window) = config.windows.iter().flatten().next() {
        let _ = writeln!(text, "sliding window: {window} tokens in {sliding} of {} layers", config.layers);
    }
    let _ = writeln!(
        text,
        "tied embeddings: {}, BOS: {:?}, EOS: {:?}",
        config.tie_word_embeddings, config.bos_token_id, config.eos_token_ids
    );
    text
}

fn encoder_in_words(config: &EncoderConfig) -> String {
    let reads = match &config.input {
        EncoderInput::Bert { vocab_size, context, token_types } => {
            format!("BERT: vocabulary {vocab_size}, context {context}, {token_types} types of tokens")
        }
        EncoderInput::Vit { channels, image_size, patch_size, labels } => format!(
            "ViT: {channels} x {image_size} x {image_size} pixels in patches of {patch_size}, {} classes",
            labels.len()
        ),
        _ => "Encoder".to_string(),
    };
    format!(
        "{reads}\n{} layers, hidden {}, {} heads of {}, MLP {} ({:?})\n",
        config.layers,
        config.hidden_size,
        config.heads,
        config.head_dim,
        config.intermediate_size,
        config.activation
    )
}

fn in_words(report: &Report) -> String {
    let mut text = match &report.config {
        Config::Decoder(config) => decoder_in_words(config),
        Config::Encoder(config) => encoder_in_words(config),
    };
    let cache = report
        .kv_bytes_per_token
        .map_or(String::new(), |bytes| format!("; KV cache {} a token in bf16", bytes_in_words(bytes)));
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "{} tensors, {:.2} M parameters, {}{cache}\n",
        report.tensors.len(),
        report.parameters as f64 / 1e6,
        bytes_in_words(report.bytes),
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
