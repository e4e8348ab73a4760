//! What a step costs the host, as far as it can be counted. How long it takes is a benchmark: `engine` of `tilewright-benches`.

use std::{path::Path, sync::Arc};

use tilewright::{
    Model, Penalties, SamplingParams,
    engine::{Engine, EngineConfig, EngineStats, Request},
};
use tilewright_host::gpu::GpuDevice;
use tilewright_tests::idle::Idle;

/// What an engine did for so many requests at once.
fn serve(model: &Model, sequences: usize, request: &Request) -> EngineStats {
    let config = EngineConfig {
        cache_tokens: sequences * 256,
        max_running: sequences,
        prefix_cache: false,
        ..EngineConfig::default()
    };
    let engine = Engine::new(model.clone(), config).expect("an engine");
    let streams: Vec<_> = (0..sequences).map(|_| engine.submit(request.clone()).expect("a stream")).collect();
    for stream in streams {
        assert_eq!(stream.filter(Result::is_ok).count(), request.max_tokens);
    }
    engine.shutdown()
}

/// Metadata go over in one copy and tokens come back in one, however many sequences there are.
#[test]
fn a_step_is_one_copy_to_the_device_and_one_back() {
    let device = Arc::new(GpuDevice::new(Idle::default()));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/target");
    let model = Model::load_on(folder, device.clone()).expect("the demo loads");
    let prompt: Vec<u32> = (0..128).collect();
    let greedy = Request { max_tokens: 64, ignore_eos: true, ..Request::new(prompt) };
    let sampling = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    let penalties = Penalties { repetition: 1.2, ..Penalties::default() };
    // The parameters of draws are another copy, and so is what penalties change. Logits stay where they are.
    let requests = [
        (greedy.clone(), 1),
        (Request { penalties, ..greedy.clone() }, 2),
        (Request { sampling, ..greedy.clone() }, 2),
        (Request { sampling, penalties, ..greedy }, 3),
    ];
    for (request, uploads) in requests {
        for sequences in [1, 32, 128] {
            device.driver().take_copies();
            let stats = serve(&model, sequences, &request);
            let copies = device.driver().take_copies();
            assert_eq!(copies, (uploads * stats.steps, stats.steps), "{sequences} sequences");
        }
    }
}
