//! `plan`: what a model takes of a device.

mod words;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Args};
use tilewright::config::ModelConfig;
use tilewright::plan::{
    Given, Goal, KvFormat, Plan, PlanRequest, WeightFormat, device, plan, preset, presets,
};

use crate::load::{check_dir, demo_config, model_name};
use crate::output::{Failure, print_json, print_line};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("shape").args(["preset", "config", "model"]))]
pub struct PlanArgs {
    /// A published model: llama-2-70b, llama-3.1-8b, qwen3-8b, ...; see --list
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// A config.json
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of a checkpoint, of which only config.json is read [default: the bundled demo model]
    #[arg(short, long = "model", value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// h100, h200, a100, l40s or rtx4090 from their data sheets; cpu, this machine's, measured
    #[arg(long, default_value = "h100", value_name = "NAME")]
    pub device: String,
    /// Tokens a sequence [default: the model's context, at most 4096]
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// Sequences at a time [default: 1]
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Tokens a page of the cache [default: the engine's, 16]
    #[arg(long, value_name = "TOKENS")]
    pub page_size: Option<usize>,
    /// bf16 (or fp16), int8, int4, and on a CPU f32 [default: the checkpoint's own]
    #[arg(long, value_name = "FORMAT")]
    pub weights: Option<WeightFormat>,
    /// bf16 (or fp16), f32, int8 or fp8 [default: what the engine stores on the device]
    #[arg(long, value_name = "FORMAT")]
    pub kv: Option<KvFormat>,
    /// What the advice is for: latency, throughput or memory
    #[arg(long = "for", default_value = "latency", value_name = "GOAL")]
    pub goal: Goal,
    /// The device's memory, in gigabytes of 10^9 bytes, instead of what is known of it
    #[arg(long, value_name = "GB", allow_negative_numbers = true)]
    pub memory_gb: Option<f64>,
    /// Its bandwidth, in 10^9 bytes a second
    #[arg(long, value_name = "GB/S", allow_negative_numbers = true)]
    pub bandwidth: Option<f64>,
    /// Its dense peak in bf16 (on a CPU in f32), in 10^12 operations a second; the other peaks keep their ratio to it
    #[arg(long, value_name = "TFLOP/S", allow_negative_numbers = true)]
    pub flops: Option<f64>,
    /// Print the names of the presets
    #[arg(long)]
    pub list: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &PlanArgs) -> Result<ExitCode, Failure> {
    if args.list {
        print_line(&presets().collect::<Vec<_>>().join("\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (name, config) = shape(args)?;
    let plan = plan(&config, &device(&args.device, given(args)?)?, &request(args))?;
    if args.json {
        print_json(&named(&name, &plan)?)?;
    } else {
        print_line(&words::in_words(&name, &config, &plan))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The model's name and shape.
fn shape(args: &PlanArgs) -> Result<(String, ModelConfig), Failure> {
    if let Some(name) = &args.preset {
        return Ok((name.clone(), preset(name)?));
    }
    if let Some(path) = &args.config {
        let config = ModelConfig::read(path);
        let config = config.map_err(|error| Failure::Message(format!("--config: {error}")))?;
        return Ok((path.display().to_string(), config));
    }
    let config = match &args.model {
        Some(dir) => {
            check_dir("--model", dir)?;
            ModelConfig::load(dir)?
        }
        None => demo_config()?,
    };
    Ok((model_name(args.model.as_ref()), config))
}

fn request(args: &PlanArgs) -> PlanRequest {
    PlanRequest {
        context: args.context,
        batch: args.batch,
        page_size: args.page_size,
        weights: args.weights,
        kv: args.kv,
        goal: args.goal,
    }
}

fn given(args: &PlanArgs) -> Result<Given, Failure> {
    let memory_bytes = match args.memory_gb {
        None => None,
        Some(gb) if gb.is_finite() && gb > 0.0 && gb <= 1e9 => Some((gb * 1e9) as u64),
        Some(gb) => {
            return Err(Failure::expected("memory", "a number above 0", &gb));
        }
    };
    Ok(Given {
        memory_bytes,
        bytes_per_second: args.bandwidth.map(|bandwidth| bandwidth * 1e9),
        flops_per_second: args.flops.map(|flops| flops * 1e12),
    })
}

/// The plan as JSON, the model's name first.
fn named(name: &str, plan: &Plan) -> Result<serde_json::Value, Failure> {
    let mut value = serde_json::to_value(plan).map_err(|error| Failure::Message(error.to_string()))?;
    if let Some(map) = value.as_object_mut() {
        map.insert("model".into(), name.into());
    }
    Ok(value)
}
