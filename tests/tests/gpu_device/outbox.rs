//! When tokens are told: while the GPU computes the next ones, whose results the engine then waits for.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tilewright::{
    DeviceChoice, Error, Model,
    engine::{DraftLength, Engine, EngineConfig, Output, Request, Speculation},
};
use tilewright_host::{
    Result,
    gpu::{Driver, GpuDevice, GpuInfo, Launch},
};
use tilewright_kernels::abi::{KernelSpec, TensorMap, TensorMapSpec};
use tilewright_tests::{emulated::Emulated, idle::Idle};

use super::engine::{CONFIG, fixture};

/// What a driver was asked for, and what a listener heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Launched,
    Waited,
    Told,
}

use Event::{Launched, Told, Waited};

/// A driver that notes what it is asked for; launches in a row once.
struct Noting<Dr> {
    inner: Dr,
    log: Arc<Mutex<Vec<Event>>>,
}

impl<Dr> Noting<Dr> {
    fn note(&self, event: Event) {
        let mut log = self.log.lock().expect("no panic");
        if log.last() != Some(&event) {
            log.push(event);
        }
    }
}

impl<Dr: Driver> Driver for Noting<Dr> {
    type Buffer = Dr::Buffer;
    type Graph = Dr::Graph;

    fn info(&self) -> &GpuInfo {
        self.inner.info()
    }

    fn alloc(&self, bytes: usize, purpose: &'static str) -> Result<Self::Buffer> {
        self.inner.alloc(bytes, purpose)
    }

    fn address(&self, buffer: &Self::Buffer) -> u64 {
        self.inner.address(buffer)
    }

    fn upload(&self, dst: &Self::Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        self.inner.upload(dst, offset, bytes)
    }

    fn download(&self, src: &Self::Buffer, offset: usize, out: &mut [u8]) -> Result<()> {
        self.note(Waited);
        self.inner.download(src, offset, out)
    }

    fn zero(&self, dst: &Self::Buffer) -> Result<()> {
        self.inner.zero(dst)
    }

    fn tensor_map(&self, spec: &TensorMapSpec<'_>) -> Result<TensorMap> {
        self.inner.tensor_map(spec)
    }

    unsafe fn launch(&self, spec: &'static KernelSpec, grid: [u32; 3], params: &[u8]) -> Result<()> {
        self.note(Launched);
        // SAFETY: the caller's promise.
        unsafe { self.inner.launch(spec, grid, params) }
    }

    unsafe fn graph(&self, launches: &[Launch]) -> Result<Option<Self::Graph>> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.graph(launches) }
    }

    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()> {
        self.note(Launched);
        // SAFETY: the caller's promise.
        unsafe { self.inner.replay(graph) }
    }

    fn synchronize(&self) -> Result<()> {
        self.note(Waited);
        self.inner.synchronize()
    }
}

/// What happens while four tokens are made.
fn events<Dr: Driver>(inner: Dr, speculation: Speculation) -> Vec<Event> {
    let log: Arc<Mutex<Vec<Event>>> = Arc::default();
    let device = Arc::new(GpuDevice::new(Noting { inner, log: log.clone() }));
    let model = Model::load_on(fixture(), device).expect("the fixture loads");
    let engine = Engine::with_draft(model.clone(), &model, EngineConfig { speculation, ..CONFIG });
    let engine = engine.expect("an engine");
    log.lock().expect("no panic").clear();
    let of_listener = log.clone();
    let listener = move |output: tilewright::Result<Output>| {
        of_listener.lock().expect("no panic").push(Told);
        output.is_ok()
    };
    let request = Request { max_tokens: 4, ignore_eos: true, ..Request::new([3, 1, 4]) };
    let ticket = engine.submit_to(request, listener).expect("a ticket");
    engine.shutdown();
    drop(ticket);
    log.lock().expect("no panic").clone()
}

#[test]
fn a_token_is_told_once_the_next_step_is_launched() {
    let step = [Launched, Told, Launched, Waited];
    let expected = [&[Launched, Waited], &step[..], &step, &step, &[Told]].concat();
    assert_eq!(events(Emulated::default(), Speculation::Off), expected);
}

#[test]
fn a_token_is_told_before_the_first_draft_is_waited_for() {
    // The driver's every token is the same, so that drafts stand: a prompt's step, one of two drafts that says three tokens.
    let speculation = Speculation::DraftModel(DraftLength::Fixed(2));
    let drafting = [Launched, Told, Launched, Waited, Launched, Waited, Launched, Waited];
    let expected = [&[Launched, Waited], &drafting[..], &[Told, Told, Told]].concat();
    assert_eq!(events(Idle::default(), speculation), expected);
}

/// Where a listener panics the engine ends, and with it whatever others wait for.
fn a_panic_ends_all(model: Model) {
    let engine = Engine::new(model, CONFIG).expect("an engine");
    let endless = Request { max_tokens: 400, ignore_eos: true, ..Request::new([3, 1, 4]) };
    let beside = engine.submit(endless.clone()).expect("a stream");
    let heard = AtomicUsize::new(0);
    let listener = move |_| match heard.fetch_add(1, Ordering::Relaxed) {
        2 => panic!("a listener's panic, which the test is about"),
        _ => true,
    };
    let ticket = engine.submit_to(endless, listener).expect("a ticket");
    let outputs: Vec<_> = beside.collect();
    let (last, before) = outputs.split_last().expect("an error");
    assert!(matches!(last, Err(Error::Stopped)), "{last:?}");
    assert!(before.iter().all(Result::is_ok) && before.len() < 400);
    drop(ticket);
    engine.shutdown();
}

#[test]
fn a_listener_that_panics_ends_the_engine() {
    a_panic_ends_all(Model::load(fixture(), DeviceChoice::Cpu).expect("the fixture loads"));
    let idle = Arc::new(GpuDevice::new(Idle::default()));
    a_panic_ends_all(Model::load_on(fixture(), idle).expect("the fixture loads"));
}

#[test]
fn texts_come_whole_while_the_next_step_is_under_way() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/target");
    let model = Model::load_on(demo, Arc::new(GpuDevice::new(Idle::default()))).expect("the demo loads");
    // The driver's every token is 100.
    let expected = model.tokenizer().expect("a tokenizer").decode(&[100; 5]);
    let engine = Engine::new(model, CONFIG).expect("an engine");
    let request = Request { max_tokens: 5, ignore_eos: true, ..Request::new([100]) };
    let stream = engine.submit(request).expect("a stream");
    assert_eq!(stream.map(|output| output.expect("a token").text).collect::<String>(), expected);
    let stats = engine.shutdown();
    assert!(stats.hidden_seconds > 0.0 && stats.hidden_seconds <= stats.deliver_seconds, "{stats:?}");
}
