//! Many requests at once: an engine's thread computes them together, and each answer is what it would be alone.
//!
//! ```sh
//! cargo run --release -p tilewright --example batch
//! ```

use tilewright::engine::{Engine, EngineConfig, Request};
use tilewright::{DeviceChoice, Model, Result, SamplingParams};

fn main() -> Result<()> {
    let model =
        Model::load(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo/target"), DeviceChoice::Auto)?;
    let prompts = ["fn main() {", "impl Iterator for ", "/// Returns the", "#[test]\nfn "];
    let mut requests = Vec::new();
    for prompt in prompts {
        let tokenizer = model.require_tokenizer()?;
        let sampling = SamplingParams { temperature: 0.8, seed: 7, ..SamplingParams::default() };
        requests.push(Request { max_tokens: 24, sampling, ..Request::new(tokenizer.encode(prompt)?) });
    }

    // Memory for 4096 tokens of keys and values, shared by whoever runs; what doesn't fit waits its turn.
    let engine = Engine::new(model, EngineConfig { cache_tokens: 4096, ..EngineConfig::default() })?;
    // From any thread. All are under way before the first is read; dropping a stream cancels its request.
    let streams = requests.into_iter().map(|request| engine.submit(request)).collect::<Result<Vec<_>>>()?;
    for (prompt, stream) in prompts.into_iter().zip(streams) {
        let mut text = String::new();
        for output in stream {
            text += &output?.text;
        }
        println!("--- {prompt}{text}");
    }
    let stats = engine.shutdown();
    println!("{} tokens in {} steps", stats.tokens, stats.steps);
    Ok(())
}
