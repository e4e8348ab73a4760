//! Answers as the API tells them, whole or as they come.

mod logprobs;
mod stream;

use std::sync::Arc;

use serde_json::{Value, json};
use tilewright::FinishReason;

use crate::app::{App, now};
use crate::error::ApiResult;
use crate::job::{Job, Piece};
use crate::tokens::{TokenText, token_text};
pub(crate) use logprobs::Judged;
use logprobs::{chat_logprobs, completion_logprobs};
pub(crate) use stream::stream;

/// Which of the two routes answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
}

/// A prompt that goes out before its answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Echo {
    pub text: String,
    /// Where logprobs are asked for.
    pub judged: Vec<Judged>,
}

/// How a request's answers are told.
pub(crate) struct Reply {
    pub app: Arc<App>,
    pub kind: Kind,
    pub id: String,
    pub created: u64,
    pub logprobs: bool,
    pub include_usage: bool,
    pub prompt_tokens: usize,
    /// Answers to each prompt.
    pub answers: usize,
    /// Of each prompt, where they are asked for.
    pub echoes: Vec<Echo>,
}

impl Reply {
    pub fn new(app: &Arc<App>, kind: Kind) -> Reply {
        let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        Reply {
            app: app.clone(),
            kind,
            id: format!("{prefix}-{:016x}", app.number()),
            created: now(),
            logprobs: false,
            include_usage: false,
            prompt_tokens: 0,
            answers: 1,
            echoes: Vec::new(),
        }
    }

    fn object(&self, streams: bool) -> &'static str {
        match (self.kind, streams) {
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Chat, false) => "chat.completion",
            (Kind::Completion, _) => "text_completion",
        }
    }

    fn envelope(&self, streams: bool, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": self.object(streams),
            "created": self.created,
            "model": self.app.config.model_name,
            "system_fingerprint": concat!("tilewright-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    }

    fn usage(&self, completion_tokens: usize) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        })
    }

    fn echo(&self, choice: usize) -> Option<&Echo> {
        self.echoes.get(choice / self.answers.max(1))
    }

    fn token(&self, id: u32) -> TokenText {
        token_text(self.app.generator().ok().and_then(|generator| generator.tokenizer()), id)
    }

    /// Logprobs in the route's form; `offset` is where the first token's text begins, in characters.
    fn logprobs(&self, judged: &[Judged], offset: usize) -> Value {
        let token = |id| self.token(id);
        match (self.logprobs, self.kind) {
            (false, _) => Value::Null,
            (true, Kind::Chat) => chat_logprobs(judged, &token),
            (true, Kind::Completion) => completion_logprobs(judged, &token, offset),
        }
    }
}

/// A finish reason in the API's words.
fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        _ => "length",
    }
}

/// An answer so far.
#[derive(Default)]
struct Choice {
    text: String,
    judged: Vec<Judged>,
    tokens: usize,
    finish: Option<FinishReason>,
}

/// All answers as one object. Without a job they are the prompts themselves.
pub(crate) async fn collect(reply: &Reply, job: Option<Job>, choices: usize) -> ApiResult<Value> {
    let mut answers: Vec<Choice> = Vec::new();
    for choice in 0..choices {
        let echo = reply.echo(choice).cloned().unwrap_or_default();
        answers.push(Choice { text: echo.text, judged: echo.judged, ..Choice::default() });
    }
    if let Some(mut job) = job {
        while let Some(piece) = job.next().await {
            let Piece { choice, output } = piece?;
            let Some(answer) = answers.get_mut(choice) else { continue };
            answer.judged.extend(output.logprobs.map(|logprobs| Judged::of(output.id, logprobs)));
            answer.text += &output.text;
            answer.tokens += 1;
            answer.finish = output.finish;
        }
    }
    let tokens = answers.iter().map(|answer| answer.tokens).sum();
    let told: Vec<Value> =
        answers.iter().enumerate().map(|(index, answer)| tell(reply, index, answer)).collect();
    let mut object = reply.envelope(false, Value::Array(told));
    object["usage"] = reply.usage(tokens);
    Ok(object)
}

fn tell(reply: &Reply, index: usize, answer: &Choice) -> Value {
    let logprobs = reply.logprobs(&answer.judged, 0);
    let finish_reason = finish_reason(answer.finish.unwrap_or(FinishReason::Length));
    match reply.kind {
        Kind::Chat => json!({
            "index": index,
            "message": { "role": "assistant", "content": answer.text, "refusal": null },
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }),
        Kind::Completion => json!({
            "index": index,
            "text": answer.text,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }),
    }
}
