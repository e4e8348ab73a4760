//! `/v1/embeddings`.

use std::sync::Arc;
use std::time::Instant;

use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::app::App;
use crate::completions::token_ids;
use crate::embed::EmbedInput;
use crate::error::{ApiError, ApiResult, json_response};
use crate::fields::{Fields, shown};
use crate::request::{HARMLESS, at, check_model, check_texts};

const FORMS: &str = "text, an array of texts, an array of token ids, or an array of those";

/// Texts that can be embedded.
struct Asked {
    inputs: Vec<EmbedInput>,
    /// Bytes of text among them, as turns are taken for them.
    text_bytes: usize,
    as_base64: bool,
}

pub(crate) async fn answer(app: Arc<App>, body: Vec<u8>, deadline: Instant) -> ApiResult<Response> {
    let (bytes, shared) = (body.len(), app.clone());
    let asked = super::http::reading(&app, bytes, deadline, move || read(&shared, &body)).await?;
    let (text_bytes, shared) = (asked.text_bytes, app.clone());
    super::http::tokenising(&app, text_bytes, deadline, move || embed(&shared, asked)).await
}

fn read(app: &App, body: &[u8]) -> ApiResult<Asked> {
    let mut fields = Fields::parse(body)?;
    check_model(&mut fields, app)?;
    let embedder = app.embedder()?;
    let inputs = inputs(fields.take("input"), app.limits().prompts)?;
    let as_base64 = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let found = shown(&Value::String(other.into()));
            return Err(ApiError::field("encoding_format", "\"float\" or \"base64\"", found));
        }
    };
    let dimensions = embedder.dimensions();
    if fields.integer("dimensions", 1..=i64::MAX)?.is_some_and(|asked| asked != dimensions as i64) {
        return Err(ApiError::unsupported("dimensions", &dimensions.to_string()));
    }
    fields.finish(HARMLESS, &[])?;
    let texts = inputs.iter().filter_map(|input| match input {
        EmbedInput::Text(text) => Some(text.as_str()),
        EmbedInput::Ids(_) => None,
    });
    let (tokenizer, context) = embedder.measures().unzip();
    // A text may fill the context.
    let end = context.map_or(usize::MAX, |context| context + 1);
    let text_bytes = check_texts("input", texts, tokenizer, end, app.limits().body_bytes)?;
    Ok(Asked { inputs, text_bytes, as_base64 })
}

fn embed(app: &App, Asked { inputs, as_base64, .. }: Asked) -> ApiResult<Response> {
    let embedded = app.embedder()?.embed(&inputs).map_err(|error| at("input", error))?;
    let tokens: usize = embedded.iter().map(|one| one.tokens).sum();
    let told: Vec<Value> = embedded
        .iter()
        .enumerate()
        .map(|(index, one)| {
            let vector = if as_base64 { Value::String(base64_of(&one.values)) } else { json!(one.values) };
            json!({ "object": "embedding", "index": index, "embedding": vector })
        })
        .collect();
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    let object = json!({ "object": "list", "data": told, "model": app.config.model_name, "usage": usage });
    Ok(json_response(StatusCode::OK, &object))
}

/// The numbers' bytes, little end first, as clients read them.
fn base64_of(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

fn inputs(value: Option<Value>, most: usize) -> ApiResult<Vec<EmbedInput>> {
    let refuse = |found: &Value| ApiError::field("input", FORMS, shown(found));
    let values = match value {
        None => return Err(ApiError::field("input", FORMS, "none")),
        Some(Value::String(text)) if !text.is_empty() => return Ok(vec![EmbedInput::Text(text)]),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(refuse(&other)),
    };
    match values.first() {
        None => Err(ApiError::field("input", "at least one", "an empty array")),
        Some(Value::Number(_)) => Ok(vec![EmbedInput::Ids(token_ids("input", values)?)]),
        Some(_) if values.len() > most => {
            Err(ApiError::field("input", format!("at most {most} inputs"), values.len().to_string()))
        }
        Some(_) => values
            .into_iter()
            .map(|value| match value {
                Value::String(text) if !text.is_empty() => Ok(EmbedInput::Text(text)),
                Value::Array(ids) if !ids.is_empty() => Ok(EmbedInput::Ids(token_ids("input", ids)?)),
                other => Err(refuse(&other)),
            })
            .collect(),
    }
}
