//! A request's sequences in the engine, and what comes of them.

use std::sync::Arc;
use std::time::Instant;

use tilewright::engine::{Output, Request, Ticket};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::app::App;
use crate::error::{ApiError, ApiResult};

/// A token of one of a request's answers.
pub(crate) struct Piece {
    /// The answer's number among those of all prompts: `prompt * n + answer`.
    pub choice: usize,
    pub output: Output,
}

/// What one prompt's answers say, with the prompt's number.
type Heard = (usize, tilewright::Result<Output>);

/// Sequences under way. Dropping it cancels them within a step.
pub(crate) struct Job {
    app: Arc<App>,
    /// Bounded by the tokens that were asked for.
    heard: UnboundedReceiver<Heard>,
    tickets: Vec<Ticket>,
    /// Answers of a prompt.
    answers: usize,
    /// Answers that haven't ended.
    open: usize,
    began: Instant,
    /// When each answer's last token came.
    last: Vec<Option<Instant>>,
    deadline: Instant,
    _places: OwnedSemaphorePermit,
}

impl Job {
    /// Submits requests, all with the same number of answers. None is submitted unless all can be served.
    pub fn start(
        app: &Arc<App>,
        requests: Vec<Request>,
        places: OwnedSemaphorePermit,
        deadline: Instant,
    ) -> ApiResult<Job> {
        let engine = &app.generator()?.engine;
        for request in &requests {
            engine.check(request)?;
        }
        let answers = requests.first().map_or(0, |request| request.answers);
        let open = answers * requests.len();
        let (out, heard) = unbounded_channel::<Heard>();
        let mut tickets = Vec::with_capacity(requests.len());
        for (index, request) in requests.into_iter().enumerate() {
            let out = out.clone();
            tickets.push(engine.submit_to(request, move |output| out.send((index, output)).is_ok())?);
        }
        Ok(Job {
            app: app.clone(),
            heard,
            tickets,
            answers,
            open,
            began: Instant::now(),
            last: vec![None; open],
            deadline,
            _places: places,
        })
    }

    /// The next token of any answer; None when all have ended. Nothing comes after an error. Nothing is lost if the wait is given up.
    pub async fn next(&mut self) -> Option<ApiResult<Piece>> {
        if self.open == 0 {
            return None;
        }
        let heard = tokio::time::timeout_at(self.deadline.into(), self.heard.recv()).await;
        let piece = match heard {
            Err(_) => Err(ApiError::timed_out(self.app.limits().request_time.as_secs())),
            Ok(None) => Err(ApiError::unavailable("the engine has stopped")),
            Ok(Some((_, Err(error)))) => Err(error.into()),
            Ok(Some((prompt, Ok(output)))) => Ok(self.take_in(prompt, output)),
        };
        if piece.is_err() {
            self.open = 0;
            self.tickets.clear();
        }
        Some(piece)
    }

    fn take_in(&mut self, prompt: usize, output: Output) -> Piece {
        let choice = prompt * self.answers + output.answer;
        let now = Instant::now();
        if self.last.iter().all(Option::is_none) {
            self.app.metrics.first_token(now - self.began);
        }
        if let Some(slot) = self.last.get_mut(choice)
            && let Some(before) = slot.replace(now)
        {
            self.app.metrics.inter_token(now - before);
        }
        if output.finish.is_some() {
            self.open -= 1;
            if self.open == 0 {
                self.tickets.drain(..).for_each(Ticket::close);
            }
        }
        Piece { choice, output }
    }
}
