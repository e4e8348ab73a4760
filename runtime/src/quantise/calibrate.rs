use std::path::Path;

use super::options::{Linear, QuantiseOptions};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The texts to calibrate on: windows of whole contexts, spread evenly over the text, each with the BOS token if the model has one.
pub(super) fn windows(dir: &Path, config: &ModelConfig, options: &QuantiseOptions) -> Result<Vec<Vec<u32>>> {
    let Some(text) = &options.calibration else {
        return Err(Error::request("calib", "a text file to calibrate on (method gptq)", "none"));
    };
    let tokenizer = Tokenizer::load(dir, config.bos_token_id)?
        .ok_or_else(|| Error::file(dir, "tokenizer", "tokenizer.json", "none"))?;
    cut(&tokenizer.encode_plain(text)?, config, options)
}

fn cut(ids: &[u32], config: &ModelConfig, options: &QuantiseOptions) -> Result<Vec<Vec<u32>>> {
    if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        let expected = format!("token ids below the vocabulary of {}", config.vocab_size);
        return Err(Error::request("calib", expected, id));
    }
    let bos = config.bos_token_id;
    let room = options.context - usize::from(bos.is_some());
    let whole: Vec<&[u32]> = ids.chunks_exact(room).collect();
    if whole.is_empty() {
        return Err(Error::request("calib", format!("a text of at least {room} tokens"), ids.len()));
    }
    let samples = options.samples.min(whole.len());
    let chosen = (0..samples).map(|sample| whole[sample * whole.len() / samples]);
    Ok(chosen.map(|part| bos.into_iter().chain(part.iter().copied()).collect()).collect())
}

/// The weights of a linear layer, finite.
pub(super) fn weights(checkpoint: &Checkpoint, linear: &Linear) -> Result<Vec<f32>> {
    let tensor = format!("{}.weight", linear.name);
    checkpoint.matrix(&tensor, linear.rows, linear.cols)?;
    let weights = checkpoint.floats(&tensor)?;
    match weights.iter().position(|weight| !weight.is_finite()) {
        None => Ok(weights),
        Some(at) => {
            let found = format!("{} at {:?}", weights[at], [at / linear.cols, at % linear.cols]);
            Err(Error::tensor(checkpoint.path_of(&tensor), &tensor, "finite weights", found))
        }
    }
}
