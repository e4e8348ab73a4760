//! Routes, and what every request goes through.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::app::{App, Backend};
use crate::config::Limits;
use crate::error::{ApiError, ApiResult, json_response};
use crate::job::Job;
use crate::reply::{Reply, collect, stream};
use crate::{chat, completions, embeddings, memory};

/// Bytes beyond the limit that are still taken in, so that a client that only reads afterwards hears why it was refused.
const MAX_UNREAD_BYTES: usize = 64 << 20;
/// Time for that.
const UNREAD_TIME: Duration = Duration::from_secs(5);

/// All routes, behind the key, with counts and a log line each.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(text_completions))
        .route("/v1/embeddings", post(embed))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), guard))
        .with_state(app)
}

/// The key, the end, the count, the log.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let (method, route) = (request.method().clone(), route(request.uri().path()));
    let is_open = route == "/health" || has_key(&app, request.headers());
    let id = format!("req-{:016x}", app.number());
    let mut response = if !is_open {
        ApiError::unauthorized().into_response()
    } else if app.is_ending() && route.starts_with("/v1/") {
        ApiError::unavailable("the server is ending").into_response()
    } else {
        tokio::select! {
            response = next.run(request) => response,
            () = app.last_call() => ApiError::unavailable("the server is ending").into_response(),
        }
    };
    let status = response.status().as_u16();
    app.metrics.answered(route, status, began.elapsed());
    tracing::info!(%method, route, status, seconds = began.elapsed().as_secs_f64(), id, "answered");
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// One of few names for a path, so that nobody fills the metrics with paths.
fn route(path: &str) -> &'static str {
    let known = [
        "/health",
        "/ready",
        "/metrics",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
    ];
    let is_model = path.starts_with("/v1/models/");
    known.into_iter().find(|&known| known == path).unwrap_or(if is_model { "/v1/models" } else { "other" })
}

fn has_key(app: &App, headers: &HeaderMap) -> bool {
    let Some(key) = &app.config.api_key else { return true };
    let given = headers.get(header::AUTHORIZATION).map_or(&[][..], HeaderValue::as_bytes);
    let (scheme, rest) = given.split_at(given.len().min(7));
    scheme.eq_ignore_ascii_case(b"bearer ") && is_same(rest, key.as_bytes())
}

/// Whether two texts are the same, in a time that depends on the given one's length alone.
fn is_same(given: &[u8], key: &[u8]) -> bool {
    let mut differs = u8::from(given.len() != key.len());
    for (index, byte) in given.iter().enumerate() {
        let expected = key.get(index % key.len().max(1)).copied().unwrap_or(0);
        differs |= std::hint::black_box(byte ^ expected);
    }
    std::hint::black_box(differs) == 0
}

async fn health(State(app): State<Arc<App>>) -> Response {
    match app.is_alive() {
        true => json_response(StatusCode::OK, &json!({ "status": "ok" })),
        false => ApiError::unavailable("the engine has stopped").into_response(),
    }
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    match (app.is_alive(), app.is_ending()) {
        (true, false) => json_response(StatusCode::OK, &json!({ "status": "ready" })),
        (true, true) => ApiError::unavailable("the server is ending").into_response(),
        (false, _) => ApiError::unavailable("the engine has stopped").into_response(),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let stats = match &app.backend {
        Backend::Generates(generator) => Some(generator.engine.stats()),
        Backend::Embeds(_) => None,
    };
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.render(stats)).into_response()
}

fn model_card(app: &App, name: &str) -> Value {
    let mut card =
        json!({ "id": name, "object": "model", "created": app.started.as_secs(), "owned_by": "tilewright" });
    if let Ok(generator) = app.generator() {
        card["max_model_len"] = json!(generator.context());
    }
    card
}

async fn models(State(app): State<Arc<App>>) -> Response {
    let names = std::iter::once(&app.config.model_name).chain(&app.config.aliases);
    let cards: Vec<Value> = names.map(|name| model_card(&app, name)).collect();
    json_response(StatusCode::OK, &json!({ "object": "list", "data": cards }))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Response {
    if name == app.config.model_name || app.config.aliases.contains(&name) {
        return json_response(StatusCode::OK, &model_card(&app, &name));
    }
    let expected = format!("{:?}", app.config.model_name);
    let found: String = name.chars().take(60).collect();
    let error = ApiError::field("model", expected, format!("{found:?}")).with_code("model_not_found");
    ApiError { status: StatusCode::NOT_FOUND, ..error }.into_response()
}

async fn unknown() -> ApiError {
    let message = "path: expected a route of this server, found another; GET /v1/models and POST /v1/chat/completions are some";
    ApiError::refused(StatusCode::NOT_FOUND, message).with_code("unknown_route")
}

async fn wrong_method() -> ApiError {
    let message = "method: expected POST for /v1/chat/completions, /v1/completions and /v1/embeddings, GET for other routes, found another";
    ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, message).with_code("method_not_allowed")
}

async fn chat_completions(State(app): State<Arc<App>>, request: Request) -> ApiResult<Response> {
    let deadline = Instant::now() + app.limits().request_time;
    let body = read_body(app.limits(), request).await?;
    chat::answer(app, body, deadline).await
}

async fn text_completions(State(app): State<Arc<App>>, request: Request) -> ApiResult<Response> {
    let deadline = Instant::now() + app.limits().request_time;
    let body = read_body(app.limits(), request).await?;
    completions::answer(app, body, deadline).await
}

async fn embed(State(app): State<Arc<App>>, request: Request) -> ApiResult<Response> {
    let deadline = Instant::now() + app.limits().request_time;
    let body = read_body(app.limits(), request).await?;
    embeddings::answer(app, body, deadline).await
}

/// Work that takes a while, off the threads that serve connections.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> ApiResult<T> + Send + 'static) -> ApiResult<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("reading the request failed")))
}

/// As [`blocking`], of work that reads so many bytes of a body, once it's their turn.
pub(crate) async fn reading<T: Send + 'static>(
    app: &App,
    bytes: usize,
    deadline: Instant,
    work: impl FnOnce() -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    let turn = app.turns.read(bytes, deadline, app.limits().request_time.as_secs()).await?;
    blocking(move || {
        let done = work();
        drop(turn);
        done
    })
    .await
}

/// As [`blocking`], of work that makes so many bytes of text into tokens, once it's their turn.
pub(crate) async fn tokenising<T: Send + 'static>(
    app: &App,
    text_bytes: usize,
    deadline: Instant,
    work: impl FnOnce() -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    let turn = app.turns.tokenise(text_bytes, deadline, app.limits().request_time.as_secs()).await?;
    // The work keeps it: it goes on where nobody waits any more.
    blocking(move || {
        let done = work();
        if turn.is_some() {
            memory::trim();
        }
        drop(turn);
        done
    })
    .await
}

/// The response of answers under way.
pub(crate) async fn tell(
    reply: Reply,
    job: Option<Job>,
    choices: usize,
    streams: bool,
) -> ApiResult<Response> {
    if streams {
        return Ok(stream(reply, job, choices));
    }
    Ok(json_response(StatusCode::OK, &collect(&reply, job, choices).await?))
}

/// A request's body, which must say that it's JSON: a web page can't post that elsewhere without being asked.
async fn read_body(limits: &Limits, request: Request) -> ApiResult<Vec<u8>> {
    let told = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let kind = told.unwrap_or_default().split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    if !kind.eq_ignore_ascii_case(b"application/json") {
        let quoted = || format!("{:?}", String::from_utf8_lossy(kind).chars().take(60).collect::<String>());
        let found = told.map_or("none".to_string(), |_| quoted());
        let message = format!("Content-Type: expected application/json, found {found}");
        return Err(ApiError::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let body = request.into_body();
    // As its head says; without a length that is nothing.
    let told = body.size_hint().lower();
    if told > limits.body_bytes as u64 {
        return Err(too_large(body, limits.body_bytes, told));
    }
    let reading = collect_body(body, limits.body_bytes);
    let late = || {
        let message =
            format!("body: expected within {} seconds, found a part of it", limits.body_time.as_secs());
        ApiError::refused(StatusCode::REQUEST_TIMEOUT, message)
    };
    tokio::time::timeout(limits.body_time, reading).await.unwrap_or_else(|_| Err(late()))
}

async fn collect_body(mut body: Body, most: usize) -> ApiResult<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|_| ApiError::invalid("body: expected all of it, found the connection's end"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > most {
            return Err(too_large(body, most, "more"));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// The refusal of a body, of which some is still taken in while the answer goes out.
fn too_large(body: Body, most: usize, found: impl Display) -> ApiError {
    tokio::spawn(tokio::time::timeout(UNREAD_TIME, take_in(body)));
    let message = format!("body: expected at most {most} bytes, found {found}");
    ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, message)
}

async fn take_in(mut body: Body) {
    let mut taken = 0;
    while let Some(Ok(frame)) = body.frame().await {
        taken += frame.data_ref().map_or(0, |data| data.len());
        if taken > MAX_UNREAD_BYTES {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_same_or_not() {
        assert!(is_same(b"secret", b"secret"));
        for other in [&b""[..], b"secre", b"secrets", b"Secret", b"secretsecret", b"sesret"] {
            assert!(!is_same(other, b"secret"), "{other:?}");
        }
        assert!(is_same(b"", b"") && !is_same(b"a", b""));
    }

    #[test]
    fn paths_have_few_names() {
        assert_eq!(route("/v1/models/a/b"), "/v1/models");
        assert_eq!(route("/v1/models/"), "/v1/models");
        assert_eq!(route("/v1/completions"), "/v1/completions");
        assert_eq!(route("/anything"), "other");
    }
}
