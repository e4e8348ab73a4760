//! What requests for text have in common.

use serde_json::Value;
use tilewright::engine::Request;
use tilewright::tokenizer::Tokenizer;
use tilewright::{Penalties, SamplingParams};

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::fields::{Fields, shown};

/// Fields that change nothing here and are left alone.
pub(crate) const HARMLESS: &[&str] =
    &["user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier"];

/// A field that isn't supported, the values that ask for nothing, and whether a value is one of them.
pub(crate) type Refused = (&'static str, &'static str, fn(&Value) -> bool);

/// Whether a value says no.
pub(crate) fn is_off(value: &Value) -> bool {
    matches!(value, Value::Bool(false))
        || value.as_array().is_some_and(Vec::is_empty)
        || value == "none"
        || value == ""
}

/// How answers are made and told.
pub(crate) struct Common {
    /// A request without its prompt and length.
    pub request: Request,
    pub stream: bool,
    pub include_usage: bool,
}

impl Common {
    /// Reads the fields, `model` among them.
    pub fn read(fields: &mut Fields, app: &App) -> ApiResult<Common> {
        let limits = app.limits();
        check_model(fields, app)?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let include_usage = stream_options(fields, stream)?;
        let answers = fields.integer("n", 1..=limits.choices as i64)?.unwrap_or(1) as usize;
        let seed =
            fields.integer("seed", i64::MIN..=i64::MAX)?.map_or_else(|| app.number(), |seed| seed as u64);
        let sampling = SamplingParams {
            temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
            top_k: fields.integer("top_k", 0..=i64::from(u32::MAX))?.unwrap_or(0) as u32,
            top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
            min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
            seed,
        };
        let penalties = Penalties {
            repetition: fields.number("repetition_penalty", 0.01..=100.0)?.unwrap_or(1.0),
            presence: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            frequency: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        };
        let request = Request {
            sampling,
            penalties,
            logit_bias: logit_bias(fields, limits.logit_bias)?,
            stop: stop(fields, limits.stops, limits.stop_bytes)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            answers,
            ..Request::new([])
        };
        if !request.stop.is_empty() {
            app.generator()?.require_tokenizer("stop")?;
        }
        Ok(Common { request, stream, include_usage })
    }
}

/// `model`, where it's given, is one that is here.
pub(crate) fn check_model(fields: &mut Fields, app: &App) -> ApiResult<()> {
    let Some(name) = fields.string("model")? else { return Ok(()) };
    let config = &app.config;
    if name == config.model_name || config.aliases.contains(&name) {
        return Ok(());
    }
    let error = ApiError::field("model", format!("{:?}", config.model_name), shown(&Value::String(name)));
    Err(ApiError { status: axum::http::StatusCode::NOT_FOUND, ..error.with_code("model_not_found") })
}

/// Measures texts before they are made into tokens, and refuses what can't be: more than `most_bytes` of all of them while they are normalised,
/// or a text that has `end` tokens or more however it's made into them. Returns the bytes to take a turn for.
pub(crate) fn check_texts<'t>(
    field: &str,
    texts: impl Iterator<Item = &'t str>,
    tokenizer: Option<&Tokenizer>,
    end: usize,
    most_bytes: usize,
) -> ApiResult<usize> {
    let mut bytes = 0;
    for text in texts {
        let Some(tokenizer) = tokenizer else {
            bytes += text.len();
            continue;
        };
        check_least(field, tokenizer.least_tokens(text.len()), end)?;
        let extent = tokenizer.extent(text, most_bytes - bytes).map_err(|error| at(field, error))?;
        check_least(field, extent.least_tokens, end)?;
        bytes += extent.bytes;
        if bytes > most_bytes {
            let expected = format!("text of at most {most_bytes} bytes while the tokenizer normalises it");
            return Err(ApiError::field(field, expected, "more"));
        }
    }
    Ok(bytes)
}

fn check_least(field: &str, least_tokens: usize, end: usize) -> ApiResult<()> {
    if least_tokens < end {
        return Ok(());
    }
    let error =
        ApiError::field(field, format!("fewer than {end} tokens"), format!("at least {least_tokens}"));
    Err(error.with_code("context_length_exceeded"))
}

/// What the runtime refused, by the name of the request's field.
pub(crate) fn at(field: &str, error: tilewright::Error) -> ApiError {
    match error {
        tilewright::Error::Request { expected, found, .. } => ApiError::field(field, expected, found),
        other => other.into(),
    }
}

/// Tokens of an answer to a prompt of so many: as asked, or what there is room for, up to `default`.
pub(crate) fn max_tokens(
    asked: Option<(&'static str, i64)>,
    prompt: (&'static str, usize),
    context: usize,
    default: usize,
) -> ApiResult<usize> {
    let (prompt_field, prompt_len) = prompt;
    let room = context.saturating_sub(prompt_len);
    let code = "context_length_exceeded";
    if room == 0 {
        let expected = format!("fewer than {context} tokens");
        return Err(ApiError::field(prompt_field, expected, prompt_len.to_string()).with_code(code));
    }
    match asked {
        None => Ok(default.min(room)),
        Some((_, asked)) if usize::try_from(asked).is_ok_and(|asked| asked <= room) => Ok(asked as usize),
        Some((name, asked)) => {
            let expected = format!("at most {room}, {context} less the prompt's {prompt_len} tokens");
            Err(ApiError::field(name, expected, asked.to_string()).with_code(code))
        }
    }
}

fn stream_options(fields: &mut Fields, stream: bool) -> ApiResult<bool> {
    let Some(value) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        return Err(ApiError::field("stream_options", "none where stream is false", shown(&value)));
    }
    let Value::Object(options) = &value else {
        return Err(ApiError::field("stream_options", "an object", shown(&value)));
    };
    let known = ["include_usage", "include_obfuscation"];
    if let Some(name) = options.keys().find(|name| !known.contains(&&name[..])) {
        return Err(ApiError::field("stream_options", "include_usage", shown(&Value::String(name.clone()))));
    }
    match options.get("include_usage") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => Err(ApiError::field("stream_options.include_usage", "true or false", shown(other))),
    }
}

fn stop(fields: &mut Fields, most: usize, most_bytes: usize) -> ApiResult<Vec<String>> {
    let values = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(value) => vec![value],
    };
    if values.len() > most {
        return Err(ApiError::field("stop", format!("at most {most} texts"), values.len().to_string()));
    }
    values
        .into_iter()
        .map(|value| match value {
            Value::String(text) if (1..=most_bytes).contains(&text.len()) => Ok(text),
            other => {
                let expected = format!("texts of 1 to {most_bytes} bytes");
                Err(ApiError::field("stop", expected, shown(&other)))
            }
        })
        .collect()
}

fn logit_bias(fields: &mut Fields, most: usize) -> ApiResult<Vec<(u32, f32)>> {
    let entries = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => {
            return Err(ApiError::field("logit_bias", "an object of token ids and numbers", shown(&other)));
        }
    };
    if entries.len() > most {
        return Err(ApiError::field(
            "logit_bias",
            format!("at most {most} tokens"),
            entries.len().to_string(),
        ));
    }
    entries
        .into_iter()
        .map(|(token, bias)| {
            let id = token.parse::<u32>();
            let id =
                id.map_err(|_| ApiError::field("logit_bias", "token ids", shown(&Value::String(token))))?;
            let value = bias.as_f64().filter(|value| (-100.0..=100.0).contains(value));
            let value = value
                .ok_or_else(|| ApiError::field("logit_bias", "numbers from -100 to 100", shown(&bias)))?;
            Ok((id, value as f32))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_fit_into_the_context() {
        let prompt = |len| ("prompt", len);
        assert_eq!(max_tokens(None, prompt(10), 100, 16), Ok(16));
        assert_eq!(max_tokens(None, prompt(90), 100, usize::MAX), Ok(10));
        assert_eq!(max_tokens(Some(("max_tokens", 10)), prompt(90), 100, 16), Ok(10));
        let error = max_tokens(Some(("max_tokens", 11)), prompt(90), 100, 16).expect_err("too many");
        assert_eq!(
            (error.param.as_deref(), error.code),
            (Some("max_tokens"), Some("context_length_exceeded"))
        );
        let error = max_tokens(None, prompt(100), 100, 16).expect_err("too long");
        assert_eq!(error.param.as_deref(), Some("prompt"));
    }
}
