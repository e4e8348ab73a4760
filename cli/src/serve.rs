use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tilewright::config::{EncoderConfig, ModelConfig};
use tilewright::engine::EngineConfig;
use tilewright::{Embedder, Engine};
use tilewright_server::{Limits, ServeError, Server, ServerConfig};

use crate::args::ServeArgs;
use crate::load::{check_dir, load, load_beside, model_dir, tell_why_no_gpu};
use crate::output::Failure;

/// Where the key is looked for when no flag gives it: a command line is there for all to see.
const KEY_VARIABLE: &str = "TILEWRIGHT_API_KEY";
/// Of the context, the part that the cache holds for each running sequence where no flag says.
const CACHE_SHARE: usize = 4;

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Failure {
        match error {
            ServeError::Config { what, expected, found } => Failure::expected(what, &expected, &found),
            other => Failure::Message(other.to_string()),
        }
    }
}

pub fn run(args: &ServeArgs) -> Result<ExitCode, Failure> {
    tilewright_server::return_freed_memory();
    let api_key = args.api_key.clone().or_else(|| std::env::var(KEY_VARIABLE).ok());
    if api_key.as_ref().is_some_and(|key| key.is_empty() || !key.is_ascii()) {
        return Err(Failure::Message("--api-key: expected ASCII characters, found none or others".into()));
    }
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log).map_err(|error| {
        Failure::Message(format!("--log: expected a level or a filter, found {:?}: {error}", args.log))
    })?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
    // Before the weights are loaded: a slip in a flag is answered at once.
    let limits = limits(args);
    limits.validate()?;
    if let Some(dir) = &args.draft {
        check_dir("--draft", dir)?;
    }
    let dir = model_dir(args.model.model.as_ref())?;
    let name = args.name.first().cloned().unwrap_or_else(|| name_of(args, &dir));
    let config = ServerConfig {
        aliases: args.name.iter().skip(1).cloned().collect(),
        api_key,
        limits,
        renderer: renderer()?,
        ..ServerConfig::new(name.clone())
    };
    let is_open = config.api_key.is_none();
    let embeds = EncoderConfig::describes(&dir)?;
    let (server, device) =
        if embeds { embedding(args, &dir, config)? } else { generating(args, &dir, config)? };
    let answers = match (embeds, server.has_chat_template()) {
        (true, _) => "embeddings",
        (false, true) => "the checkpoint's chat template",
        (false, false) => "a plain chat template",
    };
    let address = format!("{}:{}", bracketed(&args.host), args.port);
    let stats = tilewright_server::run(server, &address, |bound| {
        if is_open && !bound.ip().is_loopback() {
            eprintln!("note: anybody who reaches {bound} may use this server; --api-key keeps others out");
        }
        eprintln!("serving {name} on {device}, {answers}: http://{bound}/v1");
    })?;
    if let Some(stats) = stats {
        eprintln!("ended: {} tokens in {} steps, {} pages held", stats.tokens, stats.steps, stats.pages_held);
    }
    Ok(ExitCode::SUCCESS)
}

/// This program, as [`render_chats`].
fn renderer() -> Result<Vec<OsString>, Failure> {
    let program = std::env::current_exe();
    let program = program.map_err(|error| Failure::Message(format!("this program's path: {error}")))?;
    Ok(vec![program.into(), "render-chats".into()])
}

/// What the server's processes do that render chats.
pub fn render_chats() -> Result<ExitCode, Failure> {
    match tilewright_server::render_chats() {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::BrokenPipe),
        Err(error) => Err(Failure::Message(error.to_string())),
    }
}

/// A decoder behind an engine, and its device.
fn generating(args: &ServeArgs, dir: &Path, server: ServerConfig) -> Result<(Server, String), Failure> {
    let config = engine_config(args, ModelConfig::load(dir)?.context)?;
    let model = load(&args.model)?;
    let draft = args.draft.as_ref().map(|dir| load_beside(dir, args.model.device)).transpose()?;
    let device = model.device();
    let engine = match &draft {
        Some(draft) => Engine::with_draft(model, draft, config)?,
        None => Engine::new(model, config)?,
    };
    Ok((Server::generating(engine, server)?, device))
}

/// The engine's sizes, by the flags and the model's context.
fn engine_config(args: &ServeArgs, context: usize) -> Result<EngineConfig, Failure> {
    let wanted = (context / CACHE_SHARE).saturating_mul(args.max_running).max(context);
    if args.cache_tokens.is_none() && wanted > u32::MAX as usize {
        let expected =
            format!("--cache-tokens beside it, or at most {}", u32::MAX as usize * CACHE_SHARE / context);
        return Err(Failure::expected("max_running", &expected, &args.max_running));
    }
    let defaults = EngineConfig::default();
    let speculation = args.speculation();
    let rows = args.max_running.saturating_mul(1 + speculation.max_drafts()).saturating_add(1);
    let config = EngineConfig {
        cache_tokens: args.cache_tokens.unwrap_or(wanted),
        max_running: args.max_running,
        step_tokens: defaults.step_tokens.max(rows),
        prefix_cache: !args.no_prefix_cache,
        speculation,
        kv_dtype: args.kv_dtype,
        ..defaults
    };
    config.validate()?;
    Ok(config)
}

/// A BERT-like model, and its device.
fn embedding(args: &ServeArgs, dir: &Path, server: ServerConfig) -> Result<(Server, String), Failure> {
    let embedder = Embedder::load(dir, args.model.device)?;
    tell_why_no_gpu(embedder.no_gpu());
    let device = embedder.device();
    Ok((Server::embedding(Box::new(embedder), server)?, device))
}

fn limits(args: &ServeArgs) -> Limits {
    Limits {
        body_bytes: args.max_body_bytes,
        queue: args.max_queue,
        choices: args.max_choices,
        connections: args.max_connections,
        request_time: Duration::from_secs(args.request_timeout),
        drain_time: Duration::from_secs(args.drain_timeout),
        head_time: Duration::from_secs(args.head_timeout),
        ..Limits::default()
    }
}

/// The model's folder's name; the demo's is told by its parent.
fn name_of(args: &ServeArgs, dir: &Path) -> String {
    if args.model.model.is_none() {
        return "tilewright-demo".into();
    }
    // A path like '.' has no name of its own.
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    dir.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

/// An IPv6 address stands in brackets before a port.
fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_string() }
}
