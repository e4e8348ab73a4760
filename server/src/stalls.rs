//! A connection that gives up on a peer that doesn't read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Fails a write that makes no progress for a while.
pub(crate) struct Stalls<S> {
    inner: S,
    time: Duration,
    /// Runs while a write waits.
    since: Option<Pin<Box<Sleep>>>,
}

impl<S> Stalls<S> {
    pub fn new(inner: S, time: Duration) -> Stalls<S> {
        Stalls { inner, time, since: None }
    }

    /// `progress` of a write, or the error that there was none for too long.
    fn judge<T>(&mut self, context: &mut Context<'_>, progress: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.since = None;
            return progress;
        }
        let time = self.time;
        let since = self.since.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
        match since.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalls<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalls<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.judge(context, progress)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.inner).poll_write_vectored(context, parts);
        self.judge(context, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.inner).poll_flush(context);
        self.judge(context, progress)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.inner).poll_shutdown(context);
        self.judge(context, progress)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_given_up() {
        let time = Duration::from_millis(50);
        let (near, mut far) = tokio::io::duplex(16);
        let mut near = Stalls::new(near, time);
        // What is read in time goes through, however slowly.
        let reading = async {
            let mut bytes = [0; 8];
            for _ in 0..8 {
                tokio::time::sleep(time / 5).await;
                far.read_exact(&mut bytes).await.expect("read");
            }
        };
        let (written, ()) = tokio::join!(near.write_all(&[1; 64]), reading);
        written.expect("written");
        let error = near.write_all(&[1; 64]).await.expect_err("a stall");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
