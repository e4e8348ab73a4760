//! Requests and their answers, bit for bit, in one thread.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use super::super::core::Core;
use super::super::outbox::Listener;
use super::super::service::assemble;
use super::super::{EngineConfig, Output, Request};
use crate::{DeviceChoice, FinishReason, KvDType, Model, Penalties, Result, SamplingParams};

/// A checkpoint small enough to run hundreds of requests.
pub fn fixture(name: &str) -> Model {
    fixture_on(name, DeviceChoice::Cpu)
}

pub fn fixture_on(name: &str, device: DeviceChoice) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    Model::load(dir, device).expect("the fixture loads")
}

/// The CPU, and the first GPU where there is one and the crate was built for it.
pub fn devices() -> Vec<DeviceChoice> {
    #[cfg(feature = "cuda")]
    match tilewright_host::gpu::cuda::CudaDriver::open(0) {
        Ok(_) => return vec![DeviceChoice::Cpu, DeviceChoice::Cuda(0)],
        Err(error) => eprintln!("not on a GPU: {error}"),
    }
    vec![DeviceChoice::Cpu]
}

/// Numbers that look random.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// A token of an answer, its logprobs as bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub answer: usize,
    pub token: u32,
    pub chosen: u32,
    pub top: Vec<(u32, u32)>,
    pub finish: Option<FinishReason>,
}

impl Said {
    fn of(output: Output) -> Said {
        let Output { answer, id, logprobs, finish, .. } = output;
        let (chosen, top) = logprobs.map_or((0, Vec::new()), |found| {
            let top = found.top.iter().map(|&(token, logprob)| (token, logprob.to_bits())).collect();
            (found.chosen.to_bits(), top)
        });
        Said { answer, token: id, chosen, top, finish }
    }
}

/// An engine without its thread.
pub struct Bench {
    pub core: Core,
    config: EngineConfig,
    streams: Vec<Receiver<Result<Output>>>,
    next: u64,
}

impl Bench {
    pub fn new(model: &Model, draft: Option<&Model>, config: EngineConfig) -> Bench {
        let core = assemble(model, draft, &config).expect("an engine");
        Bench { core, config, streams: Vec::new(), next: 0 }
    }

    pub fn submit(&mut self, model: &Model, request: &Request) {
        request.validate(model, &self.config).expect("a valid request");
        let (out, stream) = channel();
        self.submit_to(request, Arc::new(move |output| out.send(output).is_ok()));
        self.streams.push(stream);
    }

    /// Submits a request that is valid; returns the number of its first answer's sequence.
    pub fn submit_to(&mut self, request: &Request, listener: Listener) -> u64 {
        let first = self.next;
        self.core.submit(request.clone(), first, &listener);
        self.next += request.answers as u64;
        first
    }

    pub fn run(&mut self) {
        let mut steps = 0;
        while !self.core.is_idle() {
            self.core.step();
            steps += 1;
            assert!(steps < 100_000, "no end");
        }
        assert_eq!(self.core.stats.pages_held, 0, "pages were leaked");
    }

    /// What each request submitted since the last call was answered; of several answers, one after the other.
    pub fn answers(&mut self) -> Vec<Vec<Said>> {
        let answers = self.streams.drain(..).map(|stream| {
            let mut said: Vec<Said> =
                stream.try_iter().map(|output| Said::of(output.expect("a token"))).collect();
            said.sort_by_key(|said| said.answer);
            said
        });
        answers.collect()
    }
}

/// Small steps and pages, so that few tokens make many of both.
pub const SMALL: EngineConfig = EngineConfig {
    cache_tokens: 4096,
    page_size: 16,
    step_tokens: 128,
    chunk_tokens: 64,
    max_running: 12,
    batching: super::super::Batching::Continuous,
    prefix_cache: true,
    speculation: super::super::Speculation::Off,
    kv_dtype: KvDType::Native,
};

/// Requests of every kind, for a vocabulary of 192: some begin alike, some as long as a page and one token more or less.
pub fn requests(count: usize, seed: u64) -> Vec<Request> {
    let mut numbers = Numbers(seed);
    (0..count)
        .map(|index| {
            let len = [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 64, 90][numbers.below(14)];
            // Three families of prompts; each repeats a few tokens, so that lookups find something.
            let family = numbers.below(3);
            let own = numbers.below(len) + len / 2;
            let token = |at: usize| match at < own {
                true => (family * 61 + at % 11 * 7) as u32 % 192,
                false => (index * 13 + at * 5) as u32 % 192,
            };
            let prompt: Vec<u32> = (0..len).map(token).collect();
            let temperature = [0.0, 0.0, 0.8, 1.2][index % 4];
            let sampling = SamplingParams {
                temperature,
                top_p: [1.0, 0.9][numbers.below(2)],
                top_k: [0, 40][numbers.below(2)],
                min_p: [0.0, 0.02][numbers.below(2)],
                seed: numbers.below(4) as u64,
            };
            let penalties = match numbers.below(3) {
                0 => Penalties { repetition: 1.2, presence: 0.3, frequency: 0.1 },
                _ => Penalties::default(),
            };
            Request {
                max_tokens: 1 + numbers.below(28),
                sampling,
                penalties,
                logit_bias: if index % 7 == 0 { vec![(5, 1.0), (9, f32::NEG_INFINITY)] } else { Vec::new() },
                ignore_eos: index % 5 != 0,
                logprobs: Some(index % 3),
                priority: numbers.below(3) as i32 - 1,
                key: index as u64,
                ..Request::new(prompt)
            }
        })
        .collect()
}

/// Each request's answer when nobody else is served.
pub fn alone(model: &Model, requests: &[Request], config: EngineConfig) -> Vec<Vec<Said>> {
    let answer = |request: &Request| {
        let mut bench = Bench::new(model, None, config);
        bench.submit(model, request);
        bench.run();
        bench.answers().remove(0)
    };
    requests.iter().map(answer).collect()
}
