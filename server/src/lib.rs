//! An OpenAI-compatible HTTP server over [`tilewright::Engine`].
//!
//! A client of that API needs to change its base URL: `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/models`, with
//! streaming; beside them `/health`, `/ready` and Prometheus' `/metrics`. A field that asks for what isn't done is refused by name
//! rather than ignored; limits are in [`Limits`].
//!
//! ```
//! use tilewright::{DeviceChoice, Engine, Model, engine::EngineConfig};
//! use tilewright_server::{Server, ServerConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo/target");
//! let model = Model::load(demo, DeviceChoice::Cpu)?;
//! let engine = Engine::new(model, EngineConfig::default())?;
//! let server = Server::generating(engine, ServerConfig::new("demo"))?;
//! let runtime = tokio::runtime::Runtime::new()?;
//! let stats = runtime.block_on(async {
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//!     // Serves until the future ends: here at once.
//!     std::io::Result::Ok(server.serve(listener, async {}).await)
//! })?;
//! assert_eq!(stats.map(|stats| stats.tokens), Some(0));
//! # Ok(())
//! # }
//! ```
//!
//! | room | what is in it |
//! |---|---|
//! | `serve`, `stalls` | connections: accepted, timed, drained |
//! | `http` | routes, the key, bodies, metrics of requests |
//! | `fields`, `request` | a body's fields, read by name; what requests have in common |
//! | `chat`, `completions`, `embeddings` | a route each: from a body to a response |
//! | `template` | a chat becomes a prompt, by a checkpoint's template in a process of its own |
//! | `turns` | how much text is made into tokens at a time |
//! | `job`, `judge` | sequences in the engine; what a model thinks of a prompt |
//! | `memory` | what the C library's allocator keeps |
//! | `reply`, `tokens` | answers as the API tells them, whole or streamed |
#![warn(missing_docs)]

mod app;
mod chat;
mod completions;
mod config;
mod embed;
mod embeddings;
mod error;
mod fields;
mod http;
mod job;
mod judge;
mod memory;
mod metrics;
mod reply;
mod request;
mod serve;
mod stalls;
mod template;
mod tokens;
mod turns;

pub use app::ServeError;
pub use config::{Limits, ServerConfig};
pub use embed::{Embed, EmbedInput, Embedded};
pub use memory::return_freed_memory;
pub use serve::{Server, run};
pub use template::render_chats;
