//! When tokens are told, over a device that works by itself: while it computes the next ones.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tilewright_host::{Batch, LogitChanges, Pace, SampleRow};

use super::super::outbox::Listener;
use super::super::{DraftLength, EngineConfig, Output, Request, Speculation};
use super::harness::*;
use crate::model::Runner;
use crate::{DeviceChoice, Error, FinishReason, Model, Result};

/// What happened: calls of the runner, and what a listener heard of which answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Launched,
    Waited,
    Told(usize),
    Ended(usize),
    Failed,
}

use Event::{Ended, Failed, Launched, Told, Waited};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Event>>>);

impl Log {
    fn note(&self, event: Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Hears as long as `hears` says of the number of outputs before; notes them as of answers from `first` on.
    fn listener(&self, first: usize, hears: impl Fn(usize) -> bool + Send + Sync + 'static) -> Listener {
        let (log, heard) = (self.clone(), AtomicUsize::new(0));
        Arc::new(move |output: Result<Output>| {
            log.note(match output {
                Ok(Output { answer, finish: None, .. }) => Told(first + answer),
                Ok(Output { answer, .. }) => Ended(first + answer),
                Err(_) => Failed,
            });
            hears(heard.fetch_add(1, Ordering::Relaxed))
        })
    }
}

/// What goes wrong in a step, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Never,
    Launch(usize),
    Wait(usize),
    NoNumbers(usize),
}

/// A runner whose steps are done when they are waited for, as far as anybody can tell.
struct Apart {
    inner: Box<dyn Runner>,
    log: Log,
    fault: Fault,
    steps: usize,
}

impl Runner for Apart {
    fn forward(&mut self, batch: &Batch) -> Result<Pace> {
        self.steps += 1;
        if self.fault == Fault::Launch(self.steps - 1) {
            return Err(Error::Stopped);
        }
        self.log.note(Launched);
        self.inner.forward(batch)
    }

    fn copy_pages(&mut self, copies: &[(u32, u32)]) -> Result<()> {
        self.inner.copy_pages(copies)
    }

    fn choose(&mut self, rows: &[SampleRow], changes: &LogitChanges) -> Result<Vec<Option<u32>>> {
        self.log.note(Waited);
        let chosen = self.inner.choose(rows, changes)?;
        match self.fault {
            Fault::Wait(step) if step + 1 == self.steps => Err(Error::Stopped),
            Fault::NoNumbers(step) if step + 1 == self.steps => Ok(vec![None; rows.len()]),
            _ => Ok(chosen),
        }
    }

    fn read_rows(&self, rows: &[u32]) -> Result<Vec<f32>> {
        self.log.note(Waited);
        self.inner.read_rows(rows)
    }

    fn is_asynchronous(&self) -> bool {
        true
    }

    fn vocab(&self) -> usize {
        self.inner.vocab()
    }

    fn cache_bytes(&self) -> usize {
        self.inner.cache_bytes()
    }
}

fn apart(model: &Model, config: EngineConfig, fault: Fault) -> (Bench, Log) {
    let mut bench = Bench::new(model, None, config);
    let log = Log::default();
    let of_runner = log.clone();
    bench.core = bench.core.with_runner(|inner| Box::new(Apart { inner, log: of_runner, fault, steps: 0 }));
    (bench, log)
}

fn small() -> Model {
    fixture("llama-gqa-rope3")
}

fn tokens(max_tokens: usize) -> Request {
    Request { max_tokens, ignore_eos: true, ..Request::new([3, 1, 4]) }
}

fn steps(bench: &mut Bench, steps: usize) {
    (0..steps).for_each(|_| bench.core.step());
}

#[test]
fn tokens_are_told_between_the_next_launch_and_its_wait() {
    let (mut bench, log) = apart(&small(), SMALL, Fault::Never);
    bench.submit_to(&tokens(3), log.listener(0, |_| true));
    bench.run();
    // The last one has no step to hide behind.
    assert_eq!(
        log.take(),
        [Launched, Waited, Launched, Told(0), Waited, Launched, Told(0), Waited, Ended(0)]
    );
}

#[test]
fn where_steps_are_done_when_they_return_tokens_are_told_at_once() {
    let mut bench = Bench::new(&small(), None, SMALL);
    let log = Log::default();
    bench.submit_to(&tokens(3), log.listener(0, |_| true));
    for told in [Told(0), Told(0), Ended(0)] {
        bench.core.step();
        assert_eq!(log.take(), [told]);
    }
    assert_eq!(bench.core.stats.hidden_seconds, 0.0);
}

#[test]
fn an_answer_that_nobody_hears_ends_a_step_later_and_says_no_more() {
    let (mut bench, log) = apart(&small(), SMALL, Fault::Never);
    bench.submit_to(&tokens(100), log.listener(0, |heard| heard < 1));
    bench.submit_to(&tokens(5), log.listener(1, |_| true));
    steps(&mut bench, 2);
    assert_eq!((bench.core.stats.running, bench.core.stats.tokens), (2, 4));
    // The second token is told, and nobody is there: its step's token is dropped.
    steps(&mut bench, 1);
    assert_eq!((bench.core.stats.running, bench.core.stats.tokens), (1, 5));
    assert_eq!(bench.core.stats.pages_held, 1);
    bench.run();
    let heard: Vec<Event> = log.take().into_iter().filter(|it| !matches!(it, Launched | Waited)).collect();
    assert_eq!(heard, [Told(0), Told(1), Told(0), Told(1), Told(1), Told(1), Ended(1)]);
}

#[test]
fn an_answer_that_nobody_hears_says_nothing_more_of_the_same_step() {
    // Lookup finds that 9 follows 9, and all drafts stand: a step says several tokens.
    let config = EngineConfig { speculation: Speculation::NGram(DraftLength::Fixed(3)), ..SMALL };
    let (mut bench, log) = apart(&small(), config, Fault::Never);
    let request = Request { logit_bias: vec![(9, 1e3)], ..Request::new([9; 9]) };
    bench.submit_to(
        &Request { max_tokens: 100, ignore_eos: true, ..request },
        log.listener(0, |heard| heard < 2),
    );
    bench.run();
    let heard: Vec<Event> = log.take().into_iter().filter(|it| !matches!(it, Launched | Waited)).collect();
    assert!(bench.core.stats.accepted > 0);
    assert_eq!(heard, [Told(0); 3]);
}

#[test]
fn what_was_said_before_a_step_failed_is_told_before_the_error() {
    for fault in [Fault::Launch(2), Fault::Wait(2), Fault::NoNumbers(2)] {
        let (mut bench, log) = apart(&small(), SMALL, fault);
        bench.submit_to(&tokens(9), log.listener(0, |_| true));
        bench.run();
        let heard: Vec<Event> =
            log.take().into_iter().filter(|it| !matches!(it, Launched | Waited)).collect();
        assert_eq!(heard, [Told(0), Told(0), Failed], "{fault:?}");
        assert_eq!(bench.core.stats.failed_steps, usize::from(!matches!(fault, Fault::NoNumbers(_))));
        // What was left behind is in nobody's way.
        bench.submit_to(&tokens(2), log.listener(1, |_| true));
        bench.run();
        assert!(log.take().ends_with(&[Ended(1)]), "{fault:?}");
    }
}

#[test]
fn a_failed_step_is_told_at_once() {
    let (mut bench, log) = apart(&small(), EngineConfig { max_running: 1, ..SMALL }, Fault::Wait(1));
    bench.submit_to(&tokens(9), log.listener(0, |_| true));
    bench.submit_to(&tokens(2), log.listener(1, |_| true));
    steps(&mut bench, 2);
    assert_eq!(log.take(), [Launched, Waited, Launched, Told(0), Waited, Failed]);
    // The other one is still to be served.
    assert_eq!(bench.core.stats.waiting, 1);
}

#[test]
fn cancelling_drops_what_is_queued_and_holds_nobody_else_up() {
    let (mut bench, log) = apart(&small(), SMALL, Fault::Never);
    let endless = bench.submit_to(&tokens(100), log.listener(0, |_| true));
    bench.submit_to(&tokens(2), log.listener(1, |_| true));
    steps(&mut bench, 2);
    assert_eq!(log.take(), [Launched, Waited, Launched, Told(0), Told(1), Waited]);
    // The other one's end is queued behind a token of the one that is cancelled, and no step comes any more.
    bench.core.cancel(endless);
    assert_eq!(log.take(), [Ended(1)]);
    bench.core.count();
    assert!(bench.core.is_idle() && bench.core.stats.pages_held == 0);
}

#[test]
fn stopping_tells_what_is_queued_before_the_error() {
    let (mut bench, log) = apart(&small(), SMALL, Fault::Never);
    bench.submit_to(&tokens(2), log.listener(0, |_| true));
    bench.submit_to(&tokens(100), log.listener(1, |_| true));
    steps(&mut bench, 2);
    log.take();
    bench.core.stop();
    assert_eq!(log.take(), [Ended(0), Told(1), Failed]);
    assert!(bench.core.is_idle());
}

#[test]
fn a_listener_is_let_go_with_its_last_output() {
    let (mut bench, log) = apart(&small(), SMALL, Fault::Never);
    let listeners = [(2, usize::MAX), (100, 1)].map(|(max_tokens, heard)| {
        let listener = log.listener(0, move |before| before < heard);
        bench.submit_to(&tokens(max_tokens), listener.clone());
        Arc::downgrade(&listener)
    });
    let endless = log.listener(0, |_| true);
    let id = bench.submit_to(&tokens(100), endless.clone());
    steps(&mut bench, 3);
    assert!(listeners.iter().all(|listener| listener.upgrade().is_none()));
    bench.core.cancel(id);
    assert_eq!(Arc::strong_count(&endless), 1);
}

/// Outputs of each request, and what was counted.
fn served(mut bench: Bench, requests: &[Request]) -> (Vec<Vec<Output>>, [usize; 9]) {
    let heard: Vec<Arc<Mutex<Vec<Output>>>> = requests.iter().map(|_| Arc::default()).collect();
    for (request, heard) in requests.iter().zip(&heard) {
        let heard = heard.clone();
        let listener = move |output: Result<Output>| {
            heard.lock().expect("no panic").push(output.expect("a token"));
            true
        };
        bench.submit_to(request, Arc::new(listener));
    }
    bench.run();
    let it = bench.core.stats;
    let counts = [
        it.steps,
        it.rows,
        it.tokens,
        it.cached_tokens,
        it.preemptions,
        it.failed_steps,
        it.drafts,
        it.accepted,
        it.verified,
    ];
    assert!(it.hidden_seconds <= it.deliver_seconds && it.host_share() <= 1.0);
    (heard.iter().map(|heard| std::mem::take(&mut *heard.lock().expect("no panic"))).collect(), counts)
}

#[test]
fn when_tokens_are_told_changes_nothing_about_them() {
    let model = small();
    let requests = requests(24, 11);
    let lookup = Speculation::NGram(DraftLength::Fixed(3));
    // The second has too few pages for all, so that some are computed anew with tokens queued.
    for config in [
        SMALL,
        EngineConfig { cache_tokens: 128, page_size: 4, ..SMALL },
        EngineConfig { speculation: lookup, ..SMALL },
    ] {
        let expected = served(Bench::new(&model, None, config), &requests);
        assert_eq!(expected.1[4] > 0, config.cache_tokens == 128, "preemptions");
        let (bench, _) = apart(&model, config, Fault::Never);
        assert_eq!(served(bench, &requests), expected, "{config:?}");
    }
}

#[test]
fn texts_are_the_same_with_and_without_stop_strings() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/target");
    let model = Model::load(demo, DeviceChoice::Cpu).expect("the demo target");
    let prompt = model.tokenizer().expect("a tokenizer").encode("fn main() {\n    let mut v = Vec::new();\n");
    let plain = Request { max_tokens: 24, answers: 2, ..Request::new(prompt.expect("tokens")) };
    let requests = [Request { stop: vec!["foo(v: &".into()], ..plain.clone() }, plain];
    let config = EngineConfig { cache_tokens: 1024, ..EngineConfig::default() };
    let expected = served(Bench::new(&model, None, config), &requests);
    let (bench, _) = apart(&model, config, Fault::Never);
    assert_eq!(served(bench, &requests), expected);
    let last = |outputs: &[Output]| outputs.last().and_then(|output| output.finish);
    assert_eq!(last(&expected.0[0]), Some(FinishReason::Stop));
    let text = |answer: usize| {
        let own = expected.0[1].iter().filter(|output| output.answer == answer);
        own.map(|output| &output.text[..]).collect::<String>()
    };
    assert!(text(0).starts_with("}\n\nfn foo(v: &"), "{}", text(0));
    assert_eq!(text(0), text(1));
}
