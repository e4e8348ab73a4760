use std::path::{Path, PathBuf};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, Request};
use crate::quantise::{Method, QuantiseOptions, quantise};
use crate::{DeviceChoice, Model};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo").join(name)
}

/// A CPU whose numbers nothing needs to be measured for.
fn cpu() -> DeviceProfile {
    let given =
        Given { memory_bytes: Some(16 << 30), bytes_per_second: Some(2e10), flops_per_second: Some(1e11) };
    device("cpu", given).expect("all is given")
}

fn gpu(name: &str) -> DeviceProfile {
    device(name, Given::default()).expect("of the table")
}

fn planned(preset_name: &str, device: &DeviceProfile, request: PlanRequest) -> Plan {
    plan(&preset(preset_name).expect("a preset"), device, &request).expect("a plan")
}

#[test]
fn the_cache_of_llama_2_70b_is_671_megabytes() {
    let request = PlanRequest { context: Some(2048), ..PlanRequest::default() };
    let cache = planned("llama-2-70b", &gpu("h200"), request).cache;
    assert_eq!((cache.sequence_bytes, cache.paged_bytes), (640 << 20, 640 << 20));
    assert_eq!(cache.token_bytes, 2 * 80 * 8 * 128 * 2);
    // One token more takes one page more.
    let request = PlanRequest { context: Some(2049), ..PlanRequest::default() };
    let cache = planned("llama-2-70b", &gpu("h200"), request).cache;
    assert_eq!((cache.sequence_pages, cache.slack_bytes()), (129, 15 * cache.token_bytes));
    let eight = PlanRequest { context: Some(2048), kv: Some(KvFormat::Fp8), ..PlanRequest::default() };
    let eight = planned("llama-2-70b", &gpu("h200"), eight).cache;
    assert_eq!(eight.sequence_bytes, 2 * 80 * 8 * 2048 * 132);
    // Beside it one layer in bf16, and nothing else: the engine under emulation is held to the same formula.
    assert_eq!(eight.widened_bytes, 2 * 8 * 2048 * 256);
    assert_eq!((eight.paged_bytes, eight.slack_bytes()), (eight.sequence_bytes + eight.widened_bytes, 0));
}

#[test]
fn the_cache_is_what_the_engine_allocates() {
    for (dir, page_size, context, batch) in [
        (demo("target"), 16, 2048, 1),
        (demo("target"), 16, 33, 3),
        (fixture("llama-gqa-rope3"), 1, 17, 2),
        (fixture("qwen3-qknorm"), 8, 100, 1),
        (fixture("mistral-window16"), 17, 100, 5),
        (fixture("qwen2-bias"), 32, 31, 2),
    ] {
        let model = Model::load(&dir, DeviceChoice::Cpu).expect("the model loads");
        for kv_dtype in KvDType::ALL {
            let request = PlanRequest {
                context: Some(context),
                batch: Some(batch),
                page_size: Some(page_size),
                kv: Some(KvFormat::of(kv_dtype, DeviceKind::Cpu)),
                ..PlanRequest::default()
            };
            let plan = plan(model.config(), &cpu(), &request).expect("a plan");
            let cache_tokens = plan.cache.cache_tokens();
            let config = EngineConfig { cache_tokens, page_size, kv_dtype, ..EngineConfig::default() };
            let engine = Engine::new(model.clone(), config).expect("an engine");
            let (stats, cache) = (engine.shutdown(), plan.cache);
            assert_eq!(stats.cache_bytes as u64, cache.batch_bytes, "{} {kv_dtype:?}", dir.display());
            assert_eq!(stats.pages, cache.sequence_pages * batch, "{}", dir.display());
        }
    }
}

#[test]
fn a_sequence_of_the_planned_context_fits_the_planned_pages_and_no_longer_one() {
    let model = Model::load(fixture("llama-gqa-rope3"), DeviceChoice::Cpu).expect("the model loads");
    let request = PlanRequest { context: Some(33), ..PlanRequest::default() };
    let cache = plan(model.config(), &cpu(), &request).expect("a plan").cache;
    let config =
        EngineConfig { cache_tokens: cache.cache_tokens(), page_size: 16, ..EngineConfig::default() };
    let engine = Engine::new(model, config).expect("an engine");
    let prompt: Vec<u32> = (0..30).collect();
    // The last token is never cached: 30 + 4 - 1 and 30 + 19 - 1 tokens are in three pages, one more is not.
    for max_tokens in [4, 19] {
        let request = Request { max_tokens, ignore_eos: true, ..Request::new(prompt.clone()) };
        assert_eq!(engine.submit(request).expect("it fits").count(), max_tokens);
    }
    let request = Request { max_tokens: 20, ignore_eos: true, ..Request::new(prompt) };
    assert!(engine.submit(request).is_err());
}

#[test]
fn bytes_of_weights_are_those_of_checkpoints() {
    for dir in [
        demo("target"),
        demo("draft"),
        fixture("qwen2-bias"),
        fixture("qwen3-qknorm"),
        fixture("mistral-window16"),
    ] {
        let config = ModelConfig::load(&dir).expect("a configuration");
        let stored: Vec<_> = Checkpoint::open(&dir).expect("a checkpoint").tensors().collect();
        let elems: usize = stored.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
        let bytes: usize = stored.iter().map(|tensor| tensor.bytes).sum();
        assert_eq!(parameters(&config).expect("counted"), elems as u64, "{}", dir.display());
        let format = if bytes == 4 * elems { WeightFormat::F32 } else { WeightFormat::Bf16 };
        let planned = weight_bytes(&config, format).expect("counted").total_bytes();
        assert_eq!(planned, bytes as u64, "{}", dir.display());
    }
}

#[test]
fn bytes_of_quantised_weights_are_those_of_the_quantiser() {
    let dir = demo("target");
    let config = ModelConfig::load(&dir).expect("a configuration");
    for (method, bits, format) in
        [(Method::Int8, 8, WeightFormat::Int8), (Method::Rtn, 4, WeightFormat::Int4)]
    {
        let out = tempfile::tempdir().expect("a folder");
        let options = QuantiseOptions { method, bits, group: Some(128), ..QuantiseOptions::default() };
        let report = quantise(&dir, out.path(), &options, &mut |_, _| {}).expect("quantised");
        // A file has a group's number for each input of a matrix, which no device keeps.
        let inputs = config.layers * (6 * config.hidden_size + config.intermediate_size);
        let numbers = if method == Method::Rtn { 4 * inputs } else { 0 };
        let planned = weight_bytes(&config, format).expect("counted").total_bytes();
        assert_eq!(planned, (report.bytes_after - numbers) as u64, "{format:?}");
    }
}

#[test]
fn what_is_largest_fits_and_one_more_does_not() {
    for (name, device) in
        [("llama-3.1-8b", gpu("h100")), ("llama-3.1-70b", gpu("h200")), ("qwen3-0.6b", cpu())]
    {
        for format in device.formats() {
            let request =
                PlanRequest { context: Some(3001), weights: Some(*format), ..PlanRequest::default() };
            let first = planned(name, &device, request);
            if first.largest_batch == 0 {
                assert!(!first.fits, "{name} {format:?}");
                continue;
            }
            let most = first.largest_batch as usize;
            let fits = |batch| planned(name, &device, PlanRequest { batch: Some(batch), ..request }).fits;
            assert!(fits(most) && !fits(most + 1), "{name} {format:?}: {most}");
            let longest = first.largest_context as usize;
            let fits =
                |context| planned(name, &device, PlanRequest { context: Some(context), ..request }).fits;
            assert!(fits(longest), "{name} {format:?}: {longest}");
            assert!(longest == first.model_context || !fits(longest + 1), "{name} {format:?}: {longest}");
        }
    }
}

#[test]
fn phases_are_bound_as_their_intensity_says() {
    for batch in [1, 64, 4096] {
        let request = PlanRequest { context: Some(1024), batch: Some(batch), ..PlanRequest::default() };
        let plan = planned("llama-3.1-8b", &gpu("h100"), request);
        for phase in &plan.phases {
            for part in &phase.parts {
                let compute = part.intensity > part.ridge;
                assert_eq!(part.bound == Bound::Compute, compute, "{batch} {} {}", phase.name, part.name);
            }
            let seconds: f64 = phase.parts.iter().map(|part| part.seconds).sum();
            assert!((phase.seconds / seconds - 1.0).abs() < 1e-12);
        }
        let [prefill, decode] = &plan.phases[..] else { panic!("two phases") };
        assert_eq!(prefill.bound, Bound::Compute);
        assert_eq!(decode.bound, Bound::Memory, "attention reads more than it computes at any batch");
    }
    // At batch 1 a step reads every weight but the embedding once: 15 GB over 3.35 TB/s.
    let plan =
        planned("llama-3.1-8b", &gpu("h100"), PlanRequest { context: Some(1), ..PlanRequest::default() });
    let read = (plan.parameters - 128_256 * 4096) as f64 * 2.0;
    let tokens_per_second = 3.35e12 / read;
    assert!(
        (plan.phases[1].tokens_per_second / tokens_per_second - 1.0).abs() < 1e-3,
        "{:?}",
        plan.phases[1]
    );
}

#[test]
fn a_window_bounds_what_attention_reads() {
    let at = |context| {
        let request = PlanRequest { context: Some(context), ..PlanRequest::default() };
        let plan = planned("mistral-7b", &gpu("h100"), request);
        let attention = plan.phases[1].part("attention").cloned().expect("a part");
        (attention.bytes, attention.flops)
    };
    assert_eq!(at(4096), at(32_768));
    assert!(at(4095).0 < at(4096).0);
}

#[test]
fn advice_fits_and_has_reasons() {
    for goal in [Goal::Latency, Goal::Throughput, Goal::Memory] {
        for (name, device) in
            [("llama-3.1-8b", gpu("rtx4090")), ("llama-3.1-70b", gpu("h200")), ("qwen3-0.6b", cpu())]
        {
            let request = PlanRequest { context: Some(2048), goal, ..PlanRequest::default() };
            let advice = planned(name, &device, request).advice;
            let weights = advice.weights.expect("something fits");
            let chosen = PlanRequest { weights: Some(weights), batch: Some(advice.batch), ..request };
            let plan = planned(name, &device, chosen);
            assert!(plan.fits, "{name} {goal:?}: {advice:?}");
            assert_eq!(plan.cache.cache_tokens(), advice.cache_tokens);
            assert!((plan.phases[1].tokens_per_second / advice.tokens_per_second - 1.0).abs() < 1e-9);
            assert!(
                !advice.reasons.is_empty() && advice.reasons.iter().all(|reason| !reason.contains("NaN"))
            );
        }
    }
    let advice = planned("llama-3.1-405b", &gpu("h100"), PlanRequest::default()).advice;
    assert_eq!((advice.weights, advice.batch), (None, 0));
    assert!(advice.reasons[0].contains("by memory alone 3 of them would do"), "{:?}", advice.reasons);
}

#[test]
fn what_cannot_be_planned_is_refused_by_name() {
    let refused = |request: PlanRequest| {
        plan(&preset("llama-2-7b").expect("a preset"), &gpu("h100"), &request)
            .expect_err("refused")
            .to_string()
    };
    let none = PlanRequest::default();
    assert_eq!(refused(PlanRequest { context: Some(0), ..none }), "context: expected 1 to 4096, found 0");
    assert_eq!(
        refused(PlanRequest { context: Some(4097), ..none }),
        "context: expected 1 to 4096, found 4097"
    );
    assert_eq!(refused(PlanRequest { batch: Some(0), ..none }), "batch: expected 1 to 1048576, found 0");
    assert_eq!(
        refused(PlanRequest { page_size: Some(1 << 17), ..none }),
        "page_size: expected 1 to 65536, found 131072"
    );
    let f32 = PlanRequest { weights: Some(WeightFormat::F32), ..none };
    assert_eq!(refused(f32), "weights: expected bf16, int8, int4 on this device, found f32");
}
