//! `/v1/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::response::Response;
use serde_json::Value;
use tilewright::engine::Request;

use crate::app::{App, Generator};
use crate::error::{ApiError, ApiResult};
use crate::fields::{Fields, shown};
use crate::job::Job;
use crate::judge::judge;
use crate::reply::{Echo, Judged, Kind, Reply};
use crate::request::{Common, HARMLESS, Refused, check_texts, is_off, max_tokens};

/// Tokens of an answer where a request doesn't say.
const DEFAULT_TOKENS: usize = 16;
const FORMS: &str = "text, an array of texts, an array of token ids, or an array of those";

const REFUSED: &[Refused] = &[
    ("suffix", "none", is_off),
    ("response_format", "{\"type\": \"text\"}", |value| {
        value
            .as_object()
            .is_some_and(|format| format.len() == 1 && format.get("type").is_some_and(|kind| kind == "text"))
    }),
];

/// What is asked for, its texts as they came.
struct Asked {
    /// Without its prompt and length.
    request: Request,
    prompts: Vec<Given>,
    /// Bytes of text among them, as turns are taken for them.
    text_bytes: usize,
    max_tokens: Option<i64>,
    echo: bool,
    logprobs: bool,
    stream: bool,
    include_usage: bool,
}

/// Prompts that can be continued.
struct Completion {
    /// One a prompt. Where nothing is to be generated, they stand for the prompts alone.
    requests: Vec<Request>,
    generates: bool,
    echo: bool,
    /// The prompts as they were given, where they are to go out again.
    texts: Vec<String>,
    stream: bool,
    reply: Reply,
}

pub(crate) async fn answer(app: Arc<App>, body: Vec<u8>, deadline: Instant) -> ApiResult<Response> {
    let (bytes, shared) = (body.len(), app.clone());
    let asked = super::http::reading(&app, bytes, deadline, move || read(&shared, &body)).await?;
    let (text_bytes, shared) = (asked.text_bytes, app.clone());
    let encode = move || encode_all(&shared, asked);
    let completion = super::http::tokenising(&app, text_bytes, deadline, encode).await?;
    let Completion { requests, generates, echo, texts, stream, mut reply } = completion;
    let choices = requests.len() * reply.answers;
    let places = app.generator()?.enter(choices)?;
    if echo {
        for (request, text) in requests.iter().zip(texts) {
            let judged = match request.logprobs {
                None => Vec::new(),
                Some(top) => {
                    let judged = judge(&app, request.prompt.clone(), top, deadline).await?;
                    let tokens = request.prompt.iter().zip(judged);
                    tokens.map(|(&id, logprobs)| Judged { id, logprobs }).collect()
                }
            };
            reply.echoes.push(Echo { text, judged });
        }
    }
    let job = match generates {
        true => Some(Job::start(&app, requests, places, deadline)?),
        false => None,
    };
    super::http::tell(reply, job, choices, stream).await
}

fn read(app: &App, body: &[u8]) -> ApiResult<Asked> {
    let generator = app.generator()?;
    let limits = app.limits();
    let mut fields = Fields::parse(body)?;
    let Common { mut request, stream, include_usage } = Common::read(&mut fields, app)?;
    let prompts = prompts(fields.take("prompt"), limits.prompts)?;
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let logprobs = fields.integer("logprobs", 0..=limits.top_logprobs as i64)?;
    request.logprobs = logprobs.map(|top| top as usize);
    let max_tokens = fields.integer("max_tokens", 0..=i64::MAX)?;
    let best_of = fields.integer("best_of", 1..=i64::MAX)?;
    if best_of.is_some_and(|best_of| best_of != request.answers as i64) {
        return Err(ApiError::unsupported("best_of", "as many as n"));
    }
    fields.finish(HARMLESS, REFUSED)?;
    if max_tokens == Some(0) && !echo {
        return Err(ApiError::field("max_tokens", "at least 1 without echo", "0"));
    }
    let texts = prompts.iter().filter_map(|prompt| match prompt {
        Given::Text(text) => Some(text.as_str()),
        Given::Ids(_) => None,
    });
    let (tokenizer, end) = (generator.model().tokenizer(), prompt_end(generator, max_tokens));
    let text_bytes = check_texts("prompt", texts, tokenizer, end, limits.body_bytes)?;
    let logprobs = logprobs.is_some();
    Ok(Asked { request, prompts, text_bytes, max_tokens, echo, logprobs, stream, include_usage })
}

/// Tokens that a prompt must have fewer of: one that is only judged may fill the context.
fn prompt_end(generator: &Generator, max_tokens: Option<i64>) -> usize {
    generator.context() + usize::from(max_tokens == Some(0))
}

fn encode_all(app: &Arc<App>, asked: Asked) -> ApiResult<Completion> {
    let generator = app.generator()?;
    let Asked { request, prompts, max_tokens: asked, echo, logprobs, stream, include_usage, .. } = asked;
    let generates = asked != Some(0);
    let context = prompt_end(generator, asked);
    let mut requests = Vec::with_capacity(prompts.len());
    let mut texts = Vec::new();
    for (index, prompt) in prompts.into_iter().enumerate() {
        let (ids, text) = encode(generator, prompt, echo)?;
        texts.extend(text);
        let asked = asked.map(|asked| ("max_tokens", asked));
        let max_tokens = max_tokens(asked, ("prompt", ids.len()), context, DEFAULT_TOKENS)?.max(1);
        requests.push(Request { prompt: ids, max_tokens, key: index as u64, ..request.clone() });
    }
    let reply = Reply {
        logprobs,
        include_usage,
        prompt_tokens: requests.iter().map(|request| request.prompt.len()).sum(),
        answers: request.answers,
        ..Reply::new(app, Kind::Completion)
    };
    Ok(Completion { requests, generates, echo, texts, stream, reply })
}

/// A prompt as it was given.
enum Given {
    Text(String),
    Ids(Vec<u32>),
}

fn prompts(value: Option<Value>, most: usize) -> ApiResult<Vec<Given>> {
    let refuse = |found: &Value| ApiError::field("prompt", FORMS, shown(found));
    let values = match value {
        None => return Err(ApiError::field("prompt", FORMS, "none")),
        Some(Value::String(text)) => return Ok(vec![Given::Text(text)]),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(refuse(&other)),
    };
    match values.first() {
        None => Err(ApiError::field("prompt", "at least one", "an empty array")),
        Some(Value::Number(_)) => Ok(vec![Given::Ids(token_ids("prompt", values)?)]),
        Some(_) if values.len() > most => {
            Err(ApiError::field("prompt", format!("at most {most} prompts"), values.len().to_string()))
        }
        Some(_) => values
            .into_iter()
            .map(|value| match value {
                Value::String(text) => Ok(Given::Text(text)),
                Value::Array(ids) if !ids.is_empty() => Ok(Given::Ids(token_ids("prompt", ids)?)),
                other => Err(refuse(&other)),
            })
            .collect(),
    }
}

/// Token ids; whether the vocabulary has them is for the engine to say.
pub(crate) fn token_ids(field: &str, values: Vec<Value>) -> ApiResult<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids =
        values.iter().map(|value| id(value).ok_or_else(|| ApiError::field(field, "token ids", shown(value))));
    ids.collect()
}

/// A prompt's token ids, and its text where that is to go out.
fn encode(generator: &Generator, prompt: Given, echo: bool) -> ApiResult<(Vec<u32>, Option<String>)> {
    let model = generator.model();
    let (ids, text) = match prompt {
        Given::Text(text) => {
            generator.require_tokenizer("prompt")?;
            (model.encode(&text[..])?, text)
        }
        Given::Ids(ids) => {
            let ids = model.encode(&ids[..])?;
            let text = match model.tokenizer() {
                Some(tokenizer) if echo => tokenizer.decode(&ids),
                _ => String::new(),
            };
            (ids, text)
        }
    };
    Ok((ids, echo.then_some(text)))
}
