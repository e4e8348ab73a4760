//! Answers as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{Judged, Kind, Reply, finish_reason};
use crate::job::{Job, Piece};

/// Time without a token after which a comment shows that the connection lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const DONE: &str = "data: [DONE]\n\n";

/// A response that goes on until the answers have ended. When the client is gone it's dropped, and the job with it.
pub(crate) fn stream(reply: Reply, job: Option<Job>, choices: usize) -> Response {
    let state = Streaming { reply, job, offsets: vec![0; choices], tokens: 0, stage: Stage::Opens };
    let events = futures_util::stream::unfold(state, |mut state| async move {
        let text = state.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), state))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(events)).into_response()
}

enum Stage {
    Opens,
    Runs,
    Ended,
}

struct Streaming {
    reply: Reply,
    job: Option<Job>,
    /// Characters that each answer's tokens have had.
    offsets: Vec<usize>,
    tokens: usize,
    stage: Stage,
}

impl Streaming {
    /// The next events' text.
    async fn next(&mut self) -> Option<String> {
        loop {
            match self.stage {
                Stage::Opens => {
                    self.stage = Stage::Runs;
                    let opening: String =
                        (0..self.offsets.len()).map(|choice| self.opening(choice)).collect();
                    if !opening.is_empty() {
                        return Some(opening);
                    }
                }
                Stage::Runs => {
                    let piece = match &mut self.job {
                        None => None,
                        Some(job) => match tokio::time::timeout(KEEP_ALIVE, job.next()).await {
                            Err(_) => return Some(": keep-alive\n\n".into()),
                            Ok(piece) => piece,
                        },
                    };
                    match piece {
                        None => {
                            self.stage = Stage::Ended;
                            return Some(self.closing());
                        }
                        Some(Err(error)) => {
                            self.stage = Stage::Ended;
                            return Some(event(&error.to_json()));
                        }
                        Some(Ok(piece)) => {
                            if let Some(text) = self.piece(piece) {
                                return Some(text);
                            }
                        }
                    }
                }
                Stage::Ended => return None,
            }
        }
    }

    /// A chat's role, or the prompt where it is asked for.
    fn opening(&mut self, choice: usize) -> String {
        let echo = self.reply.echo(choice).cloned();
        match (self.reply.kind, echo) {
            (Kind::Chat, _) => self.chunk(json!({
                "index": choice,
                "delta": { "role": "assistant", "content": "" },
                "logprobs": null,
                "finish_reason": null,
            })),
            (Kind::Completion, None) => String::new(),
            (Kind::Completion, Some(echo)) => {
                let finish = self.job.is_none().then_some("length");
                let logprobs = self.judged(choice, &echo.judged);
                self.chunk(json!({
                    "index": choice,
                    "text": echo.text,
                    "logprobs": logprobs,
                    "finish_reason": finish,
                }))
            }
        }
    }

    fn judged(&mut self, choice: usize, judged: &[Judged]) -> Value {
        let told = self.reply.logprobs(judged, self.offsets[choice]);
        if self.reply.logprobs {
            let chars = judged.iter().map(|token| self.reply.token(token.id).shown_chars());
            self.offsets[choice] += chars.sum::<usize>();
        }
        told
    }

    /// A token's event, unless there's nothing to tell.
    fn piece(&mut self, Piece { choice, output }: Piece) -> Option<String> {
        self.tokens += 1;
        let judged: Vec<Judged> =
            output.logprobs.map(|logprobs| Judged::of(output.id, logprobs)).into_iter().collect();
        if output.text.is_empty() && judged.is_empty() && output.finish.is_none() {
            return None;
        }
        let logprobs = self.judged(choice, &judged);
        let finish = output.finish.map(finish_reason);
        let told = match self.reply.kind {
            Kind::Completion => {
                json!({ "index": choice, "text": output.text, "logprobs": logprobs, "finish_reason": finish })
            }
            Kind::Chat => {
                let delta =
                    if output.text.is_empty() { json!({}) } else { json!({ "content": output.text }) };
                json!({ "index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish })
            }
        };
        Some(self.chunk(told))
    }

    fn chunk(&self, choice: Value) -> String {
        let mut chunk = self.reply.envelope(true, json!([choice]));
        if self.reply.include_usage {
            chunk["usage"] = Value::Null;
        }
        event(&chunk)
    }

    fn closing(&self) -> String {
        let mut text = String::new();
        if self.reply.include_usage {
            let mut chunk = self.reply.envelope(true, json!([]));
            chunk["usage"] = self.reply.usage(self.tokens);
            text += &event(&chunk);
        }
        text + DONE
    }
}

fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}
