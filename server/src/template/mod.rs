//! Chats become prompts, by the checkpoint's own template or a plain one.

mod functions;
#[cfg(test)]
mod tests;

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::ServeError;
use crate::error::{ApiError, ApiResult};

/// Work that one rendering may do: about as many instructions, or 64 times as many bytes made.
const FUEL: u64 = 1_000_000;
/// Calls within calls: a template's are few, and each takes room on the stack.
const RECURSION: usize = 64;
/// Stack of a rendering, for values nested as deep as the fuel reaches; only what is used takes memory.
const STACK_BYTES: usize = 256 << 20;
/// Bytes of a file that a template is read from.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// The template's name within its environment. No extension, so that nothing is escaped for HTML.
const NAME: &str = "chat";

/// A message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Message {
    pub role: String,
    pub content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What a chat's prompt is made with beside its messages.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RenderOptions {
    /// Ends the prompt with what begins an answer.
    pub add_generation_prompt: bool,
    /// Further variables for the template.
    pub variables: Map<String, Value>,
}

/// How a chat becomes a prompt.
pub(crate) enum ChatTemplate {
    /// `role: content` and a line's end for each message, then `assistant:`.
    Plain,
    /// The checkpoint's, with its names of special tokens.
    Jinja(Box<Environment<'static>>, Map<String, Value>),
}

impl ChatTemplate {
    /// The template of a checkpoint's folder: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`, or the plain one.
    pub fn load(dir: &Path) -> Result<ChatTemplate, ServeError> {
        let config_path = dir.join("tokenizer_config.json");
        let config = match read(&config_path)? {
            None => Value::Null,
            Some(text) => serde_json::from_str(&text).map_err(|error| {
                ServeError::template(&config_path, format!("expected JSON, found {error}"))
            })?,
        };
        let own_path = dir.join("chat_template.jinja");
        match read(&own_path)? {
            Some(source) => ChatTemplate::jinja(&own_path, source, &config),
            None => match in_config(&config) {
                Some(source) => ChatTemplate::jinja(&config_path, source.to_string(), &config),
                None => Ok(ChatTemplate::Plain),
            },
        }
    }

    fn jinja(path: &Path, source: String, config: &Value) -> Result<ChatTemplate, ServeError> {
        let refuse = |error: minijinja::Error| {
            ServeError::template(path, format!("expected a chat template, found {}", in_one_line(&error)))
        };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(refuse)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        functions::add(&mut environment);
        environment.add_template_owned(NAME, source).map_err(refuse)?;
        Ok(ChatTemplate::Jinja(Box::new(environment), special_tokens(config)))
    }

    /// Whether the checkpoint brought it.
    pub fn is_own(&self) -> bool {
        matches!(self, ChatTemplate::Jinja(..))
    }

    /// The prompt of a chat.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> ApiResult<String> {
        match self {
            ChatTemplate::Plain => Ok(plain(messages, options.add_generation_prompt)),
            ChatTemplate::Jinja(environment, tokens) => {
                let render = || render(environment, tokens, messages, options);
                // On a stack of its own: a template may nest values as deep as it can pay for.
                std::thread::scope(|scope| {
                    let thread =
                        std::thread::Builder::new().name("chat-template".into()).stack_size(STACK_BYTES);
                    let thread = thread.spawn_scoped(scope, render);
                    let ended =
                        thread.map_err(|_| ApiError::unavailable("no thread for the chat template"))?.join();
                    ended.unwrap_or_else(|_| Err(ApiError::internal("the chat template failed")))
                })
            }
        }
    }
}

fn render(
    environment: &Environment<'_>,
    tokens: &Map<String, Value>,
    messages: &[Message],
    options: &RenderOptions,
) -> ApiResult<String> {
    let mut variables = tokens.clone();
    variables.extend(options.variables.clone());
    variables.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
    variables.insert("tools".into(), Value::Null);
    variables.insert("documents".into(), Value::Null);
    let messages = minijinja::Value::from(minijinja::value::Serde(messages));
    let rest = minijinja::Value::from(minijinja::value::Serde(&variables));
    let context = minijinja::context! { messages, ..rest };
    let rendered = environment.get_template(NAME).and_then(|template| template.render(context));
    rendered.map_err(|error| match error.kind() {
        ErrorKind::OutOfFuel => {
            ApiError::field("messages", "a chat that the template renders within its budget", "a longer one")
        }
        _ => ApiError::field("messages", "a chat that the template takes", in_one_line(&error)),
    })
}

fn plain(messages: &[Message], add_generation_prompt: bool) -> String {
    let mut text: String =
        messages.iter().map(|message| format!("{}: {}\n", message.role, message.content)).collect();
    if add_generation_prompt {
        text += "assistant:";
    }
    text
}

/// The text of a file that may not be there.
fn read(path: &Path) -> Result<Option<String>, ServeError> {
    let io = |error: std::io::Error| ServeError::template(path, error.to_string());
    if !path.exists() {
        return Ok(None);
    }
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > MAX_FILE_BYTES {
        let message = format!("expected at most {MAX_FILE_BYTES} bytes, found {bytes}");
        return Err(ServeError::template(path, message));
    }
    std::fs::read_to_string(path).map(Some).map_err(io)
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

fn in_one_line(error: &minijinja::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
