//! Serving many requests at once: a paged KV cache, continuous batching, speculative decoding.
//!
//! An [`Engine`] owns a thread that repeats three verbs. *Schedule* decides which tokens of which sequences the next step computes;
//! *run* computes them in one forward pass and chooses tokens from its logits; *commit* moves sequences on by them. Data
//! flows one way: requests, a plan, a batch, logits, tokens. Tokens are told to who waits for them while the device computes the next
//! step, as soon as that is launched, or at once where no step follows or the device does nothing by itself.
//!
//! An answer depends on its request alone, bit for bit on one device: not on who else is served, how its prompt is cut into chunks,
//! the size of pages, what the prefix cache knows, whether it was computed anew after giving its pages up, or, where it's
//! greedy, on drafts. A token's rows are computed by the kernels of its class (see [`tilewright_host::RowClass`]), draws
//! are keyed by seed, request and position, and pages are shared only between tokens of the same history.
//!
//! ```
//! use tilewright::engine::{DraftLength, Engine, EngineConfig, Request, Speculation};
//! use tilewright::{DeviceChoice, Model};
//!
//! # fn main() -> tilewright::Result<()> {
//! # let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo");
//! let target = Model::load(format!("{demo}/target"), DeviceChoice::Cpu)?;
//! let draft = Model::load(format!("{demo}/draft"), DeviceChoice::Cpu)?;
//! let prompts = ["fn main() {", "impl Iterator for "].map(|text| target.tokenizer().expect("there is one").encode(text));
//!
//! let speculation = Speculation::DraftModel(DraftLength::Fixed(3));
//! let engine = Engine::with_draft(target, &draft, EngineConfig { speculation, ..EngineConfig::default() })?;
//! // Both are under way before the first is read.
//! let mut streams = Vec::new();
//! for prompt in prompts {
//!     streams.push(engine.submit(Request { max_tokens: 12, ..Request::new(prompt?) })?);
//! }
//! for stream in streams {
//!     let mut text = String::new();
//!     for output in stream {
//!         text += &output?.text;
//!     }
//!     assert!(!text.is_empty());
//! }
//! let stats = engine.shutdown();
//! assert_eq!(stats.tokens, 24);
//! assert!(stats.accepted > 0);
//! # Ok(())
//! # }
//! ```
//!
//! | room | what is in it |
//! |---|---|
//! | `pages`, `prefix`, `memory` | which pages are free, which hold what, whose they are |
//! | `track`, `schedule` | sequences as the scheduler sees them; the plan of a step |
//! | `step` | a plan becomes a batch, logits become tokens |
//! | `speculate` | drafts: of a smaller model, of what was said before; how many |
//! | `answer`, `outbox` | what decides when an answer ends; its tokens become text, and reach whoever waits |
//! | `core`, `service` | the three verbs; the thread and its handles |

mod answer;
mod config;
mod core;
mod memory;
mod outbox;
mod pages;
mod prefix;
mod request;
mod schedule;
mod service;
mod speculate;
mod stats;
mod step;
#[cfg(test)]
mod tests;
mod track;

pub use config::{Batching, DraftLength, EngineConfig, Speculation};
pub use request::{Output, Request};
pub use service::{Engine, Ticket, TokenStream};
pub use stats::EngineStats;
