//! Times whole models of random weights through the engine; see `benches/README.md`.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;
use tilewright::{DeviceChoice, Model, Penalties, SamplingParams};
use tilewright_benches::{
    Error, Result,
    e2e::{
        run::{Choice, Plan, measure},
        shape::{self, Weights},
        show::{self, Measured, Report},
    },
    machine::{Machine, commit, now},
};

/// Times whole models of random weights through the engine, beside the wall that reading the weights is.
#[derive(Parser)]
struct Args {
    /// The model: llama-3.1-8b, llama-3.2-1b or tiny.
    #[arg(long, default_value = "llama-3.1-8b")]
    shape: String,
    /// How weights are stored: bf16, int4 (four bits in groups of 128), the same in act-order, int8 (eight bits in groups of 128), w8a8 (eight
    /// bits a channel, activations too); the first two where not given.
    #[arg(long)]
    weights: Option<WeightsArg>,
    /// Requests at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,32,128")]
    batch: Vec<usize>,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 128)]
    prompt: usize,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 256)]
    new: usize,
    /// Timings, of which the median is told.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Samples at this temperature, 0 for the likeliest.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Repetition penalty of every request, 1 for none.
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// 'cpu', 'cuda' or 'cuda:N'.
    #[arg(long, default_value = "auto")]
    device: String,
    /// What the walls are made of: bytes a second that the device reads at most.
    #[arg(long, default_value_t = 4.3e12, value_name = "BYTES")]
    read: f64,
    /// Also times every launch of a shorter run (GPU only).
    #[arg(long)]
    profile: bool,
    /// Also measures with keys appended by launches of their own, which has the same bits (GPU only).
    #[arg(long)]
    append_apart: bool,
    /// The commit that was built, where git can't say; else TILEWRIGHT_COMMIT.
    #[arg(long)]
    commit: Option<String>,
    /// Writes the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum WeightsArg {
    Bf16,
    Int4,
    Int4ActOrder,
    Int8,
    W8a8,
}

impl Args {
    fn choice(&self) -> Choice {
        Choice {
            sampling: SamplingParams { temperature: self.temperature, ..SamplingParams::default() },
            penalties: Penalties { repetition: self.repetition_penalty, ..Penalties::default() },
        }
    }
}

/// A model on a device, and what counts its launches.
struct Subject {
    model: Model,
    counts: Box<dyn Fn() -> [u64; 2]>,
    #[cfg(feature = "cuda")]
    gpu: Option<std::sync::Arc<ObservedGpu>>,
}

/// Tokens of the answers of a run that is profiled.
#[cfg(feature = "cuda")]
const PROFILED_TOKENS: usize = 16;

#[cfg(feature = "cuda")]
type ObservedGpu = tilewright_host::gpu::GpuDevice<
    tilewright_benches::e2e::observe::Observed<tilewright_host::gpu::cuda::CudaDriver>,
>;

fn main() -> ExitCode {
    match report(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn report(args: &Args) -> Result<()> {
    let mut report = Report {
        machine: Machine::default(),
        device: String::new(),
        commit: commit(args.commit.as_deref()),
        date: now(),
        read_bytes_per_second: args.read,
        models: Vec::new(),
    };
    report.machine.driver = tilewright_benches::machine::driver_version().unwrap_or("unknown".into());
    let weights = match args.weights {
        None => vec![Weights::Bf16, Weights::Int4],
        Some(WeightsArg::Bf16) => vec![Weights::Bf16],
        Some(WeightsArg::Int4) => vec![Weights::Int4],
        Some(WeightsArg::Int4ActOrder) => vec![Weights::Int4ActOrder],
        Some(WeightsArg::Int8) => vec![Weights::Int8],
        Some(WeightsArg::W8a8) => vec![Weights::W8a8],
    };
    for weights in weights {
        for measured in measure_model(args, weights, &mut report.device)? {
            println!("{}", show::table(&measured));
            for profile in &measured.profiles {
                println!("{}", show::profile(profile));
            }
            report.models.push(measured);
        }
        if let Some(path) = &args.json {
            let json = serde_json::to_vec_pretty(&report).map_err(|source| Error::Json {
                origin: path.display().to_string(),
                expected: "a report",
                source,
            })?;
            std::fs::write(path, json).map_err(|source| Error::File { path: path.clone(), source })?;
        }
    }
    Ok(())
}

/// As it is, and as asked for besides.
fn measure_model(args: &Args, weights: Weights, device: &mut String) -> Result<Vec<Measured>> {
    let config = shape::config(&args.shape, weights)?;
    let began = Instant::now();
    let weight_bytes = shape::weight_bytes(&config);
    let subject = load(&args.device, config)?;
    let load_seconds = began.elapsed().as_secs_f64();
    *device = subject.model.device();
    eprintln!("{} {weights:?} on {device}: loaded in {load_seconds:.1} s", args.shape);
    let plan = Plan {
        batches: args.batch.clone(),
        prompt: args.prompt,
        new_tokens: args.new,
        runs: args.runs,
        read_bytes_per_second: args.read,
        choice: args.choice(),
    };
    let (mut measured, mut alone) = (Vec::new(), None);
    for append_apart in [false, true].into_iter().take(1 + usize::from(args.append_apart)) {
        if append_apart {
            append_by_itself(&subject)?;
        }
        let cells = measure(&subject.model, &plan, &*subject.counts, &mut alone)?;
        let profiles = if args.profile { profiles(&subject, args)? } else { Vec::new() };
        let shape = args.shape.clone();
        measured.push(Measured { shape, weights, append_apart, weight_bytes, load_seconds, cells, profiles });
    }
    Ok(measured)
}

#[cfg(feature = "cuda")]
fn append_by_itself(subject: &Subject) -> Result<()> {
    subject.gpu.as_ref().ok_or(Error::NoCuda)?.append_apart(true);
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn append_by_itself(_: &Subject) -> Result<()> {
    Err(Error::NoCuda)
}

#[cfg(feature = "cuda")]
fn load(device: &str, config: tilewright::config::ModelConfig) -> Result<Subject> {
    use tilewright_benches::e2e::observe::Observed;
    use tilewright_host::gpu::{GpuDevice, cuda::CudaDriver};

    let index = match device.parse::<DeviceChoice>()? {
        DeviceChoice::Cuda(index) => index,
        DeviceChoice::Auto => 0,
        choice => return on_cpu(choice, config),
    };
    let gpu = std::sync::Arc::new(GpuDevice::new(Observed::new(CudaDriver::open(index)?)));
    let model = Model::random_on(config, 1, gpu.clone())?;
    let counts = gpu.driver().counts();
    Ok(Subject { model, counts: Box::new(move || counts.launches()), gpu: Some(gpu) })
}

#[cfg(not(feature = "cuda"))]
fn load(device: &str, config: tilewright::config::ModelConfig) -> Result<Subject> {
    on_cpu(device.parse()?, config)
}

fn on_cpu(choice: DeviceChoice, config: tilewright::config::ModelConfig) -> Result<Subject> {
    Ok(Subject {
        model: Model::random(config, 1, choice)?,
        counts: Box::new(|| [0; 2]),
        #[cfg(feature = "cuda")]
        gpu: None,
    })
}

#[cfg(feature = "cuda")]
fn profiles(subject: &Subject, args: &Args) -> Result<Vec<show::Profile>> {
    let Some(gpu) = &subject.gpu else { return Err(Error::NoCuda) };
    let mut profiles = Vec::new();
    for &batch in &args.batch {
        gpu.driver().time(true);
        let steps = tilewright_benches::e2e::run::once(
            &subject.model,
            args.prompt,
            batch,
            PROFILED_TOKENS,
            args.choice(),
        )?;
        gpu.driver().time(false);
        profiles.push(show::Profile { batch, steps, operations: gpu.driver().operations() });
    }
    Ok(profiles)
}

#[cfg(not(feature = "cuda"))]
fn profiles(_: &Subject, _: &Args) -> Result<Vec<show::Profile>> {
    Err(Error::NoCuda)
}
