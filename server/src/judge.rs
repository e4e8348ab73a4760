//! What a model thinks of a prompt's own tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tilewright::{Logprobs, Model};

use crate::app::App;
use crate::error::{ApiError, ApiResult};

/// Tokens between two looks at whether anybody still waits.
const CHUNK_TOKENS: usize = 256;

/// Of each token of a prompt what the model thought of it, and of the `top` likeliest in its place; of the first nothing, as nothing
/// comes before it. One prompt at a time: each takes a cache beside the engine's.
pub(crate) async fn judge(
    app: &Arc<App>,
    prompt: Vec<u32>,
    top: usize,
    deadline: Instant,
) -> ApiResult<Vec<Option<Logprobs>>> {
    let unheard = Unheard(Arc::new(AtomicBool::new(false)));
    let flag = unheard.0.clone();
    let work = async {
        let turn = app.generator()?.judging.acquire().await;
        let _turn = turn.map_err(|_| ApiError::unavailable("the server is ending"))?;
        let app = app.clone();
        let judged = tokio::task::spawn_blocking(move || {
            Ok(judge_now(app.generator()?.model(), &prompt, top, &flag)?)
        });
        judged.await.unwrap_or_else(|_| Err(ApiError::internal("judging the prompt failed")))
    };
    let seconds = app.limits().request_time.as_secs();
    tokio::time::timeout_at(deadline.into(), work).await.unwrap_or_else(|_| Err(ApiError::timed_out(seconds)))
}

/// Tells the thread that judges when nobody waits any more.
struct Unheard(Arc<AtomicBool>);

impl Drop for Unheard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn judge_now(
    model: &Model,
    prompt: &[u32],
    top: usize,
    unheard: &AtomicBool,
) -> tilewright::Result<Vec<Option<Logprobs>>> {
    let mut sequence = model.sequence(prompt.len())?;
    let mut judged = Vec::with_capacity(prompt.len());
    judged.push(None);
    for (index, chunk) in prompt.chunks(CHUNK_TOKENS).enumerate() {
        if unheard.load(Ordering::Relaxed) {
            return Err(tilewright::Error::Stopped);
        }
        sequence.feed_all(chunk, &mut |row, logits| {
            if let Some(&next) = prompt.get(index * CHUNK_TOKENS + row + 1) {
                judged.push(Some(Logprobs::of(logits, next, top)));
            }
        })?;
    }
    Ok(judged)
}
