use std::ffi::OsString;
use std::time::Duration;

use tilewright::engine::Request;
use tokio::sync::Semaphore;

use crate::app::ServeError;

/// Least bytes of a head that the HTTP parser can be held to.
const MIN_HEAD_BYTES: usize = 8192;
/// A limit of time at most, so that there is an instant when it's over: a year.
const MAX_TIME: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// What a server is called, who may use it, and how much it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// The model's name in `/v1/models` and in answers.
    pub model_name: String,
    /// Further names that requests may give the model.
    pub aliases: Vec<String>,
    /// The key that every route but `/health` asks for, where there is one.
    pub api_key: Option<String>,
    /// How much is taken.
    pub limits: Limits,
    /// Program and arguments of a process that does nothing but [`render_chats`](crate::render_chats). A checkpoint's chat template runs
    /// there, out of the server's memory; without a command, which is the default, a checkpoint that has one is refused.
    pub renderer: Vec<OsString>,
}

impl ServerConfig {
    /// An open server with the default limits.
    pub fn new(model_name: impl Into<String>) -> ServerConfig {
        let (aliases, api_key, limits) = (Vec::new(), None, Limits::default());
        ServerConfig { model_name: model_name.into(), aliases, api_key, limits, renderer: Vec::new() }
    }
}

/// How much a server takes. What is beyond is refused with the limit's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body, and of the prompt that a chat becomes.
    pub body_bytes: usize,
    /// Bytes of text, of all requests together, that are made into tokens at a time; a longer text goes alone.
    pub text_bytes: usize,
    /// Bytes of a request's head, at least 8192.
    pub head_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
    /// Sequences that may wait beyond those that the engine runs.
    pub queue: usize,
    /// Answers to one prompt (`n`).
    pub choices: usize,
    /// Prompts, or inputs to embed, of one request.
    pub prompts: usize,
    /// Messages of one chat.
    pub messages: usize,
    /// Stop strings.
    pub stops: usize,
    /// Bytes of a stop string.
    pub stop_bytes: usize,
    /// Tokens with a bias.
    pub logit_bias: usize,
    /// Likeliest tokens told of at each position.
    pub top_logprobs: usize,
    /// Time for a request's head to arrive, and for an idle connection to ask again.
    pub head_time: Duration,
    /// Time for a request's body to arrive.
    pub body_time: Duration,
    /// Time for a request to be answered, waiting included.
    pub request_time: Duration,
    /// Time that requests under way get to finish after the server was told to end.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body_bytes: 4 << 20,
            text_bytes: 4 << 20,
            head_bytes: 16 << 10,
            headers: 64,
            connections: 4096,
            queue: 128,
            choices: 16,
            prompts: 128,
            messages: 4096,
            stops: 16,
            stop_bytes: 256,
            logit_bias: 1024,
            top_logprobs: 20,
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(30),
            request_time: Duration::from_secs(600),
            drain_time: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// Refuses what can't be kept, before a model is loaded for it.
    ///
    /// # Errors
    /// Names the limit.
    pub fn validate(&self) -> Result<(), ServeError> {
        let counts = [
            ("connections", self.connections, 1),
            ("head bytes", self.head_bytes, MIN_HEAD_BYTES),
            ("headers", self.headers, 1),
            ("body bytes", self.body_bytes, 1),
            ("choices", self.choices, 1),
            ("prompts", self.prompts, 1),
            ("messages", self.messages, 1),
            ("text bytes", self.text_bytes, 1),
        ];
        for (what, found, least) in counts {
            if found < least {
                let (expected, found) = (format!("at least {least}"), found.to_string());
                return Err(ServeError::Config { what, expected, found });
            }
        }
        let times = [
            ("head time", self.head_time),
            ("body time", self.body_time),
            ("request time", self.request_time),
            ("drain time", self.drain_time),
        ];
        for (what, found) in times {
            // Who serves may end at once.
            if found.is_zero() && what != "drain time" {
                let expected = "some time".to_string();
                return Err(ServeError::Config { what, expected, found: "none".to_string() });
            }
            if found > MAX_TIME {
                let expected = format!("at most {} seconds", MAX_TIME.as_secs());
                return Err(ServeError::Config { what, expected, found: found.as_secs().to_string() });
            }
        }
        let permits = Semaphore::MAX_PERMITS / 2;
        let counts = [
            ("connections", self.connections, permits),
            ("queue", self.queue, permits),
            ("choices", self.choices, Request::MAX_ANSWERS),
        ];
        for (what, found, most) in counts {
            if found > most {
                return Err(ServeError::Config {
                    what,
                    expected: format!("at most {most}"),
                    found: found.to_string(),
                });
            }
        }
        Ok(())
    }
}
