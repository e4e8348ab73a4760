use std::fmt::Write;
use std::process::ExitCode;

use serde::Serialize;
use tilewright::{EmbedOptions, Embedder, Pooling};

use crate::args::EmbedArgs;
use crate::load::{check_dir, read_text, tell_why_no_gpu};
use crate::output::{Failure, print_json, print_line};
use crate::run::parse_ids;

#[derive(Serialize)]
struct Report {
    device: String,
    dims: usize,
    pooling: Pooling,
    normalised: bool,
    embeddings: Vec<Embedding>,
}

#[derive(Serialize)]
struct Embedding {
    index: usize,
    tokens: usize,
    embedding: Vec<f32>,
}

pub fn run(args: &EmbedArgs) -> Result<ExitCode, Failure> {
    check_dir("--model", &args.model)?;
    let texts = texts(args)?;
    let embedder = Embedder::load(&args.model, args.device)?;
    tell_why_no_gpu(embedder.no_gpu());
    let options =
        EmbedOptions { pooling: args.pooling, normalise: !args.no_normalize, truncate: args.truncate };
    let found = if args.ids {
        let ids = texts.iter().map(|text| parse_ids(text)).collect::<Result<Vec<_>, _>>()?;
        let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        embedder.embed_ids(&ids, &options)?
    } else {
        embedder.embed(&texts, &options)?
    };
    if !args.json {
        let lines: Vec<String> = found.vectors.iter().map(|vector| in_words(vector)).collect();
        print_line(&lines.join("\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let embeddings = found.vectors.into_iter().zip(found.tokens).enumerate();
    print_json(&Report {
        device: embedder.device(),
        dims: embedder.dims(),
        pooling: args.pooling.unwrap_or(embedder.pooling()),
        normalised: options.normalise,
        embeddings: embeddings
            .map(|(index, (embedding, tokens))| Embedding { index, tokens, embedding })
            .collect(),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The texts of the arguments, or the lines of the file.
fn texts(args: &EmbedArgs) -> Result<Vec<String>, Failure> {
    let Some(path) = &args.file else { return Ok(args.texts.clone()) };
    let lines: Vec<String> = read_text("--file", path)?.lines().map(str::to_owned).collect();
    if lines.is_empty() {
        let path = path.display();
        return Err(Failure::Message(format!("--file: {path}: expected a text a line, found none")));
    }
    Ok(lines)
}

/// A vector's elements, separated by spaces.
fn in_words(vector: &[f32]) -> String {
    let mut line = String::new();
    for (index, value) in vector.iter().enumerate() {
        // Writing to a string can't fail.
        let _ = write!(line, "{}{value}", if index > 0 { " " } else { "" });
    }
    line
}
