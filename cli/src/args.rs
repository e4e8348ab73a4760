use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use tilewright::cache::kv_dtype;
use tilewright::engine::{DraftLength, Speculation};
use tilewright::quantise::Method;
use tilewright::{DeviceChoice, KvDType, Pooling, SamplingParams};

use crate::bench::BenchArgs;
use crate::ladder::LadderArgs;
use crate::plan::PlanArgs;

/// Transformer inference with every kernel written in Rust.
#[derive(Debug, Parser)]
#[command(name = "tilewright", version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Continue a prompt
    Run(RunArgs),
    /// Vectors of texts, by a BERT-like checkpoint
    Embed(EmbedArgs),
    /// Negative log-likelihood a token and perplexity of a text file
    Eval(EvalArgs),
    /// Hold a checkpoint against the expected values beside it
    Verify(VerifyArgs),
    /// Show a checkpoint's configuration and tensors
    Inspect(InspectArgs),
    /// Write a checkpoint with weights of four or eight bits
    Quantize(QuantizeArgs),
    /// Time kernels, each checked first, and whole models, against what the device was seen to do
    Bench(BenchArgs),
    /// What a model takes of a device and what it can reach there, from its shape alone
    Plan(PlanArgs),
    /// Measure what each optimisation is worth on this machine, beside what is claimed of it
    Ladder(LadderArgs),
    /// Check this machine; or a checkpoint: every tensor, and one layer's products against the plain dequantisation of the file
    Doctor(DoctorArgs),
    /// Serve OpenAI's HTTP API
    Serve(ServeArgs),
    /// Render chats for a server, which starts this process
    #[command(hide = true)]
    RenderChats,
    /// Print this reference, as docs/cli.md has it
    #[command(hide = true)]
    Reference,
}

#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Folder of the checkpoint [default: the bundled demo model]
    #[arg(short, long = "model", value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// auto, cpu, cpu-bf16 (rounds as a GPU does), cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("drafts_from").args(["draft", "ngram"]))]
pub struct RunArgs {
    /// Text to continue; an empty one begins anew, where the checkpoint has a token for it [default: standard input]
    pub prompt: Option<String>,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tokens to generate at most
    #[arg(short = 'n', long = "max-tokens", default_value_t = 128, value_name = "N")]
    pub max_tokens: usize,
    /// Divides the logits; 0 takes the likeliest token
    #[arg(long = "temp", default_value_t = 0.0, value_name = "T", allow_negative_numbers = true)]
    pub temperature: f32,
    /// Sample from the K likeliest tokens; 0 for all
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: u32,
    /// Sample from the fewest tokens whose probabilities reach P; 0 for the likeliest alone
    #[arg(long, default_value_t = 1.0, value_name = "P", allow_negative_numbers = true)]
    pub top_p: f32,
    /// Sample from tokens at least P times as likely as the likeliest
    #[arg(long, default_value_t = 0.0, value_name = "P", allow_negative_numbers = true)]
    pub min_p: f32,
    /// Seed of the draws
    #[arg(short, long, default_value_t = 0)]
    pub seed: u64,
    /// Text at which to stop; may be given again
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// The prompt is token ids, separated by commas or spaces
    #[arg(long)]
    pub ids: bool,
    /// Go on after an end-of-text token
    #[arg(long)]
    pub ignore_eos: bool,
    /// Compute the whole text anew for each token, to see what the KV cache saves
    #[arg(long)]
    pub no_kv_cache: bool,
    /// What keys and values are cached as: auto (bf16 on a GPU, f32 on a CPU), int8 or fp8, a scale a token and head
    #[arg(long, default_value = "auto", value_name = "DTYPE", value_parser = kv_dtype)]
    pub kv_dtype: KvDType,
    /// Speculate with the drafts of a smaller model of the same vocabulary
    #[arg(long, value_name = "DIR", conflicts_with_all = ["ngram", "no_kv_cache"])]
    pub draft: Option<PathBuf>,
    /// Speculate with what followed the last few tokens before
    #[arg(long, conflicts_with = "no_kv_cache")]
    pub ngram: bool,
    /// Drafts a step, 1 to 15 [default: as many as pay, up to 8]
    #[arg(long, value_name = "K", requires = "drafts_from")]
    pub speculate: Option<usize>,
    /// Print one JSON object: prompt_ids, output_ids, text, finish_reason, timings
    #[arg(long)]
    pub json: bool,
}

/// Drafts at most where their number follows what pays.
const MOST_DRAFTS: usize = 8;

/// Where drafts come from, by the flags that say so.
fn speculation(draft: bool, ngram: bool, drafts: Option<usize>) -> Speculation {
    let length = drafts.map_or(DraftLength::Adaptive(MOST_DRAFTS), DraftLength::Fixed);
    match (draft, ngram) {
        (true, _) => Speculation::DraftModel(length),
        (false, true) => Speculation::NGram(length),
        (false, false) => Speculation::Off,
    }
}

impl RunArgs {
    /// Where drafts come from.
    pub fn speculation(&self) -> Speculation {
        speculation(self.draft.is_some(), self.ngram, self.speculate)
    }

    pub fn sampling(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
        }
    }
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("texts_from").args(["texts", "file"]).required(true))]
pub struct EmbedArgs {
    /// Texts
    #[arg(value_name = "TEXT")]
    pub texts: Vec<String>,
    /// File with a text a line
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Folder of the checkpoint
    #[arg(short, long = "model", value_name = "DIR")]
    pub model: PathBuf,
    /// auto, cpu, cpu-bf16 (rounds as a GPU does), cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// How a text's tokens become one vector: mean, cls or pooler [default: as the checkpoint says, or mean]
    #[arg(long)]
    pub pooling: Option<Pooling>,
    /// Leave vectors as long as they are, instead of scaling them to length 1
    #[arg(long)]
    pub no_normalize: bool,
    /// Cut texts that are longer than the model's context, instead of refusing them
    #[arg(long)]
    pub truncate: bool,
    /// Texts are token ids, separated by commas or spaces
    #[arg(long)]
    pub ids: bool,
    /// Print one JSON object: device, dims, pooling, normalised, embeddings
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Text file
    pub file: PathBuf,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tokens a window, its BOS included [default: the model's context]
    #[arg(long, value_name = "TOKENS")]
    pub ctx: Option<usize>,
    /// What keys and values are cached as: auto (bf16 on a GPU, f32 on a CPU), int8 or fp8, a scale a token and head
    #[arg(long, default_value = "auto", value_name = "DTYPE", value_parser = kv_dtype)]
    pub kv_dtype: KvDType,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Folder of the checkpoint
    pub dir: PathBuf,
    /// Expected values: safetensors, or JSON cases of input_ids and greedy_ids [default: DIR/expected.safetensors]
    #[arg(long, value_name = "FILE")]
    pub expected: Option<PathBuf>,
    /// auto, cpu, cpu-bf16 (rounds as a GPU does), cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Folder of the checkpoint
    pub dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// Folder of the checkpoint [default: the bundled demo model]
    #[arg(short, long = "model", value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Folder to write; an interrupted run goes on from what is there
    #[arg(short, long, value_name = "DIR")]
    pub out: PathBuf,
    /// gptq (calibrated), rtn (rounded to the nearest), or int8 (W8A8: eight-bit channels and tokens)
    #[arg(long, default_value = "gptq")]
    pub method: Method,
    /// 4 or 8 [default: 4; of int8, 8]
    #[arg(long)]
    pub bits: Option<usize>,
    /// Inputs that share a scale; -1 for one scale a row
    #[arg(long, default_value_t = 128, value_name = "N", allow_negative_numbers = true)]
    pub group: i64,
    /// Symmetric codes: the zero point is the middle one
    #[arg(long)]
    pub sym: bool,
    /// Quantise columns in descending order of their activations (gptq)
    #[arg(long)]
    pub act_order: bool,
    /// Don't make up for what earlier layers lost, as is done with 32 tokens or more for each input (gptq)
    #[arg(long)]
    pub uncorrected: bool,
    /// Text file to calibrate on, like what the model will read (gptq)
    #[arg(long, value_name = "FILE")]
    pub calib: Option<PathBuf>,
    /// Added to the Hessian's diagonal, over its mean (gptq)
    #[arg(long, default_value_t = 0.01, value_name = "PART", allow_negative_numbers = true)]
    pub damp: f64,
    /// Windows of the text to calibrate on, at most (gptq)
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub samples: usize,
    /// Tokens a window (gptq)
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    pub ctx: usize,
    /// Device that runs the model (gptq): auto, cpu, cpu-bf16, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Folder of a checkpoint to check; without it the machine is
    pub dir: Option<PathBuf>,
    /// auto, cpu, cpu-bf16 (rounds as a GPU does), cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("served_drafts_from").args(["draft", "ngram"]))]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Address to listen at
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub host: String,
    /// Port to listen at; 0 for a free one
    #[arg(short, long, default_value_t = 8000)]
    pub port: u16,
    /// The model's name; given again, a further one [default: the folder's]
    #[arg(long, value_name = "NAME")]
    pub name: Vec<String>,
    /// Key that every route but /health asks for [default: the variable TILEWRIGHT_API_KEY]
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Tokens that all sequences together can cache [default: a quarter of the context for each that runs]
    #[arg(long, value_name = "TOKENS")]
    pub cache_tokens: Option<usize>,
    /// What keys and values are cached as: auto (bf16 on a GPU, f32 on a CPU), int8 or fp8, a scale a token and head
    #[arg(long, default_value = "auto", value_name = "DTYPE", value_parser = kv_dtype)]
    pub kv_dtype: KvDType,
    /// Sequences that run at a time
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub max_running: usize,
    /// Sequences that may wait beyond those; more are answered 429
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub max_queue: usize,
    /// Compute prompts that begin alike each for itself
    #[arg(long)]
    pub no_prefix_cache: bool,
    /// Speculate with the drafts of a smaller model of the same vocabulary
    #[arg(long, value_name = "DIR", conflicts_with = "ngram")]
    pub draft: Option<PathBuf>,
    /// Speculate with what followed the last few tokens before
    #[arg(long)]
    pub ngram: bool,
    /// Drafts a step, 1 to 15 [default: as many as pay, up to 8]
    #[arg(long, value_name = "K", requires = "served_drafts_from")]
    pub speculate: Option<usize>,
    /// Answers to one prompt (n), at most
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub max_choices: usize,
    /// Bytes of a request's body, at most
    #[arg(long, default_value_t = 4 << 20, value_name = "BYTES")]
    pub max_body_bytes: usize,
    /// Connections at a time
    #[arg(long, default_value_t = 4096, value_name = "N")]
    pub max_connections: usize,
    /// Seconds that a request may take, waiting included
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub request_timeout: u64,
    /// Seconds for a request's head to arrive, and for an idle connection to ask again
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub head_timeout: u64,
    /// Seconds that requests get to finish after SIGTERM
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub drain_timeout: u64,
    /// What is logged on standard error: error, warn, info, debug, or a filter by module
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub log: String,
}

impl ServeArgs {
    /// Where drafts come from.
    pub fn speculation(&self) -> Speculation {
        speculation(self.draft.is_some(), self.ngram, self.speculate)
    }
}
