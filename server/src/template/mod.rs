//! Chats become prompts, by the checkpoint's own template or a plain one.
//!
//! A checkpoint's template is a stranger's program, so that other processes run it: `jinja` and `functions` are the language, `renderer` is
//! such a process, `pool` starts and asks them.

mod functions;
mod jinja;
mod pool;
mod renderer;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tilewright::checkpoint::{is_there, read_at_most};

use crate::ServeError;
use crate::error::ApiResult;
use jinja::Template;
use pool::{NoRenderer, Renderers};

pub use renderer::render_chats;

/// Bytes of a file that a template is read from.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Message {
    pub role: String,
    pub content: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What a prompt is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Conversation {
    pub messages: Vec<Message>,
    /// Ends the prompt with what begins an answer.
    pub add_generation_prompt: bool,
    /// Further variables for the template.
    pub variables: Map<String, Value>,
}

/// How a chat becomes a prompt.
pub(crate) enum ChatTemplate {
    /// `role: content` and a line's end for each message, then `assistant:`.
    Plain,
    /// The checkpoint's.
    Own(Renderers),
}

impl ChatTemplate {
    /// The template of a checkpoint's folder, which `renderer` starts processes for.
    pub fn load(dir: &Path, renderer: &[OsString]) -> Result<ChatTemplate, ServeError> {
        let Some((path, template)) = find(dir)? else { return Ok(ChatTemplate::Plain) };
        let Some(program) = renderer.first() else {
            return Err(ServeError::Config {
                what: "renderer",
                expected: format!("a command that renders chats, for {}", path.display()),
                found: "none".into(),
            });
        };
        Renderers::new(renderer.to_vec(), &template).map(ChatTemplate::Own).map_err(|error| match error {
            NoRenderer::Start(source) => ServeError::Io { what: program.display().to_string(), source },
            NoRenderer::Template(found) => {
                ServeError::template(&path, format!("expected a chat template, found {found}"))
            }
        })
    }

    /// Whether the checkpoint brought it.
    pub fn is_own(&self) -> bool {
        matches!(self, ChatTemplate::Own(_))
    }

    /// The prompt of a chat.
    pub async fn render(&self, conversation: &Conversation) -> ApiResult<String> {
        match self {
            ChatTemplate::Plain => Ok(plain(conversation)),
            ChatTemplate::Own(renderers) => renderers.render(conversation).await,
        }
    }
}

fn plain(conversation: &Conversation) -> String {
    let lines =
        conversation.messages.iter().map(|message| format!("{}: {}\n", message.role, message.content));
    let mut text: String = lines.collect();
    if conversation.add_generation_prompt {
        text += "assistant:";
    }
    text
}

/// A checkpoint's template and the file that it's in: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`.
fn find(dir: &Path) -> Result<Option<(PathBuf, Template)>, ServeError> {
    let config_path = dir.join("tokenizer_config.json");
    let config = match read(&config_path)? {
        None => Value::Null,
        Some(text) => serde_json::from_str(&text)
            .map_err(|error| ServeError::template(&config_path, format!("expected JSON, found {error}")))?,
    };
    let own_path = dir.join("chat_template.jinja");
    let found = match read(&own_path)? {
        Some(source) => Some((own_path, source)),
        None => in_config(&config).map(|source| (config_path, source.to_string())),
    };
    let special_tokens = special_tokens(&config);
    Ok(found.map(|(path, source)| (path, Template { source, special_tokens })))
}

/// The text of a file that may not be there.
fn read(path: &Path) -> Result<Option<String>, ServeError> {
    if !is_there(path) {
        return Ok(None);
    }
    let bytes = read_at_most(path, MAX_FILE_BYTES)?;
    let wrong = |error| ServeError::template(path, format!("expected UTF-8 text, found {error}"));
    String::from_utf8(bytes).map(Some).map_err(|error| wrong(error.utf8_error()))
}

/// `chat_template` is a template, or several with names.
fn in_config(config: &Value) -> Option<&str> {
    match config.get("chat_template")? {
        Value::String(source) => Some(source),
        Value::Array(named) => {
            let default = named.iter().find(|one| one.get("name").and_then(Value::as_str) == Some("default"));
            default?.get("template")?.as_str()
        }
        _ => None,
    }
}

/// `bos_token` and its like, which templates name.
fn special_tokens(config: &Value) -> Map<String, Value> {
    let names = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];
    let text = |name: &str| match config.get(name)? {
        Value::String(text) => Some(text.clone()),
        other => other.get("content").and_then(Value::as_str).map(str::to_string),
    };
    names.iter().filter_map(|&name| Some((name.to_string(), Value::String(text(name)?)))).collect()
}
