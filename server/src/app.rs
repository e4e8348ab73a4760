//! What all requests share.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tilewright::tokenizer::Tokenizer;
use tilewright::{Engine, Model};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::config::{Limits, ServerConfig};
use crate::embed::Embed;
use crate::error::{ApiError, ApiResult};
use crate::metrics::Metrics;
use crate::serve::BLOCKING_THREADS;
use crate::template::ChatTemplate;
use crate::tokens::Spelling;
use crate::turns::Turns;

/// What is expected of a text where nothing makes it into tokens.
pub(crate) const IDS_ALONE: &str = "token ids, as the model has no tokenizer";

/// Why a server can't start, or ended. Each message is one line, also where `{:?}` prints it, as it is of [`tilewright::Error`].
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A checkpoint's chat template can't be used.
    #[error("{}: {message}", path.display())]
    Template {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        message: String,
    },
    /// A file of the checkpoint can't be read.
    #[error(transparent)]
    Checkpoint(#[from] tilewright::Error),
    /// The address can't be listened at, or the process can't be told to end.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A limit that can't be kept.
    #[error("{what}: expected {expected}, found {found}")]
    Config {
        /// The limit.
        what: &'static str,
        /// What would have been taken.
        expected: String,
        /// What was given.
        found: String,
    },
}

impl fmt::Debug for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl ServeError {
    pub(crate) fn template(path: &std::path::Path, message: String) -> ServeError {
        ServeError::Template { path: path.to_path_buf(), message }
    }
}

/// What answers requests.
pub(crate) enum Backend {
    Generates(Box<Generator>),
    Embeds(Box<dyn Embed>),
}

/// A decoder and what belongs to it.
pub(crate) struct Generator {
    pub engine: Engine,
    pub template: ChatTemplate,
    spelling: Option<Spelling>,
    /// Sequences that may be in the engine or wait for it.
    places: Arc<Semaphore>,
    pub all_places: usize,
    /// Prompts are judged one at a time: each takes a cache of its own.
    pub judging: Semaphore,
}

impl Generator {
    pub fn new(engine: Engine, config: &ServerConfig) -> Result<Generator, ServeError> {
        let template = ChatTemplate::load(engine.model().dir(), &config.renderer)?;
        let spelling = engine.model().tokenizer().map(Spelling::of);
        let all_places = engine.config().max_running + config.limits.queue;
        let places = Arc::new(Semaphore::new(all_places));
        Ok(Generator { engine, template, spelling, places, all_places, judging: Semaphore::new(1) })
    }

    pub fn model(&self) -> &Model {
        self.engine.model()
    }

    pub fn tokenizer(&self) -> Option<(&Tokenizer, Spelling)> {
        self.model().tokenizer().zip(self.spelling)
    }

    pub fn require_tokenizer(&self, field: &str) -> ApiResult<&Tokenizer> {
        self.model().tokenizer().ok_or_else(|| ApiError::field(field, IDS_ALONE, "text"))
    }

    /// Places for a request's sequences, given back when dropped.
    pub fn enter(&self, sequences: usize) -> ApiResult<OwnedSemaphorePermit> {
        if sequences > self.all_places {
            let expected = format!("at most {} answers of all prompts together", self.all_places);
            return Err(ApiError::field("n", expected, sequences.to_string()));
        }
        let permit = self.places.clone().try_acquire_many_owned(sequences as u32);
        permit.map_err(|_| ApiError::queue_full(self.all_places))
    }

    /// Tokens that prompt and answer may have together.
    pub fn context(&self) -> usize {
        let cached = self.engine.config().pages() * self.engine.config().page_size;
        self.model().config().context.min(cached)
    }
}

/// What all requests share.
pub(crate) struct App {
    pub config: ServerConfig,
    pub backend: Backend,
    pub metrics: Metrics,
    pub turns: Turns,
    pub started: Duration,
    /// Once the server was told to end, when those are refused who still wait for an answer.
    last_call: watch::Sender<Option<Instant>>,
    numbers: AtomicU64,
}

impl App {
    pub fn new(config: ServerConfig, backend: Backend) -> App {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let turns = Turns::new(config.limits.text_bytes, processors.min(BLOCKING_THREADS / 2));
        App {
            config,
            backend,
            metrics: Metrics::new(),
            turns,
            started: since,
            last_call: watch::Sender::new(None),
            numbers: AtomicU64::new(since.as_nanos() as u64),
        }
    }

    pub fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// The decoder, or the refusal of one that asks an encoder to write.
    pub fn generator(&self) -> ApiResult<&Generator> {
        match &self.backend {
            Backend::Generates(generator) => Ok(generator),
            Backend::Embeds(_) => {
                Err(ApiError::field("model", "a model that generates text", "one that embeds it"))
            }
        }
    }

    pub fn embedder(&self) -> ApiResult<&dyn Embed> {
        match &self.backend {
            Backend::Embeds(embedder) => Ok(&**embedder),
            Backend::Generates(_) => {
                Err(ApiError::field("model", "a model that embeds text", "one that generates it"))
            }
        }
    }

    /// From now on nothing new is taken, and what isn't answered at the last call is refused.
    pub fn end(&self, last_call: Instant) {
        self.last_call.send_replace(Some(last_call));
    }

    pub fn is_ending(&self) -> bool {
        self.last_call.borrow().is_some()
    }

    /// Waits for the last call.
    pub async fn last_call(&self) {
        let mut told = self.last_call.subscribe();
        // The sender is here, so that there is an end of waiting.
        let at = told.wait_for(Option::is_some).await.ok().and_then(|at| *at);
        match at {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Whether requests would be answered.
    pub fn is_alive(&self) -> bool {
        match &self.backend {
            Backend::Generates(generator) => generator.engine.is_running(),
            Backend::Embeds(_) => true,
        }
    }

    /// A number unlike those before: for ids, and seeds of requests that bring none.
    ///
    /// # Source
    /// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014, figure 17 (SplitMix64).
    pub fn number(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let z = self.numbers.fetch_add(GAMMA, Ordering::Relaxed);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
