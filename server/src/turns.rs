//! How much is read at a time: long bodies, of which a byte may take tens of memory while it's parsed, and text that is made into tokens, of
//! which one takes some 200.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{ApiError, ApiResult};
use crate::serve::BLOCKING_THREADS;

/// Turns to read bodies, and to make text into tokens; each first come, first served. Short ones don't wait behind long ones: the threads
/// that read requests have no more of them in hand together than all turns' bytes, and long bodies leave threads free.
pub(crate) struct Turns {
    /// Long bodies that may be read.
    bodies: Arc<Semaphore>,
    /// Bytes of text that may be made into tokens.
    free: Arc<Semaphore>,
    all_bytes: u32,
}

/// Held for as long as a body is read or a text made into tokens; nothing for a short one.
pub(crate) type Turn = Option<OwnedSemaphorePermit>;

impl Turns {
    /// Turns for so many bytes of text and long bodies at a time.
    pub fn new(all_bytes: usize, bodies: usize) -> Turns {
        let all_bytes = u32::try_from(all_bytes).unwrap_or(u32::MAX);
        let bodies = Arc::new(Semaphore::new(bodies));
        Turns { bodies, free: Arc::new(Semaphore::new(all_bytes as usize)), all_bytes }
    }

    /// A turn to read so many bytes of a body.
    pub async fn read(&self, bytes: usize, deadline: Instant, seconds: u64) -> ApiResult<Turn> {
        match self.is_short(bytes) {
            true => Ok(None),
            false => taken(&self.bodies, 1, deadline, seconds).await,
        }
    }

    /// A turn to make a text of so many bytes into tokens; one that is longer than all turns together goes alone.
    pub async fn tokenise(&self, text_bytes: usize, deadline: Instant, seconds: u64) -> ApiResult<Turn> {
        if self.is_short(text_bytes) {
            return Ok(None);
        }
        let bytes = u32::try_from(text_bytes).unwrap_or(u32::MAX).min(self.all_bytes);
        taken(&self.free, bytes, deadline, seconds).await
    }

    fn is_short(&self, bytes: usize) -> bool {
        bytes <= self.all_bytes as usize / BLOCKING_THREADS
    }
}

/// Who is dropped while waiting is out of the queue.
async fn taken(free: &Arc<Semaphore>, permits: u32, deadline: Instant, seconds: u64) -> ApiResult<Turn> {
    let taken = free.clone().acquire_many_owned(permits);
    match tokio::time::timeout_at(deadline.into(), taken).await {
        Err(_) => Err(ApiError::timed_out(seconds)),
        Ok(Err(_)) => Err(ApiError::unavailable("the server is ending")),
        Ok(Ok(turn)) => Ok(Some(turn)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Whether a turn is to be had at once.
    async fn is_free(turns: &Turns, text_bytes: usize) -> bool {
        let deadline = Instant::now() + Duration::from_millis(20);
        turns.tokenise(text_bytes, deadline, 0).await.is_ok()
    }

    #[tokio::test]
    async fn texts_share_what_there_is() {
        let turns = Turns::new(6400, 1);
        let far = Instant::now() + Duration::from_secs(60);
        let first = turns.tokenise(4000, far, 0).await.expect("a turn");
        assert!(is_free(&turns, 2400).await && !is_free(&turns, 2401).await);
        // A short text doesn't wait, and takes nothing.
        let alone = {
            drop(first);
            turns.tokenise(1_000_000, far, 0).await.expect("a turn")
        };
        assert!(!is_free(&turns, 101).await && is_free(&turns, 100).await);
        drop(alone);
        assert!(is_free(&turns, 6400).await);
    }

    #[tokio::test]
    async fn long_bodies_share_places_and_short_ones_need_none() {
        let turns = Turns::new(6400, 2);
        let far = Instant::now() + Duration::from_secs(60);
        let soon = || Instant::now() + Duration::from_millis(20);
        let first = turns.read(101, far, 0).await.expect("a turn");
        let _second = turns.read(1_000_000, far, 0).await.expect("a turn");
        let late = turns.read(101, soon(), 7).await;
        assert_eq!(late.err().map(|error| error.status.as_u16()), Some(504));
        assert!(turns.read(100, soon(), 0).await.is_ok_and(|turn| turn.is_none()));
        // What waits for one has nothing to do with what waits for the other.
        assert!(is_free(&turns, 6400).await);
        drop(first);
        assert!(turns.read(101, soon(), 0).await.is_ok());
    }

    #[tokio::test]
    async fn who_waits_too_long_or_leaves_is_out_of_the_queue() {
        let turns = Turns::new(6400, 1);
        let far = Instant::now() + Duration::from_secs(60);
        let held = turns.tokenise(6000, far, 0).await.expect("a turn");
        let late = turns.tokenise(6000, Instant::now() + Duration::from_millis(20), 7).await;
        assert_eq!(late.err().map(|error| (error.status.as_u16(), error.code)), Some((504, Some("timeout"))));
        let leaves = tokio::time::timeout(Duration::from_millis(20), turns.tokenise(6000, far, 0)).await;
        assert!(leaves.is_err());
        // Neither keeps a later and shorter text waiting.
        assert!(is_free(&turns, 400).await);
        drop(held);
        assert!(is_free(&turns, 6400).await);
    }
}
