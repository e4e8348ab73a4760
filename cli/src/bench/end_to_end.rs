use std::time::Instant;

use tilewright::engine::{Engine, EngineConfig, Request};
use tilewright::plan::{
    DeviceKind, DeviceProfile, Given, KvFormat, PlanRequest, device, device_of_driver, plan,
};
use tilewright::{DeviceChoice, GenerateParams, KvDType, Model};
use tilewright_benches::cpu::read_rate;
use tilewright_benches::report::{EndToEnd, Limit, Report};

use super::BenchArgs;
use crate::load::{model_dir, model_name};
use crate::output::Failure;

/// Sequences served at a time.
const RUNNING: usize = 16;
/// Tokens of answers that warm up, at most.
const WARM_TOKENS: usize = 8;

/// A prompt, one sequence, many: each beside what the measured ceilings allow.
pub fn measure(args: &BenchArgs, report: &Report) -> Result<Vec<EndToEnd>, Failure> {
    let dir = model_dir(args.model.as_ref())?;
    let choice = if report.machine.is_cpu() { DeviceChoice::Cpu } else { args.device };
    let model = Model::load(&dir, choice)?;
    let name = model_name(args.model.as_ref());
    let profile = profile(report);
    let context = model.config().context;
    let (prompt, answer) = if args.quick { (32, 8) } else { (512, 128) };
    let (prompt, answer) = (prompt.min(context / 2).max(1), answer.min(context / 2).max(1));
    let rounds = if args.quick { 3 } else { 5 };
    let ceiling = |phase: &str, context: usize, batch: usize| {
        let profile = profile.as_ref()?;
        let kv = Some(KvFormat::of(args.kv_dtype, profile.kind));
        let request =
            PlanRequest { context: Some(context), batch: Some(batch), kv, ..PlanRequest::default() };
        let at = |profile: &DeviceProfile| {
            let plan = plan(model.config(), profile, &request).ok()?;
            plan.phases.into_iter().find(|of| of.name == phase)
        };
        let of = at(profile)?;
        if profile.kind == DeviceKind::Gpu {
            return Some(of.tokens_per_second);
        }
        // What caches keep of a step's bytes until the next is read faster than memory gives it.
        let bytes: f64 = of.parts.iter().map(|part| part.bytes).sum();
        let bytes_per_second = read_rate(bytes as usize).max(profile.bytes_per_second);
        at(&DeviceProfile { bytes_per_second, ..profile.clone() }).map(|of| of.tokens_per_second)
    };
    // What is slow the first time is done: kernels are loaded, weights are in memory.
    let short = answer.min(WARM_TOKENS);
    one(&model, prompt, short, args.kv_dtype)?;
    let alone = repeated(rounds, || one(&model, prompt, answer, args.kv_dtype))?;
    let (prefill, decode): (Vec<f64>, Vec<f64>) = alone.into_iter().unzip();
    many(&model, short, args.kv_dtype)?;
    let served = repeated(rounds.min(3), || many(&model, answer, args.kv_dtype))?;
    let row = |what, rates: &[f64], ceiling| EndToEnd::new(what, &name, rates, ceiling);
    Ok(vec![
        row(format!("a prompt of {prompt} tokens"), &prefill, ceiling("prefill", prompt, 1)),
        row(format!("{answer} tokens after it"), &decode, ceiling("decode", prompt + answer / 2, 1)),
        row(
            format!("{RUNNING} sequences, {answer} tokens each"),
            &served,
            ceiling("decode", (answer / 2).max(1), RUNNING),
        ),
    ])
}

/// The device with the ceilings that were measured, where they were.
fn profile(report: &Report) -> Option<DeviceProfile> {
    let on_cpu = report.machine.is_cpu();
    let name = if on_cpu { "cpu" } else { device_of_driver(&report.machine.device)? };
    let memory_bytes = if on_cpu { Some(u64::MAX >> 8) } else { None };
    let given = Given {
        memory_bytes,
        bytes_per_second: report.ceiling(Limit::Bandwidth),
        flops_per_second: report.compute_ceiling(),
    };
    // A CPU would be measured again where its ceilings weren't.
    if on_cpu && given.flops_per_second.is_none() {
        return None;
    }
    device(name, given).ok()
}

fn repeated<T>(rounds: usize, run: impl FnMut() -> Result<T, Failure>) -> Result<Vec<T>, Failure> {
    std::iter::repeat_with(run).take(rounds).collect()
}

/// Prompt tokens and generated tokens a second of one sequence.
fn one(model: &Model, prompt: usize, answer: usize, kv_dtype: KvDType) -> Result<(f64, f64), Failure> {
    let ids: Vec<u32> = (0..prompt).map(|index| (index * 37 % model.config().vocab_size) as u32).collect();
    let params =
        GenerateParams { max_tokens: answer, ignore_eos: true, kv_dtype, ..GenerateParams::default() };
    let mut generation = model.generate(&ids[..], &params)?;
    for token in generation.by_ref() {
        token?;
    }
    let timings = generation.timings();
    Ok((timings.prompt_rate(), timings.decode_rate()))
}

/// Tokens a second of many sequences.
fn many(model: &Model, answer: usize, kv_dtype: KvDType) -> Result<f64, Failure> {
    let config =
        EngineConfig { max_running: RUNNING, prefix_cache: false, kv_dtype, ..EngineConfig::default() };
    let engine = Engine::new(model.clone(), config)?;
    let start = Instant::now();
    let request = |index: usize| Request {
        max_tokens: answer,
        ignore_eos: true,
        ..Request::new(vec![(index % model.config().vocab_size) as u32; 4])
    };
    let streams = (0..RUNNING).map(|index| engine.submit(request(index))).collect::<Result<Vec<_>, _>>()?;
    let mut tokens = 0;
    for stream in streams {
        for output in stream {
            output?;
            tokens += 1;
        }
    }
    Ok(f64::from(tokens) / start.elapsed().as_secs_f64())
}
