//! `/v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::response::Response;
use serde_json::{Map, Value};
use tilewright::engine::Request;

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::fields::{Fields, shown};
use crate::job::Job;
use crate::reply::{Kind, Reply};
use crate::request::{Common, HARMLESS, Refused, at, check_texts, is_off, max_tokens};
use crate::template::{Conversation, Message};

/// Roles that a message may have.
const ROLES: [&str; 4] = ["system", "developer", "user", "assistant"];

/// Fields that are known, and not supported.
const REFUSED: &[Refused] = &[
    ("response_format", "{\"type\": \"text\"}", |value| {
        value
            .as_object()
            .is_some_and(|format| format.len() == 1 && format.get("type").is_some_and(|kind| kind == "text"))
    }),
    ("tools", "no tools", is_off),
    ("tool_choice", "\"none\"", |value| is_off(value) || value == "auto"),
    ("functions", "no functions", is_off),
    ("function_call", "\"none\"", |value| is_off(value) || value == "auto"),
    ("modalities", "[\"text\"]", |value| {
        value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"))
    }),
    ("audio", "none", is_off),
    ("prediction", "none", is_off),
    ("reasoning_effort", "\"none\"", is_off),
    ("web_search_options", "none", is_off),
    ("verbosity", "\"medium\"", |value| value == "medium"),
    ("store", "false", is_off),
    ("chat_template", "none: the checkpoint's is taken", is_off),
];

/// A chat that can be answered once it has a prompt.
struct Chat {
    conversation: Conversation,
    request: Request,
    /// Tokens that were asked for, and by which field.
    asked: Option<(&'static str, i64)>,
    stream: bool,
    reply: Reply,
}

pub(crate) async fn answer(app: Arc<App>, body: Vec<u8>, deadline: Instant) -> ApiResult<Response> {
    let (bytes, shared) = (body.len(), app.clone());
    let mut chat = super::http::reading(&app, bytes, deadline, move || read(&shared, &body)).await?;
    let template = &app.generator()?.template;
    let rendered = tokio::time::timeout_at(deadline.into(), template.render(&chat.conversation)).await;
    let text = rendered.unwrap_or_else(|_| Err(ApiError::timed_out(app.limits().request_time.as_secs())))?;
    let (bytes, shared) = (text.len(), app.clone());
    let checking = move || check_text(&shared, &text).map(|text_bytes| (text, text_bytes));
    let (text, text_bytes) = super::http::reading(&app, bytes, deadline, checking).await?;
    let shared = app.clone();
    let encoding = move || chat.encode(&shared, &text).map(|()| chat);
    let Chat { request, stream, reply, .. } =
        super::http::tokenising(&app, text_bytes, deadline, encoding).await?;
    let choices = request.answers;
    let places = app.generator()?.enter(choices)?;
    let job = Job::start(&app, vec![request], places, deadline)?;
    super::http::tell(reply, Some(job), choices, stream).await
}

fn read(app: &Arc<App>, body: &[u8]) -> ApiResult<Chat> {
    let generator = app.generator()?;
    let mut fields = Fields::parse(body)?;
    let Common { mut request, stream, include_usage } = Common::read(&mut fields, app)?;
    let conversation = Conversation {
        messages: messages(&mut fields, app.limits().messages)?,
        add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
        variables: variables(&mut fields)?,
    };
    request.logprobs = logprobs(&mut fields, app.limits().top_logprobs)?;
    let newer =
        fields.integer("max_completion_tokens", 1..=i64::MAX)?.map(|asked| ("max_completion_tokens", asked));
    let older = fields.integer("max_tokens", 1..=i64::MAX)?.map(|asked| ("max_tokens", asked));
    fields.finish(&[HARMLESS, &["parallel_tool_calls"]].concat(), REFUSED)?;

    generator.require_tokenizer("messages")?;
    let reply = Reply {
        logprobs: request.logprobs.is_some(),
        include_usage,
        answers: request.answers,
        ..Reply::new(app, Kind::Chat)
    };
    Ok(Chat { conversation, request, asked: newer.or(older), stream, reply })
}

/// Refuses what a chat became, where that is longer than a body may be or than a context. Returns the bytes to take a turn for.
fn check_text(app: &App, text: &str) -> ApiResult<usize> {
    let most = app.limits().body_bytes;
    if text.len() > most {
        let expected = format!("a chat whose prompt has at most {most} bytes");
        return Err(ApiError::field("messages", expected, text.len().to_string()));
    }
    let generator = app.generator()?;
    let tokenizer = generator.require_tokenizer("messages")?;
    check_texts("messages", std::iter::once(text), Some(tokenizer), generator.context(), most)
}

impl Chat {
    /// Makes the template's text the prompt.
    fn encode(&mut self, app: &App, text: &str) -> ApiResult<()> {
        let generator = app.generator()?;
        let tokenizer = generator.require_tokenizer("messages")?;
        // A checkpoint's template writes the tokens that begin a text itself.
        let encoded = match generator.template.is_own() {
            true => tokenizer.encode_plain(text),
            false => tokenizer.encode(text),
        };
        let prompt = encoded.map_err(|error| at("messages", error))?;
        if prompt.is_empty() {
            return Err(ApiError::field("messages", "a chat that becomes at least one token", "none"));
        }
        self.request.max_tokens =
            max_tokens(self.asked, ("messages", prompt.len()), generator.context(), usize::MAX)?;
        self.reply.prompt_tokens = prompt.len();
        self.request.prompt = prompt;
        Ok(())
    }
}

fn messages(fields: &mut Fields, most: usize) -> ApiResult<Vec<Message>> {
    let expected = format!("an array of 1 to {most} messages");
    let values = match fields.take("messages") {
        Some(Value::Array(values)) if (1..=most).contains(&values.len()) => values,
        Some(other) => return Err(ApiError::field("messages", expected, shown(&other))),
        None => return Err(ApiError::field("messages", expected, "none")),
    };
    values.into_iter().enumerate().map(|(index, value)| message(index, value)).collect()
}

fn message(index: usize, value: Value) -> ApiResult<Message> {
    let place = |name: &str| format!("messages[{index}].{name}");
    let Value::Object(map) = value else {
        return Err(ApiError::field(&format!("messages[{index}]"), "an object", shown(&value)));
    };
    let mut fields = Fields::of(map);
    let role = match fields.take("role") {
        Some(Value::String(role)) if ROLES.contains(&&role[..]) => role,
        other => {
            let found = other.map_or("none".into(), |value| shown(&value));
            return Err(ApiError::field(&place("role"), ROLES.join(", "), found));
        }
    };
    let content = content(&place("content"), fields.take("content"))?;
    let name = match fields.take("name") {
        None => None,
        Some(Value::String(name)) => Some(name),
        Some(other) => return Err(ApiError::field(&place("name"), "a string", shown(&other))),
    };
    for refused in ["tool_calls", "function_call", "audio", "tool_call_id"] {
        if fields.take(refused).is_some_and(|value| !is_off(&value)) {
            return Err(ApiError::unsupported(&place(refused), "none"));
        }
    }
    let rest = fields.finish(&["refusal", "annotations"], &[]);
    rest.map_err(|error| ApiError { message: format!("messages[{index}].{}", error.message), ..error })?;
    Ok(Message { role, content, name })
}

/// Text, or an array of parts that are text.
fn content(place: &str, value: Option<Value>) -> ApiResult<String> {
    let expected = "a string, or an array of {\"type\": \"text\", \"text\": ...}";
    let part = |part: Value| match part.get("type").and_then(Value::as_str) {
        Some("text") => match part.get("text") {
            Some(Value::String(text)) => Ok(text.clone()),
            _ => Err(ApiError::field(place, expected, "a part without text")),
        },
        Some(kind) => {
            let kind = shown(&Value::String(kind.into()));
            Err(ApiError::field(place, "parts of type \"text\"", kind).with_code("unsupported_parameter"))
        }
        None => Err(ApiError::field(place, expected, shown(&part))),
    };
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) if !parts.is_empty() => parts.into_iter().map(part).collect(),
        Some(other) => Err(ApiError::field(place, expected, shown(&other))),
        None => Err(ApiError::field(place, expected, "none")),
    }
}

/// Variables for the template beside its own.
fn variables(fields: &mut Fields) -> ApiResult<Map<String, Value>> {
    match fields.take("chat_template_kwargs") {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map),
        Some(other) => Err(ApiError::field("chat_template_kwargs", "an object", shown(&other))),
    }
}

/// How many of the likeliest tokens to tell of.
fn logprobs(fields: &mut Fields, most: usize) -> ApiResult<Option<usize>> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=most as i64)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
        (false, None | Some(0)) => Ok(None),
        (false, Some(top)) => {
            Err(ApiError::field("top_logprobs", "none where logprobs isn't true", top.to_string()))
        }
    }
}
