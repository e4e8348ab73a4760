//! Connections: accepted, served, and let finish.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tilewright::Engine;
use tilewright::engine::EngineStats;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::app::{App, Backend, Generator, ServeError};
use crate::config::{Limits, ServerConfig};
use crate::embed::Embed;
use crate::http::router;
use crate::stalls::Stalls;

/// Wait after a failed accept: of file descriptors, say, of which others will be given back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often recorded times move from lists into histograms.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// Looks at an engine whose requests are gone, and the time between two: a step may take a while.
const SETTLING_LOOKS: usize = 1000;
const SETTLING_PAUSE: Duration = Duration::from_millis(5);
/// Time at most for what a thread does that nobody waits for any more: texts that are made into tokens, prompts that are judged.
const ABANDONED_TIME: Duration = Duration::from_secs(5);
/// Time at most for the refusals of those to go out who wait for an answer when the time to finish is nearly over.
const LAST_CALL: Duration = Duration::from_secs(1);
/// Threads that read requests and judge prompts.
pub(crate) const BLOCKING_THREADS: usize = 64;

/// A model with a name and limits, ready to be served.
pub struct Server {
    app: Arc<App>,
}

impl Server {
    /// A server of a model that generates text.
    ///
    /// # Errors
    /// A chat template that can't be used, or that no [`renderer`](ServerConfig::renderer) is there for; a limit that can't be kept.
    pub fn generating(engine: Engine, config: ServerConfig) -> Result<Server, ServeError> {
        config.limits.validate()?;
        let generator = Generator::new(engine, &config)?;
        Ok(Server { app: Arc::new(App::new(config, Backend::Generates(Box::new(generator)))) })
    }

    /// A server of a model that embeds text.
    ///
    /// # Errors
    /// A limit that can't be kept.
    pub fn embedding(embedder: Box<dyn Embed>, config: ServerConfig) -> Result<Server, ServeError> {
        config.limits.validate()?;
        Ok(Server { app: Arc::new(App::new(config, Backend::Embeds(embedder))) })
    }

    /// Whether chats are rendered by the checkpoint's own template.
    pub fn has_chat_template(&self) -> bool {
        self.app.generator().is_ok_and(|generator| generator.template.is_own())
    }

    /// Serves connections until `end` comes, then lets requests under way finish for as long as the limits say. Returns what the
    /// engine has done, where there is one.
    pub async fn serve(self, listener: TcpListener, end: impl Future<Output = ()>) -> Option<EngineStats> {
        let Server { app } = self;
        let limits = app.limits().clone();
        let router = router(app.clone());
        let slots = Arc::new(Semaphore::new(limits.connections));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        let tidying = tokio::spawn(tidy(app.clone()));
        tokio::pin!(end);
        loop {
            let (stream, slot) = tokio::select! {
                () = &mut end => break,
                accepted = accept(&listener, &slots) => accepted,
            };
            let service = TowerToHyperService::new(router.clone());
            let io = TokioIo::new(Stalls::new(stream, limits.body_time));
            let connection = builder(&limits).serve_connection(io, service);
            let connection = graceful.watch(connection);
            connections.spawn(async move {
                // Peers that leave, stall or speak otherwise are no news.
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection ended early");
                }
                drop(slot);
            });
            while connections.try_join_next().is_some() {}
        }
        drop(listener);
        app.end(Instant::now() + limits.drain_time - LAST_CALL.min(limits.drain_time / 4));
        tracing::info!(connections = connections.len(), "ending");
        if tokio::time::timeout(limits.drain_time, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests under way were cut off");
        }
        connections.shutdown().await;
        tidying.abort();
        match &app.backend {
            Backend::Generates(generator) => Some(settled(&generator.engine).await),
            Backend::Embeds(_) => None,
        }
    }
}

/// What an engine has done once those have ended whom nobody waits for any more.
async fn settled(engine: &Engine) -> EngineStats {
    for _ in 0..SETTLING_LOOKS {
        let stats = engine.stats();
        if stats.running + stats.waiting == 0 || !engine.is_running() {
            break;
        }
        tokio::time::sleep(SETTLING_PAUSE).await;
    }
    engine.stats()
}

/// Serves at an address until the process is told to end (SIGTERM, or an interrupt); told again, it ends at once. `bound` hears the
/// address once connections are taken. What a thread still does when the time to finish is over ends with the process: it is not waited for.
///
/// # Errors
/// An address that can't be listened at.
pub fn run(
    server: Server,
    address: &str,
    bound: impl FnOnce(SocketAddr),
) -> Result<Option<EngineStats>, ServeError> {
    // As many connections as the limits allow need as many file descriptors; where fewer are to be had, accepting waits.
    let _ = rlimit::increase_nofile_limit(server.app.limits().connections as u64 + 256);
    let io = |what: String| move |source| ServeError::Io { what, source };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().max_blocking_threads(BLOCKING_THREADS).build();
    let runtime = runtime.map_err(io("the server's threads".into()))?;
    let drain_time = server.app.limits().drain_time;
    let mut ends_by = None;
    let stats = runtime.block_on(async {
        let listener = TcpListener::bind(address).await.map_err(io(address.to_string()))?;
        let told = told_to_end().map_err(io("signals".into()))?;
        let local = listener.local_addr().map_err(io(address.to_string()))?;
        bound(local);
        let end = async {
            told.await;
            ends_by = Some(Instant::now() + drain_time);
        };
        Ok(server.serve(listener, end).await)
    });
    let left = ends_by.map_or(Duration::ZERO, |by| by.saturating_duration_since(Instant::now()));
    runtime.shutdown_timeout(left.min(ABANDONED_TIME));
    stats
}

fn builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_headers(limits.headers)
        .max_buf_size(limits.head_bytes);
    builder
}

/// The next connection, once there's a slot for it.
async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            // The semaphore is never closed.
            std::future::pending::<()>().await;
            continue;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                // Tokens are small and shouldn't wait for company; a connection that can't be told so is served all the same.
                let _ = stream.set_nodelay(true);
                return (stream, slot);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn tidy(app: Arc<App>) {
    let mut every = tokio::time::interval(TIDY_EVERY);
    loop {
        every.tick().await;
        app.metrics.tidy();
    }
}

/// Ends when the process is told to end.
#[cfg(unix)]
fn told_to_end() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(130);
        });
    })
}

/// Ends when the process is told to end.
#[cfg(not(unix))]
fn told_to_end() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        // Without a way to be told, it goes on.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
