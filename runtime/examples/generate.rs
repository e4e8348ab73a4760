//! The shortest program: load a checkpoint, print what follows a prompt as it comes.
//!
//! ```sh
//! cargo run --release -p tilewright --example generate -- "fn main() {"
//! ```
//!
//! Environment: `MODEL` (a checkpoint's folder; the demo model by default), `DEVICE` (auto by default).

use std::io::Write;
use std::path::PathBuf;

use tilewright::{GenerateParams, Model, Result, SamplingParams};

fn main() -> Result<()> {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo/target");
    let dir = std::env::var_os("MODEL").map_or_else(|| PathBuf::from(demo), PathBuf::from);
    let device = std::env::var("DEVICE").as_deref().unwrap_or("auto").parse()?;
    let prompt = std::env::args().nth(1).unwrap_or_else(|| "fn main() {".to_string());

    let model = Model::load(dir, device)?;
    let params = GenerateParams {
        max_tokens: 48,
        // The default is greedy. Draws follow from the seed: the same one gives the same text, on one device.
        sampling: SamplingParams { temperature: 0.7, top_p: 0.9, seed: 1, ..SamplingParams::default() },
        stop: vec!["\n\n\n".to_string()],
        ..GenerateParams::default()
    };
    let mut generation = model.generate(prompt.as_str(), &params)?;
    print!("{prompt}");
    for token in &mut generation {
        print!("{}", token?.text);
        // A closed standard output is no concern of the model's.
        let _ = std::io::stdout().flush();
    }
    println!();
    eprintln!("{:?}, {:.0} tok/s", generation.finish_reason(), generation.timings().decode_rate());
    Ok(())
}
