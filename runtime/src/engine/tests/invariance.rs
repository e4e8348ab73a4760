//! An answer depends on its request alone: the same tokens and the same logprobs, bit for bit, in every cell of the table.

use std::collections::BTreeMap;

use super::super::{Batching, DraftLength, EngineConfig, Request, Speculation};
use super::harness::*;
use crate::{DeviceChoice, KvDType, Model};

/// Submits the requests in another order, a few at a time between steps (all at once where `at_once`), and holds the answers to `expected`. Speculation leaves only
/// greedy answers as they were, and `greedy_only` looks at no others.
fn holds(
    what: &str,
    model: &Model,
    bench: &mut Bench,
    expected: &[Vec<Said>],
    seed: u64,
    [greedy_only, at_once]: [bool; 2],
) {
    let requests = requests(expected.len(), 1);
    let mut order: Vec<usize> = (0..requests.len()).collect();
    let mut numbers = Numbers(seed);
    for at in (1..order.len()).rev() {
        order.swap(at, numbers.below(at + 1));
    }
    for &index in &order {
        bench.submit(model, &requests[index]);
        for _ in 0..if at_once { 0 } else { numbers.below(4) } {
            bench.core.step();
        }
    }
    bench.run();
    for (index, found) in order.into_iter().zip(bench.answers()) {
        if !greedy_only || requests[index].sampling.is_greedy() {
            assert_eq!(found, expected[index], "{what}: request {index}");
        }
    }
}

/// What each request is answered alone. On a GPU the page size chooses the kernel that attends to a prompt, so that pages of one size are alike;
/// on the CPU all are.
struct Alone<'a> {
    model: &'a Model,
    device: DeviceChoice,
    requests: Vec<Request>,
    kv_dtype: KvDType,
    by_page_size: BTreeMap<usize, Vec<Vec<Said>>>,
}

impl<'a> Alone<'a> {
    fn new(model: &'a Model, device: DeviceChoice, count: usize, kv_dtype: KvDType) -> Alone<'a> {
        Alone { model, device, requests: requests(count, 1), kv_dtype, by_page_size: BTreeMap::new() }
    }

    fn said(&mut self, page_size: usize) -> &[Vec<Said>] {
        let page_size = if self.device == DeviceChoice::Cpu { SMALL.page_size } else { page_size };
        let config = EngineConfig { page_size, kv_dtype: self.kv_dtype, ..SMALL };
        self.by_page_size.entry(page_size).or_insert_with(|| alone(self.model, &self.requests, config))
    }
}

fn cells(name: &str, count: usize, device: DeviceChoice, kv_dtype: KvDType) {
    let model = fixture_on(name, device);
    let small = EngineConfig { kv_dtype, ..SMALL };
    let mut expected = Alone::new(&model, device, count, kv_dtype);
    let ends = |said: &Vec<Said>| said.last().is_some_and(|said| said.finish.is_some());
    assert!(expected.said(SMALL.page_size).iter().all(ends));
    let mut plain = |what: &str, config: EngineConfig, seed: u64| {
        let mut bench = Bench::new(&model, None, config);
        // In a pool that is too small for all, all come at once.
        let at_once = config.cache_tokens < 1000;
        holds(what, &model, &mut bench, expected.said(config.page_size), seed, [false, at_once]);
        bench
    };
    for seed in 0..3 {
        plain("random batches", small, seed);
    }
    for chunk_tokens in [16, 64, 512] {
        plain("chunks", EngineConfig { chunk_tokens, step_tokens: 512, ..small }, 3);
    }
    plain("chunks of a token", EngineConfig { chunk_tokens: 1, ..small }, 4);
    for page_size in [8, 16, 32] {
        plain("pages", EngineConfig { page_size, ..small }, 5);
    }
    plain("no prefix cache", EngineConfig { prefix_cache: false, ..small }, 6);
    plain("static batches", EngineConfig { batching: Batching::Static, ..small }, 7);
    let tight = plain("preemption", EngineConfig { cache_tokens: 128, page_size: 4, ..small }, 10);
    assert!(tight.core.stats.preemptions > 3, "{:?}", tight.core.stats);
    let mut warm = plain("a cold prefix cache", small, 8);
    let before = warm.core.stats.cached_tokens;
    holds("a warm prefix cache", &model, &mut warm, expected.said(SMALL.page_size), 9, [false, false]);
    assert!(warm.core.stats.cached_tokens > before + 10 * count, "{:?}", warm.core.stats);
}

#[test]
fn answers_do_not_depend_on_scheduling() {
    for device in devices() {
        cells("llama-gqa-rope3", 50, device, KvDType::Native);
    }
}

#[test]
fn answers_do_not_depend_on_scheduling_under_a_window() {
    for device in devices() {
        cells("mistral-window16", 50, device, KvDType::Native);
    }
}

#[test]
fn answers_do_not_depend_on_scheduling_with_learned_positions() {
    for device in devices() {
        cells("gpt2", 50, device, KvDType::Native);
    }
}

#[test]
fn answers_do_not_depend_on_scheduling_over_eight_bits() {
    for device in devices() {
        for (name, kv_dtype) in [("llama-gqa-rope3", KvDType::Int8), ("mistral-window16", KvDType::Fp8)] {
            cells(name, 30, device, kv_dtype);
        }
    }
}

#[test]
fn greedy_answers_do_not_depend_on_drafts() {
    for device in devices() {
        drafts_hold(device);
    }
}

fn drafts_hold(device: DeviceChoice) {
    let model = fixture_on("llama-gqa-rope3", device);
    let mut expected = Alone::new(&model, device, 50, KvDType::Native);
    // Itself as its draft, all of whose drafts stand but those that only penalties part; and one that knows nothing.
    let drafts = ["llama-gqa-rope3", "qwen2-bias"].map(|name| fixture_on(name, device));
    for length in
        [DraftLength::Fixed(1), DraftLength::Fixed(4), DraftLength::Fixed(9), DraftLength::Adaptive(4)]
    {
        for (index, draft) in drafts.iter().enumerate() {
            let speculation = Speculation::DraftModel(length);
            // Few pages, so that drafts are preempted too, with one length.
            let sizes: &[usize] = if length == DraftLength::Fixed(4) { &[4096, 128] } else { &[4096] };
            for &cache_tokens in sizes {
                let config = EngineConfig { speculation, cache_tokens, page_size: 4, ..SMALL };
                let mut bench = Bench::new(&model, Some(draft), config);
                let what = format!("{speculation:?} of draft {index} in {cache_tokens}");
                holds(&what, &model, &mut bench, expected.said(4), 11, [true, cache_tokens < 1000]);
                let stats = bench.core.stats;
                if let DraftLength::Fixed(_) = length {
                    assert!(stats.drafts > 100, "{what}: {stats:?}");
                    let share = stats.accepted as f64 / stats.drafts as f64;
                    assert!(if index == 0 { share > 0.7 } else { share < 0.3 }, "{what}: {share} accepted");
                }
                assert!(cache_tokens > 1000 || stats.preemptions > 0, "{what}: {stats:?}");
            }
        }
        let config = EngineConfig { speculation: Speculation::NGram(length), ..SMALL };
        let mut bench = Bench::new(&model, None, config);
        holds("n-grams", &model, &mut bench, expected.said(SMALL.page_size), 12, [true, false]);
        let stats = bench.core.stats;
        assert!(matches!(length, DraftLength::Adaptive(_)) || stats.drafts > 10, "{stats:?}");
    }
}
