//! How much text is made into tokens at a time: a byte of it takes some 200 of memory meanwhile.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{ApiError, ApiResult};
use crate::serve::BLOCKING_THREADS;

/// Turns by bytes of text, first come, first served.
pub(crate) struct Turns {
    free: Arc<Semaphore>,
    all_bytes: u32,
}

/// Held for as long as a text is made into tokens; nothing for a short one.
pub(crate) type Turn = Option<OwnedSemaphorePermit>;

impl Turns {
    pub fn new(all_bytes: usize) -> Turns {
        let all_bytes = u32::try_from(all_bytes).unwrap_or(u32::MAX);
        Turns { free: Arc::new(Semaphore::new(all_bytes as usize)), all_bytes }
    }

    /// A turn for a text of so many bytes; one that is longer than all turns together goes alone. Who is dropped while waiting is out of
    /// the queue. Short texts don't wait behind long ones: the threads that read requests have no more in hand together than all turns.
    pub async fn take(&self, text_bytes: usize, deadline: Instant, seconds: u64) -> ApiResult<Turn> {
        if text_bytes <= self.all_bytes as usize / BLOCKING_THREADS {
            return Ok(None);
        }
        let bytes = u32::try_from(text_bytes).unwrap_or(u32::MAX).min(self.all_bytes);
        let taken = self.free.clone().acquire_many_owned(bytes);
        match tokio::time::timeout_at(deadline.into(), taken).await {
            Err(_) => Err(ApiError::timed_out(seconds)),
            Ok(Err(_)) => Err(ApiError::unavailable("the server is ending")),
            Ok(Ok(turn)) => Ok(Some(turn)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Whether a turn is to be had at once.
    async fn is_free(turns: &Turns, text_bytes: usize) -> bool {
        let deadline = Instant::now() + Duration::from_millis(20);
        turns.take(text_bytes, deadline, 0).await.is_ok()
    }

    #[tokio::test]
    async fn texts_share_what_there_is() {
        let turns = Turns::new(6400);
        let far = Instant::now() + Duration::from_secs(60);
        let first = turns.take(4000, far, 0).await.expect("a turn");
        assert!(is_free(&turns, 2400).await && !is_free(&turns, 2401).await);
        // A short text doesn't wait, and takes nothing.
        let alone = {
            drop(first);
            turns.take(1_000_000, far, 0).await.expect("a turn")
        };
        assert!(!is_free(&turns, 101).await && is_free(&turns, 100).await);
        drop(alone);
        assert!(is_free(&turns, 6400).await);
    }

    #[tokio::test]
    async fn who_waits_too_long_or_leaves_is_out_of_the_queue() {
        let turns = Turns::new(6400);
        let far = Instant::now() + Duration::from_secs(60);
        let held = turns.take(6000, far, 0).await.expect("a turn");
        let late = turns.take(6000, Instant::now() + Duration::from_millis(20), 7).await;
        assert_eq!(late.err().map(|error| (error.status.as_u16(), error.code)), Some((504, Some("timeout"))));
        let leaves = tokio::time::timeout(Duration::from_millis(20), turns.take(6000, far, 0)).await;
        assert!(leaves.is_err());
        // Neither keeps a later and shorter text waiting.
        assert!(is_free(&turns, 400).await);
        drop(held);
        assert!(is_free(&turns, 6400).await);
    }
}
