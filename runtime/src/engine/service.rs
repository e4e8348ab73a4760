//! The engine's thread, and what other threads hold of it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::answer::Language;
use super::config::{EngineConfig, Speculation};
use super::core::Core;
use super::outbox::Listener;
use super::request::{Output, Request};
use super::speculate::{DraftModel, Speculator};
use super::stats::EngineStats;
use super::track::{Id, MAX_VOCAB};
use crate::model::RunnerSizes;
use crate::{Error, Model, Result};

enum Command {
    /// A request, the number of its first answer's sequence, and who listens.
    Submit(Box<Request>, Id, Listener),
    Cancel(Range<Id>),
    /// Ends when all answers have.
    Drain,
    /// Ends at once.
    Stop,
}

/// Serves many requests at once; see the [module](super).
///
/// Dropping it ends all answers with [`Error::Stopped`]; [`Engine::shutdown`] waits for them.
pub struct Engine {
    model: Model,
    config: EngineConfig,
    commands: Sender<Command>,
    next_id: AtomicU64,
    stats: Arc<Mutex<EngineStats>>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// An engine of a model. All memory that steps need is reserved here, step metadata aside.
    ///
    /// # Errors
    /// A size out of range; a device without room; [`Speculation::DraftModel`], which takes [`Engine::with_draft`].
    pub fn new(model: Model, config: EngineConfig) -> Result<Engine> {
        if let Speculation::DraftModel(_) = config.speculation {
            return Err(Error::request("speculation", "a draft model", "none"));
        }
        Engine::start(model, None, config)
    }

    /// An engine whose drafts are those of a smaller model, unless `config` has them come from elsewhere.
    ///
    /// # Errors
    /// As [`Engine::new`]; a draft model of another vocabulary.
    pub fn with_draft(model: Model, draft: &Model, config: EngineConfig) -> Result<Engine> {
        Engine::start(model, Some(draft), config)
    }

    fn start(model: Model, draft: Option<&Model>, config: EngineConfig) -> Result<Engine> {
        let core = assemble(&model, draft, &config)?;
        let (commands, receiver) = channel();
        let stats = Arc::new(Mutex::new(core.stats));
        let shared = stats.clone();
        let thread = std::thread::Builder::new()
            .name("tilewright-engine".into())
            .spawn(move || serve(core, &receiver, &shared))
            .map_err(|source| Error::Io { path: "the engine's thread".into(), source })?;
        Ok(Engine { model, config, commands, next_id: AtomicU64::new(0), stats, thread: Some(thread) })
    }

    /// Submits a request. From any thread; the answers' tokens come as they are made.
    ///
    /// # Errors
    /// A request that can't be served, and why; an engine that has stopped.
    pub fn submit(&self, request: Request) -> Result<TokenStream> {
        let open = request.answers;
        let (out, outputs) = channel();
        let ticket = self.submit_to(request, move |output| out.send(output).is_ok())?;
        Ok(TokenStream { outputs, open, ticket })
    }

    /// Submits a request whose tokens go to `listener` as they are made, on the engine's thread, which does nothing else meanwhile: it
    /// had better hand them on at once. On a device that works by itself that is while it computes the next ones. An answer ends early
    /// where it returns false, and it hears no more of that one; an error ends the one answer that met it. It is dropped when nothing
    /// more comes, be it because the engine is gone.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn submit_to(
        &self,
        request: Request,
        listener: impl Fn(Result<Output>) -> bool + Send + Sync + 'static,
    ) -> Result<Ticket> {
        self.check(&request)?;
        let answers = request.answers as u64;
        // Numbers need but be unlike each other.
        let first = self.next_id.fetch_add(answers, Ordering::Relaxed);
        let command = Command::Submit(Box::new(request), first, Arc::new(listener));
        self.commands.send(command).map_err(|_| Error::Stopped)?;
        Ok(Ticket { ids: first..first + answers, commands: Some(self.commands.clone()) })
    }

    /// Whether [`Engine::submit`] would take a request.
    ///
    /// # Errors
    /// Names what can't be served.
    pub fn check(&self, request: &Request) -> Result<()> {
        request.validate(&self.model, &self.config)
    }

    /// Whether its thread is there to serve anything.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// The model it serves.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Its sizes.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// What it has done, as of its last step.
    pub fn stats(&self) -> EngineStats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all answers have ended, and ends.
    pub fn shutdown(mut self) -> EngineStats {
        self.finish(Command::Drain);
        self.stats()
    }

    fn finish(&mut self, command: Command) {
        // A thread that has ended needs no telling.
        let _ = self.commands.send(command);
        if let Some(thread) = self.thread.take() {
            // A panic there has ended all streams with an error.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.finish(Command::Stop);
    }
}

/// A request's place in the engine. Dropping it cancels the answers that haven't ended.
pub struct Ticket {
    /// The sequences' numbers.
    ids: Range<Id>,
    /// None once there's nothing left to cancel.
    commands: Option<Sender<Command>>,
}

impl Ticket {
    /// All answers have ended: nothing is left to cancel.
    pub fn close(mut self) {
        self.commands = None;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(commands) = &self.commands {
            // An engine that has ended has nothing to cancel.
            let _ = commands.send(Command::Cancel(self.ids.clone()));
        }
    }
}

/// The tokens of a request's answers, as they come; of several answers, interleaved. An error ends the one answer that met it.
///
/// Dropping it cancels what hasn't ended.
pub struct TokenStream {
    outputs: Receiver<Result<Output>>,
    /// Answers that haven't ended.
    open: usize,
    ticket: Ticket,
}

impl TokenStream {
    /// Ends the request.
    pub fn cancel(self) {}
}

impl Iterator for TokenStream {
    type Item = Result<Output>;

    fn next(&mut self) -> Option<Result<Output>> {
        if self.open == 0 {
            return None;
        }
        let output = match self.outputs.recv() {
            Ok(output) => output,
            Err(RecvError) => {
                self.open = 0;
                return Some(Err(Error::Stopped));
            }
        };
        let ends = output.as_ref().map_or(true, |output| output.finish.is_some());
        self.open -= usize::from(ends);
        Some(output)
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        if self.open == 0 {
            self.ticket.commands = None;
        }
    }
}

/// The engine's parts for a model.
pub(crate) fn assemble(model: &Model, draft: Option<&Model>, config: &EngineConfig) -> Result<Core> {
    config.validate()?;
    let vocab = model.config().vocab_size;
    if vocab > MAX_VOCAB {
        return Err(Error::request("vocabulary", format!("at most {MAX_VOCAB} tokens"), vocab));
    }
    let sizes = RunnerSizes {
        pages: config.pages(),
        page_size: config.page_size,
        dtype: config.kv_dtype,
        max_rows: config.step_tokens,
        max_outputs: config.max_running * (1 + config.speculation.max_drafts()),
    };
    let draft_model = match (draft, config.speculation) {
        (Some(draft), Speculation::DraftModel(_)) => {
            let found = draft.config().vocab_size;
            if found != vocab {
                return Err(Error::request("draft model", format!("a vocabulary of {vocab} tokens"), found));
            }
            let runner = draft.decoder().runner(RunnerSizes { max_outputs: config.max_running, ..sizes })?;
            Some(DraftModel::new(runner, config.page_size, config.step_tokens, draft.config().context))
        }
        _ => None,
    };
    let language = Language {
        tokenizer: model.shared_tokenizer(),
        eos: model.config().eos_token_ids.clone(),
        context: model.config().context,
    };
    let runner = model.decoder().runner(sizes)?;
    Ok(Core::new(config, runner, Speculator::new(config.speculation, draft_model), language))
}

/// Takes commands between steps, and waits for them where there's nothing else to do.
fn serve(mut core: Core, commands: &Receiver<Command>, stats: &Mutex<EngineStats>) {
    let mut draining = false;
    loop {
        let command = match core.is_idle() {
            true if draining => return,
            true => commands.recv().map_err(|RecvError| TryRecvError::Disconnected),
            false => commands.try_recv(),
        };
        match command {
            Ok(Command::Submit(_, _, listener)) if draining => {
                // Whoever doesn't listen needs no telling.
                let _ = listener(Err(Error::Stopped));
            }
            Ok(Command::Submit(request, first, listener)) => core.submit(*request, first, &listener),
            Ok(Command::Cancel(ids)) => ids.for_each(|id| core.cancel(id)),
            Ok(Command::Drain) => draining = true,
            Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return core.stop(),
            Err(TryRecvError::Empty) => core.step(),
        }
        core.count();
        *stats.lock().unwrap_or_else(PoisonError::into_inner) = core.stats;
    }
}
