use std::path::Path;
use std::str::FromStr;

use serde::Serialize;
use serde_json::Value;

use super::Want;
use crate::checkpoint::{is_there, read_file};
use crate::{Error, Result};

/// How the outputs of a text's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first token's.
    Cls,
    /// The first token's through the pooler: a linear layer and a hyperbolic tangent.
    Pooler,
}

impl FromStr for Pooling {
    type Err = Error;

    fn from_str(text: &str) -> Result<Pooling> {
        match text {
            "mean" => Ok(Pooling::Mean),
            "cls" => Ok(Pooling::Cls),
            "pooler" => Ok(Pooling::Pooler),
            _ => Err(Error::request("pooling", "mean, cls or pooler", format!("{text:?}"))),
        }
    }
}

impl Pooling {
    /// What `1_Pooling/config.json`, the file of sentence-transformers, asks for; the mean where there is no such file.
    pub(super) fn of_checkpoint(dir: &Path) -> Result<Pooling> {
        let path = dir.join("1_Pooling").join("config.json");
        if !is_there(&path) {
            return Ok(Pooling::Mean);
        }
        let bytes = read_file(&path)?;
        let config: Value =
            serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, "contents", "JSON", error))?;
        let says = |field: &str| config.get(field) == Some(&Value::Bool(true));
        match (says("pooling_mode_mean_tokens"), says("pooling_mode_cls_token")) {
            (true, false) => Ok(Pooling::Mean),
            (false, true) => Ok(Pooling::Cls),
            _ => {
                let expected = "pooling_mode_mean_tokens or pooling_mode_cls_token";
                Err(Error::file(&path, "pooling", expected, "another mode, or several"))
            }
        }
    }

    /// The outputs it reads.
    pub(super) fn wants(self) -> Want {
        match self {
            Pooling::Mean => Want::All,
            Pooling::Cls => Want::First,
            Pooling::Pooler => Want::Pooled,
        }
    }

    /// One vector of `[tokens, dims]` outputs.
    pub(super) fn pool(self, outputs: Vec<f32>, dims: usize) -> Vec<f32> {
        if self != Pooling::Mean {
            return outputs;
        }
        let mut sums = vec![0f64; dims];
        for row in outputs.chunks_exact(dims) {
            sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        let tokens = (outputs.len() / dims) as f64;
        sums.into_iter().map(|sum| (sum / tokens) as f32).collect()
    }
}

/// Scales a vector to length 1; one of zeros stays.
pub(super) fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_of_tokens_and_lengths_become_one() {
        let outputs = vec![1.0, 2.0, 3.0, 6.0];
        assert_eq!(Pooling::Mean.pool(outputs.clone(), 2), [2.0, 4.0]);
        assert_eq!(Pooling::Cls.pool(outputs[..2].to_vec(), 2), [1.0, 2.0]);
        let mut vector = [3.0, 4.0];
        normalise(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zeros = [0.0; 3];
        normalise(&mut zeros);
        assert_eq!(zeros, [0.0; 3]);
    }

    #[test]
    fn the_file_of_sentence_transformers_says_how() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(Pooling::of_checkpoint(dir.path()).expect("no file"), Pooling::Mean);
        std::fs::create_dir(dir.path().join("1_Pooling")).expect("a folder");
        let path = dir.path().join("1_Pooling").join("config.json");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            Pooling::of_checkpoint(dir.path())
        };
        assert_eq!(read(r#"{"pooling_mode_cls_token": true}"#).expect("cls"), Pooling::Cls);
        assert_eq!(read(r#"{"pooling_mode_mean_tokens": true}"#).expect("mean"), Pooling::Mean);
        assert!(read(r#"{"pooling_mode_max_tokens": true}"#).is_err());
        assert!(read(r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}"#).is_err());
        assert!(read("[").is_err());
    }
}
