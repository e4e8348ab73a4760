//! Vectors of texts, and how alike they are, by a BERT-like checkpoint.
//!
//! ```sh
//! MODEL=path/to/all-MiniLM-L6-v2 cargo run --release -p tilewright --example embed -- "a cat" "a kitten" "a tax form"
//! ```
//!
//! Without `MODEL` it takes the tests' tiny checkpoint of random weights, which has no tokenizer and no opinion.

use tilewright::{DeviceChoice, EmbedOptions, Embedder, Result};

fn main() -> Result<()> {
    let options = EmbedOptions { truncate: true, ..EmbedOptions::default() };
    let found = match std::env::var_os("MODEL") {
        Some(dir) => {
            let texts: Vec<String> = std::env::args().skip(1).collect();
            Embedder::load(dir, DeviceChoice::Auto)?.embed(&texts, &options)?
        }
        None => {
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/bert");
            // Texts of any lengths go through together; none is padded.
            Embedder::load(dir, DeviceChoice::Auto)?
                .embed_ids(&[&[2, 7, 8, 3], &[2, 7, 3], &[2, 90, 3]], &options)?
        }
    };
    // Vectors have length 1, so that a dot product is a cosine.
    for (a, row) in found.vectors.iter().enumerate() {
        let cosines: Vec<String> = found
            .vectors
            .iter()
            .map(|other| format!("{:6.3}", row.iter().zip(other).map(|(x, y)| x * y).sum::<f32>()))
            .collect();
        println!("text {a}, {} tokens: {}", found.tokens[a], cosines.join(" "));
    }
    Ok(())
}
