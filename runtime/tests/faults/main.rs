//! What fails, fails alone: an error of its kind for whoever met it, no page lost, the next answer as ever.

mod failing;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use failing::Failing;
use tilewright::engine::{DraftLength, Engine, EngineConfig, Output, Request, Speculation};
use tilewright::{DeviceChoice, Error, KvDType, Model, Penalties, Result, SamplingParams};
use tilewright_host::cpu::CpuDevice;

const CONFIG: EngineConfig = EngineConfig {
    cache_tokens: 192,
    page_size: 8,
    step_tokens: 64,
    chunk_tokens: 16,
    max_running: 4,
    batching: tilewright::engine::Batching::Continuous,
    prefix_cache: true,
    speculation: Speculation::NGram(DraftLength::Fixed(3)),
    kv_dtype: KvDType::Native,
};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/llama-gqa-rope3")
}

/// Two answers that share a prompt, sampled with all that has the host look at logits.
fn shared() -> Request {
    Request {
        answers: 2,
        max_tokens: 4,
        sampling: SamplingParams { temperature: 0.8, ..SamplingParams::default() },
        penalties: Penalties { presence: 0.2, ..Penalties::default() },
        logprobs: Some(1),
        ignore_eos: true,
        ..Request::new((0..21).collect::<Vec<u32>>())
    }
}

/// A greedy answer, chosen by the device.
fn greedy() -> Request {
    Request { max_tokens: 6, ignore_eos: true, ..Request::new([4, 9, 4, 9, 4, 9, 4, 9, 4]) }
}

/// One that says 9 and nothing else, so that lookup finds drafts, some of which stand.
fn recurring() -> Request {
    Request { logit_bias: vec![(9, 1e3)], ..greedy() }
}

fn requests() -> [Request; 3] {
    [shared(), greedy(), recurring()]
}

fn collect(engine: &Engine, request: Request) -> Result<Vec<Result<Output>>> {
    Ok(engine.submit(request)?.collect())
}

fn ids(outputs: &[Result<Output>]) -> Vec<u32> {
    outputs.iter().map(|output| output.as_ref().expect("a token").id).collect()
}

/// That the failure came as what it is.
fn assert_injected(error: &Error) {
    use tilewright_host::Error::{Driver, OutOfMemory};
    let text = error.to_string();
    match error {
        Error::Device(OutOfMemory { .. }) => assert!(text.starts_with("out of memory on failing"), "{text}"),
        Error::Device(Driver { code, .. }) => assert_eq!(code, "INJECTED"),
        other => panic!("of another kind: {other}"),
    }
    assert!(!text.contains('\n'), "{text}");
}

/// Fails each operation of a run in turn, from an engine's birth on; `at_birth` of them are its own.
fn any_operation_may_fail(config: EngineConfig, at_birth: usize) {
    let device = Arc::new(Failing::new(CpuDevice::new()));
    let model = Model::load_on(fixture(), device.clone()).expect("the fixture loads");
    device.fail_at(None);
    let engine = || Engine::with_draft(model.clone(), &model, config);
    let first = engine().expect("an engine");
    let expected = requests().map(|request| collect(&first, request).expect("answers"));
    let expected = expected.map(|outputs| ids(&outputs));
    let operations = device.count();
    // Once more, over pages that are found.
    assert_eq!(ids(&collect(&first, greedy()).expect("answers")), expected[1]);
    let stats = first.shutdown();
    assert!(stats.cached_tokens > 0 && stats.accepted > 0, "{stats:?}");
    assert!(operations > 150, "{operations} operations");
    let mut failed_at_birth = 0;
    for at in 0..operations {
        device.fail_at(Some(at));
        let engine = match engine() {
            Ok(engine) => engine,
            Err(error) => {
                assert_injected(&error);
                failed_at_birth += 1;
                continue;
            }
        };
        for request in requests() {
            for output in collect(&engine, request).expect("a stream") {
                output.as_ref().err().into_iter().for_each(assert_injected);
            }
        }
        assert!(device.has_failed(), "operation {at} never came");
        // All again: what the failure left behind is in nobody's way.
        for (request, expected) in requests().into_iter().zip(&expected) {
            let again = collect(&engine, request).expect("answers");
            assert_eq!(ids(&again), *expected, "after operation {at} failed");
        }
        let stats = engine.shutdown();
        assert_eq!((stats.pages_held, stats.failed_steps), (0, 1), "operation {at}");
    }
    assert_eq!(failed_at_birth, at_birth);
}

/// A cache, eleven tensors and the logits.
const OF_A_RUNNER: usize = 13;

#[test]
fn any_operation_may_fail_and_the_next_answer_is_as_ever() {
    any_operation_may_fail(CONFIG, OF_A_RUNNER);
}

#[test]
fn any_operation_over_eight_bits_may_fail_and_the_next_answer_is_as_ever() {
    any_operation_may_fail(EngineConfig { kv_dtype: KvDType::Fp8, ..CONFIG }, OF_A_RUNNER);
    let speculation = Speculation::DraftModel(DraftLength::Fixed(3));
    let config = EngineConfig { kv_dtype: KvDType::Int8, speculation, ..CONFIG };
    any_operation_may_fail(config, 2 * OF_A_RUNNER);
}

#[test]
fn a_load_that_fails_says_why_and_can_be_tried_again() {
    let device = Arc::new(Failing::new(CpuDevice::new()));
    device.fail_at(None);
    Model::load_on(fixture(), device.clone()).expect("the fixture loads");
    for at in 0..device.count() {
        device.fail_at(Some(at));
        let refused = Model::load_on(fixture(), device.clone()).err().expect("a refusal");
        assert!(matches!(refused, Error::Device(tilewright_host::Error::OutOfMemory { .. })), "{refused}");
        assert!(Model::load_on(fixture(), device.clone()).is_ok());
    }
}

/// A copy of the fixture in which the embedding of token 191 is no number.
fn poisoned() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::copy(fixture().join("config.json"), dir.path().join("config.json")).expect("copied");
    let mut bytes = std::fs::read(fixture().join("model.safetensors")).expect("read");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..header]).expect("JSON");
    let tensor = &json["model.embed_tokens.weight"];
    let number = |value: &serde_json::Value| value.as_u64().expect("a number") as usize;
    let (start, cols) = (number(&tensor["data_offsets"][0]), number(&tensor["shape"][1]));
    let row = header + start + 191 * cols * 2;
    bytes[row..row + cols * 2].fill(0xff);
    std::fs::write(dir.path().join("model.safetensors"), bytes).expect("written");
    dir
}

#[test]
fn logits_that_are_no_numbers_fail_their_request_alone() {
    let dir = poisoned();
    let model = Model::load(dir.path(), DeviceChoice::Cpu).expect("the copy loads");
    // So few pages that those of failed requests are used again at once.
    let engine = Engine::new(model, EngineConfig { cache_tokens: 96, ..CONFIG }).expect("an engine");
    // Nobody else says the token that has no numbers.
    let bias = vec![(191, f32::NEG_INFINITY)];
    let good = Request { logit_bias: bias, ..greedy() };
    let expected = ids(&collect(&engine, good.clone()).expect("answers"));
    let spoilt = |position: usize| {
        let mut prompt: Vec<u32> = (0..27).collect();
        prompt[position] = 191;
        // Penalties leave what is no number as it is.
        let penalties = Penalties { repetition: [1.0, 1.3][position % 2], ..Penalties::default() };
        Request { max_tokens: 4, penalties, ..Request::new(prompt) }
    };
    for position in [0, 7, 8, 20, 26] {
        let beside: Vec<_> = (0..3).map(|_| engine.submit(good.clone()).expect("a stream")).collect();
        let refused: Vec<_> = engine.submit(spoilt(position)).expect("a stream").collect();
        assert_eq!(refused.len(), 1);
        let invalid = matches!(refused[0], Err(Error::Device(tilewright_host::Error::InvalidLogits { .. })));
        assert!(invalid, "{:?}", refused[0]);
        for stream in beside {
            assert_eq!(ids(&stream.collect::<Vec<_>>()), expected);
        }
        assert_eq!(ids(&collect(&engine, good.clone()).expect("answers")), expected);
    }
    assert_eq!(engine.shutdown().pages_held, 0);
}
