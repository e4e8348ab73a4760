use std::path::Path;

use serde::Deserialize;

use crate::checkpoint::{Checkpoint, read_file};
use crate::config::ModelConfig;
use crate::{Error, Result};

/// What another implementation answered.
pub(super) struct Expected {
    pub input_ids: Vec<Vec<u32>>,
    pub greedy: Vec<Vec<u32>>,
    /// Of every position of `input_ids`, or empty.
    pub logits: Vec<f32>,
    /// What the report calls them.
    pub logits_name: &'static str,
    pub shape: Vec<usize>,
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    input_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
}

impl Expected {
    pub fn load(path: &Path, config: &ModelConfig) -> Result<Expected> {
        if path.extension().is_some_and(|extension| extension == "json") {
            Expected::load_json(path, config)
        } else {
            Expected::load_safetensors(path, config)
        }
    }

    fn load_safetensors(path: &Path, config: &ModelConfig) -> Result<Expected> {
        let file = Checkpoint::open_file(path)?;
        let input_ids = file.token_rows("input_ids", config.vocab_size)?;
        let shape = vec![input_ids.len(), input_ids[0].len(), config.vocab_size];
        if file.shape("logits")? != shape {
            let found = format!("{:?}", file.shape("logits")?);
            return Err(Error::tensor(path, "logits", format!("shape {shape:?}"), found));
        }
        let greedy = file.token_rows("greedy", config.vocab_size)?;
        if greedy.len() != input_ids.len() {
            let expected = format!("{} rows as of input_ids", input_ids.len());
            return Err(Error::tensor(path, "greedy", expected, greedy.len()));
        }
        let tokens = input_ids[0].len() + greedy[0].len();
        if tokens > config.context {
            let expected = format!("texts within the model's context of {}", config.context);
            return Err(Error::tensor(path, "input_ids", expected, tokens));
        }
        Ok(Expected { logits: file.floats("logits")?, logits_name: "logits", input_ids, shape, greedy })
    }

    fn load_json(path: &Path, config: &ModelConfig) -> Result<Expected> {
        let bytes = read_file(path)?;
        let wrong = |expected: &str, found: String| Err(Error::file(path, "cases", expected, found));
        let Cases { cases } = match serde_json::from_slice(&bytes) {
            Ok(cases) => cases,
            Err(error) => return wrong("JSON with input_ids and greedy_ids in each", error.to_string()),
        };
        if cases.is_empty() {
            return wrong("at least one", "none".to_string());
        }
        for (index, case) in cases.iter().enumerate() {
            let tokens = case.input_ids.len() + case.greedy_ids.len();
            if case.input_ids.is_empty() || case.greedy_ids.is_empty() || tokens > config.context {
                let expected = format!("1 to {} tokens in case {index}", config.context);
                return wrong(&expected, tokens.to_string());
            }
            let mut ids = case.input_ids.iter().chain(&case.greedy_ids);
            if let Some(id) = ids.find(|&&id| id as usize >= config.vocab_size) {
                let expected = format!("token ids below the vocabulary of {}", config.vocab_size);
                return wrong(&expected, id.to_string());
            }
        }
        let tokens = cases.iter().map(|case| case.input_ids.len()).sum();
        let (input_ids, greedy) = cases.into_iter().map(|case| (case.input_ids, case.greedy_ids)).collect();
        Ok(Expected {
            input_ids,
            greedy,
            logits: Vec::new(),
            logits_name: "logits (expected: the CPU's in f32)",
            shape: vec![tokens, config.vocab_size],
        })
    }
}
