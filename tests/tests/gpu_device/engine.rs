//! The engine on the emulated GPU device: the very kernels, alone and in batches, and a driver that fails.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use tilewright::{
    Error, KvDType, Model, Penalties, SamplingParams,
    engine::{Batching, DraftLength, Engine, EngineConfig, EngineStats, Request, Speculation},
    plan::{DeviceKind, Given, KvFormat, PlanRequest, device, plan},
};
use tilewright_host::{
    Result,
    gpu::{Driver, GpuDevice, GpuInfo, Launch},
};
use tilewright_kernels::abi::{KernelSpec, TensorMap, TensorMapSpec};
use tilewright_reference::{LogitPenalty, adjusted_logit, argmax, softmax};
use tilewright_tests::emulated::Emulated;

use super::setup::gpu;

pub const CONFIG: EngineConfig = EngineConfig {
    cache_tokens: 512,
    page_size: 16,
    step_tokens: 64,
    chunk_tokens: 64,
    max_running: 4,
    batching: Batching::Continuous,
    prefix_cache: true,
    speculation: Speculation::Off,
    kv_dtype: KvDType::Native,
};

pub fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama-gqa-rope3")
}

/// Prompts of one token, of a page and one more, two that begin alike; greedy but for two.
pub fn requests() -> Vec<Request> {
    let prompts = [(0..17).collect::<Vec<u32>>(), vec![5], (0..33).collect(), vec![7, 8, 7, 8, 7, 8, 7]];
    let request = |(index, prompt): (usize, Vec<u32>)| Request {
        max_tokens: 6 + index,
        ignore_eos: true,
        logprobs: Some(1),
        sampling: SamplingParams { temperature: [0.0, 0.9][index % 2], seed: 3, ..SamplingParams::default() },
        penalties: Penalties { presence: [0.0, 0.0, 0.5, 0.0][index], ..Penalties::default() },
        ..Request::new(prompt)
    };
    prompts.into_iter().enumerate().map(request).collect()
}

/// Tokens and logprobs' bits.
pub type Said = Vec<(u32, u32)>;

/// Bytes of a page of the cache as the planner has them.
fn planned_page_bytes(model: &Model, config: EngineConfig) -> u64 {
    let device = device("h200", Given::default()).expect("of the table");
    let kv = Some(KvFormat::of(config.kv_dtype, DeviceKind::Gpu));
    let request = PlanRequest { kv, page_size: Some(config.page_size), ..PlanRequest::default() };
    plan(model.config(), &device, &request).expect("a plan").cache.page_bytes
}

/// The answers to requests that come at once.
pub fn answers(model: &Model, config: EngineConfig, requests: &[Request]) -> (Vec<Said>, EngineStats) {
    let engine = Engine::with_draft(model.clone(), model, config).expect("an engine");
    let streams: Vec<_> =
        requests.iter().map(|request| engine.submit(request.clone()).expect("a stream")).collect();
    // Key and value of two layers, two heads of 64 elements, whole pages: bf16, or bytes with a scale and one layer in bf16.
    let a_vector = if config.kv_dtype == KvDType::Native { 2 * 64 * 2 } else { 2 * (64 + 4) + 64 * 2 };
    let bytes = 2 * config.pages() * config.page_size * 2 * a_vector;
    assert_eq!(engine.stats().cache_bytes, bytes);
    assert_eq!(planned_page_bytes(model, config) * config.pages() as u64, bytes as u64);
    let said = |stream| {
        let outputs = Iterator::map(stream, |output: tilewright::Result<tilewright::engine::Output>| {
            let output = output.expect("a token");
            (output.id, output.logprobs.map_or(0, |found| found.chosen.to_bits()))
        });
        outputs.collect()
    };
    let answers = streams.into_iter().map(said).collect();
    (answers, engine.shutdown())
}

/// Greedy answers with all penalties, biases and logprobs, of prompts that begin alike.
fn penalised() -> Vec<Request> {
    let prompts = [vec![5, 9, 5], (0..17).collect(), (0..20).rev().collect::<Vec<u32>>(), vec![5, 9, 5]];
    let penalties = [
        Penalties { repetition: 1.5, ..Penalties::default() },
        Penalties { presence: 0.75, frequency: 0.5, ..Penalties::default() },
        Penalties::default(),
        Penalties { repetition: 0.3, presence: -3.0, frequency: 1.5 },
    ];
    let request = |(index, prompt): (usize, Vec<u32>)| Request {
        max_tokens: 9,
        ignore_eos: true,
        logprobs: Some(0),
        penalties: penalties[index],
        logit_bias: if index < 2 { vec![(3, 4.0), (44, f32::NEG_INFINITY), (3, 0.5)] } else { Vec::new() },
        ..Request::new(prompt)
    };
    prompts.into_iter().enumerate().map(request).collect()
}

/// A greedy answer as its definition has it: logits read after every token, changed and looked through on the host.
fn by_hand(model: &Model, request: &Request) -> Vec<(u32, f32)> {
    let mut sequence = model.sequence(64).expect("a sequence");
    let mut logits = Vec::new();
    sequence.feed_all(&request.prompt, &mut |_, row| logits = row.to_vec()).expect("logits");
    let mut said: Vec<u32> = Vec::new();
    let mut answer = Vec::new();
    while said.len() < request.max_tokens {
        let changed = (0u32..).zip(&logits).map(|(token, &logit)| {
            let count = said.iter().filter(|&&other| other == token).count();
            let is_known = count > 0 || request.prompt.contains(&token);
            let biases: Vec<f32> =
                request.logit_bias.iter().filter(|(of, _)| *of == token).map(|(_, bias)| *bias).collect();
            let Penalties { repetition, presence, frequency } = request.penalties;
            let penalty = LogitPenalty {
                repetition: is_known.then_some(repetition),
                less: (count > 0).then_some(presence + frequency * count as f32),
                bias: (!biases.is_empty()).then(|| biases.iter().sum()),
            };
            adjusted_logit(logit, &penalty)
        });
        let token = argmax(&changed.collect::<Vec<f32>>());
        let weights: Vec<f64> = softmax(&logits);
        answer.push((token, weights[token as usize].ln() as f32));
        said.push(token);
        sequence.feed_all(&[token], &mut |_, row| logits = row.to_vec()).expect("logits");
    }
    answer
}

#[test]
fn penalties_on_the_device_are_those_of_the_host() {
    let model = Model::load_on(fixture(), Arc::new(gpu())).expect("the fixture loads");
    let requests = penalised();
    let expected: Vec<_> = requests.iter().map(|request| by_hand(&model, request)).collect();
    // Each has a say in its answer.
    for (request, expected) in requests.iter().zip(&expected) {
        let without = Request { penalties: Penalties::default(), logit_bias: Vec::new(), ..request.clone() };
        let changes_something = by_hand(&model, &without) != *expected;
        assert_eq!(changes_something, without.penalties != request.penalties, "{request:?}");
    }
    let lookup = Speculation::NGram(DraftLength::Fixed(3));
    let itself = Speculation::DraftModel(DraftLength::Fixed(2));
    for speculation in [Speculation::Off, lookup, itself] {
        let (said, stats) = answers(&model, EngineConfig { speculation, ..CONFIG }, &requests);
        assert_eq!(stats.drafts > 0, speculation != Speculation::Off, "{stats:?}");
        for (said, expected) in said.iter().zip(&expected) {
            let ids = |answer: &[(u32, u32)]| answer.iter().map(|(id, _)| *id).collect::<Vec<_>>();
            assert_eq!(ids(said), expected.iter().map(|(id, _)| *id).collect::<Vec<_>>(), "{speculation:?}");
            for (&(_, found), &(token, expected)) in said.iter().zip(expected) {
                let found = f32::from_bits(found);
                assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{token}: {found}, {expected}");
            }
        }
        let alone: Vec<Said> = requests
            .iter()
            .map(|request| {
                let config = EngineConfig { speculation, ..CONFIG };
                answers(&model, config, std::slice::from_ref(request)).0.remove(0)
            })
            .collect();
        assert_eq!(said, alone, "{speculation:?}");
    }
}

#[test]
fn answers_do_not_depend_on_who_else_is_served() {
    let model = Model::load_on(fixture(), Arc::new(gpu())).expect("the fixture loads");
    let requests = requests();
    let alone: Vec<Said> = requests
        .iter()
        .map(|request| answers(&model, CONFIG, std::slice::from_ref(request)).0.remove(0))
        .collect();
    assert_eq!(answers(&model, CONFIG, &requests).0, alone, "together");
    let chunks = EngineConfig { chunk_tokens: 16, page_size: 8, ..CONFIG };
    assert_eq!(answers(&model, chunks, &requests).0, alone, "chunks of 16, pages of 8");
    let odd = EngineConfig { chunk_tokens: 3, page_size: 32, prefix_cache: false, ..CONFIG };
    assert_eq!(answers(&model, odd, &requests).0, alone, "chunks of 3, pages of 32");
    // All but the longest, in fewer pages than they need together.
    let few = [0, 1, 3];
    let tight = EngineConfig { cache_tokens: 24, page_size: 2, ..CONFIG };
    let (said, stats) = answers(&model, tight, &few.map(|index| requests[index].clone()));
    assert_eq!(said, few.map(|index| alone[index].clone()), "few pages");
    assert!(stats.preemptions > 0, "{stats:?}");
    // With itself as its draft model, so that drafts stand.
    let speculation = Speculation::DraftModel(DraftLength::Fixed(3));
    let (said, stats) = answers(&model, EngineConfig { speculation, ..CONFIG }, &requests);
    for (index, request) in requests.iter().enumerate().filter(|(_, request)| request.sampling.is_greedy()) {
        assert_eq!(said[index], alone[index], "drafts for {request:?}");
    }
    assert!(stats.accepted > 5, "{stats:?}");
}

#[test]
fn answers_over_eight_bits_do_not_depend_on_who_else_is_served() {
    let model = Model::load_on(fixture(), Arc::new(gpu())).expect("the fixture loads");
    let requests = requests();
    let exact = answers(&model, CONFIG, &requests).0;
    for (kv_dtype, others) in [(KvDType::Int8, true), (KvDType::Fp8, false)] {
        let config = EngineConfig { kv_dtype, ..CONFIG };
        let alone: Vec<Said> = requests
            .iter()
            .map(|request| answers(&model, config, std::slice::from_ref(request)).0.remove(0))
            .collect();
        assert_eq!(answers(&model, config, &requests).0, alone, "{kv_dtype:?} together");
        assert_ne!(exact, alone, "{kv_dtype:?} is stored as something else");
        if !others {
            continue;
        }
        // Keys are quantised one by one, so that a prompt may be cut anywhere.
        let odd = EngineConfig { chunk_tokens: 3, page_size: 32, prefix_cache: false, ..config };
        assert_eq!(answers(&model, odd, &requests).0, alone, "{kv_dtype:?} in chunks of 3, pages of 32");
        let few = [0, 1, 3];
        let tight = EngineConfig { cache_tokens: 24, page_size: 2, ..config };
        let (said, stats) = answers(&model, tight, &few.map(|index| requests[index].clone()));
        assert_eq!(said, few.map(|index| alone[index].clone()), "{kv_dtype:?} in few pages");
        assert!(stats.preemptions > 0, "{stats:?}");
        // Two answers that share a prompt, whose last page is copied for one of them, scales included: greedy, they are the same.
        let forked = Request { answers: 2, ..requests[0].clone() };
        let said = answers(&model, config, &[forked]).0.remove(0);
        let mut twice: Vec<_> = alone[0].iter().flat_map(|&said| [said, said]).collect();
        let mut found = said;
        twice.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, twice, "{kv_dtype:?} forked");
    }
}

/// A driver whose call number `left` fails.
struct Failing {
    inner: Emulated,
    left: AtomicI64,
}

/// More calls than a test makes.
const NEVER: i64 = i64::MAX / 2;

impl Failing {
    fn call(&self, call: &'static str) -> Result<()> {
        match self.left.fetch_sub(1, Ordering::SeqCst) {
            0 => Err(tilewright_host::Error::Driver { call, code: "INJECTED".into(), observed: None }),
            _ => Ok(()),
        }
    }
}

impl Driver for Failing {
    type Buffer = <Emulated as Driver>::Buffer;
    type Graph = <Emulated as Driver>::Graph;

    fn info(&self) -> &GpuInfo {
        self.inner.info()
    }

    fn alloc(&self, bytes: usize, purpose: &'static str) -> Result<Self::Buffer> {
        let refused =
            tilewright_host::Error::OutOfMemory { device: "failing".into(), requested_bytes: bytes, purpose };
        self.call("alloc").map_err(|_| refused)?;
        self.inner.alloc(bytes, purpose)
    }

    fn address(&self, buffer: &Self::Buffer) -> u64 {
        self.inner.address(buffer)
    }

    fn upload(&self, dst: &Self::Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        self.call("upload")?;
        self.inner.upload(dst, offset, bytes)
    }

    fn download(&self, src: &Self::Buffer, offset: usize, out: &mut [u8]) -> Result<()> {
        self.call("download")?;
        self.inner.download(src, offset, out)
    }

    fn zero(&self, dst: &Self::Buffer) -> Result<()> {
        self.call("zero")?;
        self.inner.zero(dst)
    }

    fn tensor_map(&self, spec: &TensorMapSpec<'_>) -> Result<TensorMap> {
        self.call("tensor_map")?;
        self.inner.tensor_map(spec)
    }

    unsafe fn launch(&self, spec: &'static KernelSpec, grid: [u32; 3], params: &[u8]) -> Result<()> {
        self.call("launch")?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.launch(spec, grid, params) }
    }

    unsafe fn graph(&self, launches: &[Launch]) -> Result<Option<Self::Graph>> {
        self.call("graph")?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.graph(launches) }
    }

    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()> {
        self.call("replay")?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.replay(graph) }
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }
}

/// What a request was answered, `None` where the device failed it.
fn outcome(engine: &Engine, request: &Request) -> Vec<Option<u32>> {
    let stream = engine.submit(request.clone()).expect("a stream");
    let token = |output| match output {
        Ok(tilewright::engine::Output { id, .. }) => Some(id),
        Err(Error::Device(_)) => None,
        Err(other) => panic!("of another kind: {other}"),
    };
    stream.map(token).collect()
}

/// An engine on a device of its own, whose scratch nobody has asked for yet, and what counts the device's calls.
fn failing_engine(config: EngineConfig) -> (Engine, impl Fn(i64) -> i64) {
    let driver = Failing { inner: Emulated::default(), left: AtomicI64::new(NEVER) };
    let device = Arc::new(GpuDevice::new(driver));
    let model = Model::load_on(fixture(), device.clone()).expect("the fixture loads");
    let engine = Engine::with_draft(model.clone(), &model, config).expect("an engine");
    (engine, move |left| device.driver().left.swap(left, Ordering::SeqCst))
}

/// Fails every `stride`th call of an engine's first run, each on a device of its own; what comes after it is as ever.
fn each_call_may_fail(config: EngineConfig, request: &Request, stride: usize) {
    let (engine, fail_after) = failing_engine(config);
    fail_after(NEVER);
    let expected = outcome(&engine, request);
    let calls = NEVER - fail_after(NEVER);
    // Its pages serve it again, and so do the records of its steps.
    assert_eq!(outcome(&engine, request), expected);
    let stats = engine.shutdown();
    assert!(stats.cached_tokens > 0, "{stats:?}");
    assert_eq!(stats.drafts > 0, config.speculation != Speculation::Off, "{stats:?}");
    for at in (0..calls).step_by(stride) {
        let (engine, fail_after) = failing_engine(config);
        fail_after(at);
        assert!(outcome(&engine, request).contains(&None), "call {at} of {calls} never came");
        fail_after(NEVER);
        assert_eq!(outcome(&engine, request), expected, "after call {at} failed");
        let stats = engine.shutdown();
        assert_eq!((stats.pages_held, stats.failed_steps), (0, 1), "call {at}");
    }
}

/// Two answers that share a page, and a last one that is copied for one of them.
fn shared(tokens: usize) -> Request {
    let prompt: Vec<u32> = (0..tokens as u32).map(|at| 4 + at % 2).collect();
    Request { answers: 2, max_tokens: 3, ignore_eos: true, ..Request::new(prompt) }
}

// Every call of a run would take minutes under emulation; strides that share no factor with a layer's calls meet all kinds.

#[test]
fn a_failed_call_fails_its_step_and_nothing_else() {
    each_call_may_fail(EngineConfig { page_size: 8, ..CONFIG }, &shared(11), 11);
}

#[test]
fn a_failed_call_over_int8_with_a_draft_model_fails_its_step_and_nothing_else() {
    let speculation = Speculation::DraftModel(DraftLength::Fixed(2));
    let config = EngineConfig { page_size: 8, kv_dtype: KvDType::Int8, speculation, ..CONFIG };
    each_call_may_fail(config, &shared(11), 17);
}

#[test]
fn a_failed_call_over_fp8_with_drafts_by_lookup_fails_its_step_and_nothing_else() {
    let speculation = Speculation::NGram(DraftLength::Fixed(2));
    let config = EngineConfig { page_size: 8, kv_dtype: KvDType::Fp8, speculation, ..CONFIG };
    // It says 5 and nothing else.
    each_call_may_fail(config, &Request { logit_bias: vec![(5, 1e3)], ..shared(11) }, 11);
}
