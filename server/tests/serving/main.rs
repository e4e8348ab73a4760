//! The server as clients meet it: over TCP, on the demo model.

mod answers;
mod client;
mod embedding;
mod faults;
mod overload;
mod streams;
mod templates;
mod texts;
