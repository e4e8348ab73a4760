//! What a request may ask for, and what it's refused.

use super::super::Request;
use super::harness::*;
use crate::{FinishReason, Model, Penalties, SamplingParams};

fn answers(model: &Model, request: &Request) -> Vec<Said> {
    let mut bench = Bench::new(model, None, SMALL);
    bench.submit(model, request);
    bench.run();
    bench.answers().remove(0)
}

fn tokens(said: &[Said]) -> Vec<u32> {
    said.iter().map(|said| said.token).collect()
}

#[test]
fn an_answer_is_what_the_model_alone_generates() {
    let model = fixture("qwen3-qknorm");
    for temperature in [0.0, 0.9] {
        let sampling = SamplingParams { temperature, top_p: 0.95, seed: 3, ..SamplingParams::default() };
        let prompt: Vec<u32> = (0..21).map(|i| i * 31 % 192).collect();
        let params = crate::GenerateParams {
            sampling,
            max_tokens: 20,
            request: 9,
            ignore_eos: true,
            ..Default::default()
        };
        let expected: Vec<u32> = model
            .generate(&prompt[..], &params)
            .expect("a generation")
            .map(|token| token.expect("a token").id)
            .collect();
        let request = Request { sampling, max_tokens: 20, key: 9, ignore_eos: true, ..Request::new(prompt) };
        assert_eq!(tokens(&answers(&model, &request)), expected);
    }
}

#[test]
fn several_answers_are_drawn_apart_and_share_their_prompt() {
    let model = fixture("llama-gqa-rope3");
    let sampling = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    let prompt: Vec<u32> = (0..41).collect();
    let request = Request { sampling, answers: 3, max_tokens: 12, ignore_eos: true, ..Request::new(prompt) };
    let mut bench = Bench::new(&model, None, SMALL);
    bench.submit(&model, &request);
    bench.run();
    assert_eq!(bench.core.stats.cached_tokens, 2 * 40);
    let said = bench.answers().remove(0);
    let answers: Vec<Vec<u32>> = (0..3).map(|answer| tokens(&said[12 * answer..12 * (answer + 1)])).collect();
    assert!(answers[0] != answers[1] && answers[1] != answers[2] && answers[0] != answers[2]);
    // The first is what it would be without the others.
    let one = Request { answers: 1, ..request };
    assert_eq!(tokens(&self::answers(&model, &one)), answers[0]);
}

#[test]
fn penalties_and_bias_change_answers() {
    let model = fixture("llama-gqa-rope3");
    let plain = Request { max_tokens: 24, ignore_eos: true, ..Request::new([3, 1, 4, 1, 5]) };
    let first = tokens(&answers(&model, &plain));
    let forbidden = Request { logit_bias: vec![(first[0], f32::NEG_INFINITY)], ..plain.clone() };
    assert!(!tokens(&answers(&model, &forbidden)).contains(&first[0]));
    let wanted = Request { logit_bias: vec![(77, 1e4)], ..plain.clone() };
    assert_eq!(tokens(&answers(&model, &wanted)), [77; 24]);
    // Each token once, if once is penalised without bound.
    let penalties = Penalties { presence: 1e4, ..Penalties::default() };
    let mut once = tokens(&answers(&model, &Request { penalties, ..plain }));
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), 24);
}

#[test]
fn logprobs_are_of_the_model_itself() {
    let model = fixture("llama-gqa-rope3");
    let request = Request { max_tokens: 6, logprobs: Some(192), ignore_eos: true, ..Request::new([8, 8, 1]) };
    for said in answers(&model, &request) {
        let sum: f64 = said.top.iter().map(|&(_, bits)| f64::from(f32::from_bits(bits)).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        assert_eq!((said.top[0].0, said.top[0].1), (said.token, said.chosen));
        assert!(said.top.is_sorted_by(|a, b| f32::from_bits(a.1) >= f32::from_bits(b.1)));
    }
}

#[test]
fn an_answer_ends_at_the_end_of_the_context() {
    let model = fixture("llama-gqa-rope3");
    let context = model.config().context;
    let prompt: Vec<u32> = (0..context as u32 - 3).map(|i| i % 192).collect();
    let request = Request { max_tokens: 50, ignore_eos: true, ..Request::new(prompt) };
    let said = answers(&model, &request);
    assert_eq!((said.len(), said.last().and_then(|said| said.finish)), (4, Some(FinishReason::Context)));
}

#[test]
fn what_cannot_be_served_is_named() {
    let model = fixture("llama-gqa-rope3");
    let good = Request::new([1, 2]);
    let config = super::super::EngineConfig { cache_tokens: 64, ..SMALL };
    for (name, bad) in [
        ("prompt", Request::new([])),
        ("prompt", Request::new([192])),
        ("prompt", Request::new(vec![1; 513])),
        ("prompt and max_tokens", Request { max_tokens: 64, ..good.clone() }),
        ("max_tokens", Request { max_tokens: 0, ..good.clone() }),
        ("answers", Request { answers: 0, ..good.clone() }),
        ("answers", Request { answers: 257, ..good.clone() }),
        ("logprobs", Request { logprobs: Some(193), ..good.clone() }),
        ("logit_bias", Request { logit_bias: vec![(192, 0.0)], ..good.clone() }),
        ("logit_bias", Request { logit_bias: vec![(1, f32::NAN)], ..good.clone() }),
        ("stop", Request { stop: vec![String::new()], ..good.clone() }),
        (
            "temperature",
            Request { sampling: SamplingParams { temperature: -1.0, ..Default::default() }, ..good.clone() },
        ),
        (
            "repetition_penalty",
            Request { penalties: Penalties { repetition: 0.0, ..Default::default() }, ..good.clone() },
        ),
    ] {
        let bad = Request { max_tokens: bad.max_tokens.min(64), ..bad };
        let error = bad.validate(&model, &config).expect_err(name).to_string();
        assert!(error.starts_with(&format!("{name}: expected ")), "{error}");
        assert!(!error.contains('\n'));
    }
    let fits = Request { max_tokens: 63, ..good.clone() };
    assert!(fits.validate(&model, &config).is_ok());
    // Without a tokenizer there's no text to stop at.
    assert!(Request { stop: vec!["x".into()], max_tokens: 9, ..good }.validate(&model, &config).is_err());
}

#[test]
fn the_cache_takes_the_bytes_that_its_sizes_say() {
    let model = fixture("llama-gqa-rope3");
    let shape = model.config();
    for (cache_tokens, page_size) in [(160, 16), (175, 16), (96, 32)] {
        let config = super::super::EngineConfig { cache_tokens, page_size, ..SMALL };
        let bench = Bench::new(&model, None, config);
        let tokens = cache_tokens / page_size * page_size;
        // Key and value in f32, whole pages.
        let bytes = 2 * shape.layers * tokens * shape.kv_heads * shape.head_dim * 4;
        assert_eq!(bench.core.stats.cache_bytes, bytes);
    }
}
