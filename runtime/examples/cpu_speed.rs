//! One warmed measurement of each kind of the demo model on the CPU, as `name value` lines, to stand beside those of
//! `benches/peers/cpu_transformers.py`: `RAYON_NUM_THREADS=2 cargo run --release -p tilewright --example cpu_speed`.

use std::time::Instant;

use tilewright::{DeviceChoice, GenerateParams, Model};

/// The token ids that the script takes.
fn ids(count: usize) -> Vec<u32> {
    let mut state = 12345u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        1 + (state >> 8) % 4000
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Seconds until the first of `new` tokens and from there to the last.
fn run(model: &Model, prompt: usize, new: usize) -> tilewright::Result<(f64, f64)> {
    let params = GenerateParams { max_tokens: new, ignore_eos: true, ..GenerateParams::default() };
    let prompt = ids(prompt);
    let begin = Instant::now();
    let mut first = None;
    for token in model.generate(&prompt[..], &params)? {
        token?;
        first.get_or_insert_with(|| begin.elapsed().as_secs_f64());
    }
    let (first, all) = (first.unwrap_or_default(), begin.elapsed().as_secs_f64());
    Ok((first, all - first))
}

fn main() -> tilewright::Result<()> {
    let model =
        Model::load(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo/target"), DeviceChoice::Cpu)?;
    run(&model, 5, 32)?;
    println!("decode_tok_s {:.2}", 127.0 / run(&model, 5, 128)?.1);
    run(&model, 1024, 1)?;
    println!("prefill1024_tok_s {:.2}", 1024.0 / run(&model, 1024, 1)?.0);
    Ok(())
}
