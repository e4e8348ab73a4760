//! The engine's thread: many submitters, streams that are dropped, ends.

use std::path::Path;

use super::super::{DraftLength, Engine, EngineConfig, Request, Speculation};
use super::harness::*;
use crate::{DeviceChoice, Error, FinishReason, Model};

#[test]
fn requests_from_many_threads_are_answered_as_if_alone() {
    let model = fixture("llama-gqa-rope3");
    let requests = requests(24, 5);
    let expected = alone(&model, &requests, SMALL);
    let engine = Engine::new(model, SMALL).expect("an engine");
    std::thread::scope(|scope| {
        for (request, expected) in requests.iter().zip(&expected) {
            let engine = &engine;
            scope.spawn(move || {
                let stream = engine.submit(request.clone()).expect("a stream");
                let tokens: Vec<u32> = stream.map(|output| output.expect("a token").id).collect();
                let expected: Vec<u32> = expected.iter().map(|said| said.token).collect();
                assert_eq!(tokens, expected);
            });
        }
    });
    let stats = engine.shutdown();
    assert_eq!(stats.tokens, expected.iter().map(Vec::len).sum::<usize>());
    assert_eq!(stats.pages_held, 0);
}

#[test]
fn a_stream_that_is_dropped_is_cancelled() {
    let engine = Engine::new(fixture("llama-gqa-rope3"), SMALL).expect("an engine");
    let endless = Request { max_tokens: 500, ignore_eos: true, answers: 2, ..Request::new([1, 2, 3]) };
    let mut stream = engine.submit(endless.clone()).expect("a stream");
    assert!(stream.next().is_some_and(|output| output.is_ok()));
    stream.cancel();
    drop(engine.submit(endless).expect("a stream"));
    let short = Request { max_tokens: 3, ignore_eos: true, ..Request::new([4, 5]) };
    assert_eq!(engine.submit(short).expect("a stream").count(), 3);
    let stats = engine.shutdown();
    assert!(stats.tokens < 200, "{stats:?}");
    assert_eq!(stats.pages_held, 0);
}

#[test]
fn shutting_down_waits_and_dropping_does_not() {
    let request = Request { max_tokens: 200, ignore_eos: true, ..Request::new([1, 2, 3]) };
    let engine = Engine::new(fixture("llama-gqa-rope3"), SMALL).expect("an engine");
    let stream = engine.submit(request.clone()).expect("a stream");
    engine.shutdown();
    assert_eq!(stream.filter(|output| output.is_ok()).count(), 200);

    let engine = Engine::new(fixture("llama-gqa-rope3"), SMALL).expect("an engine");
    let mut stream = engine.submit(request).expect("a stream");
    assert!(stream.next().is_some_and(|output| output.is_ok()));
    drop(engine);
    assert!(matches!(stream.by_ref().find(|output| output.is_err()), Some(Err(Error::Stopped))));
    assert!(stream.next().is_none());
}

#[test]
fn engines_that_cannot_be_are_refused() {
    let refusal = |config, draft: Option<&Model>| {
        let model = fixture("llama-gqa-rope3");
        let engine = match draft {
            Some(draft) => Engine::with_draft(model, draft, config),
            None => Engine::new(model, config),
        };
        engine.err().expect("a refusal").to_string()
    };
    let speculation = Speculation::DraftModel(DraftLength::Fixed(2));
    assert_eq!(
        refusal(EngineConfig { speculation, ..SMALL }, None),
        "speculation: expected a draft model, found none"
    );
    assert!(refusal(EngineConfig { page_size: 0, ..SMALL }, None).starts_with("page_size: expected "));
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/draft");
    let other = Model::load(demo, DeviceChoice::Cpu).expect("the demo draft");
    assert_eq!(
        refusal(EngineConfig { speculation, ..SMALL }, Some(&other)),
        "draft model: expected a vocabulary of 192 tokens, found 4096"
    );
    let vast = EngineConfig { cache_tokens: u32::MAX as usize, page_size: 1 << 20, ..SMALL };
    // A cache that no machine holds is refused as what it is, or lies unused.
    let _ = Engine::new(fixture("llama-gqa-rope3"), vast).map_err(|error| {
        assert!(matches!(error, Error::Device(tilewright_host::Error::OutOfMemory { .. })), "{error}");
    });
}

#[test]
fn text_comes_whole_and_stops_where_asked() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    let model = Model::load(demo.join("target"), DeviceChoice::Cpu).expect("the demo target");
    let draft = Model::load(demo.join("draft"), DeviceChoice::Cpu).expect("the demo draft");
    let text = "fn main() {\n    let mut v = Vec::new();\n";
    let prompt = model.tokenizer().expect("a tokenizer").encode(text).expect("tokens");
    let speculation = Speculation::DraftModel(DraftLength::Fixed(4));
    let engine = Engine::with_draft(model, &draft, EngineConfig { speculation, ..EngineConfig::default() })
        .expect("an engine");
    // Greedy text: "}\n\nfn foo(v: &mut Vec<i32>) {…"; the stop string spans several tokens, and ends within drafts.
    let request = Request { stop: vec!["foo(v: &".into()], max_tokens: 64, ..Request::new(prompt) };
    let outputs: Vec<_> =
        engine.submit(request).expect("a stream").map(|output| output.expect("a token")).collect();
    let said: String = outputs.iter().map(|output| &output.text[..]).collect();
    assert_eq!(said, "}\n\nfn ");
    assert_eq!(outputs.last().and_then(|output| output.finish), Some(FinishReason::Stop));
    assert!(engine.shutdown().accepted > 0);
}
