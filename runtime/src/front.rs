use std::path::{Path, PathBuf};
use std::sync::Arc;

use tilewright_host::{Device, KvDType};

use crate::checkpoint::Checkpoint;
use crate::config::{FrequencyPrecision, ModelConfig};
use crate::device::{self, AnyDecoder, DeviceChoice, Loaded};
use crate::generate::{GenerateParams, Generation, Prompt, check_tokens};
use crate::model::Sequence;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A checkpoint on a device, ready to generate. Clones share its weights.
#[derive(Clone)]
pub struct Model {
    dir: PathBuf,
    config: ModelConfig,
    tokenizer: Option<Arc<Tokenizer>>,
    engine: Arc<dyn AnyDecoder>,
    computes_in_f32: bool,
    no_gpu: Option<String>,
}

impl Model {
    /// Loads a Hugging Face checkpoint's folder: `config.json`, safetensors, and `tokenizer.json` where there is one (without
    /// it, prompts are token ids).
    ///
    /// # Errors
    /// A file that is missing or damaged, a model that isn't understood, a device that isn't there. Each names what and where.
    pub fn load(dir: impl AsRef<Path>, device: DeviceChoice) -> Result<Model> {
        Model::load_with_progress(dir, device, &mut |_, _| {})
    }

    /// As [`Model::load`]; `progress` is told how many parts are done, and of how many.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with_progress(
        dir: impl AsRef<Path>,
        device: DeviceChoice,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Model> {
        Model::load_with_frequencies(dir.as_ref(), device, FrequencyPrecision::F32, progress)
    }

    pub(crate) fn load_with_frequencies(
        dir: &Path,
        device: DeviceChoice,
        precision: FrequencyPrecision,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Model> {
        Model::assemble(dir, precision, |config, checkpoint| {
            device::load(device, config, checkpoint, progress)
        })
    }

    /// As [`Model::load`], on a device of the caller's that rounds activations to bf16.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_on<D: Device>(dir: impl AsRef<Path>, device: Arc<D>) -> Result<Model> {
        Model::load_on_with_frequencies(dir.as_ref(), device, FrequencyPrecision::F32)
    }

    pub(crate) fn load_on_with_frequencies<D: Device>(
        dir: &Path,
        device: Arc<D>,
        precision: FrequencyPrecision,
    ) -> Result<Model> {
        Model::assemble(dir, precision, |config, checkpoint| {
            let engine = device::engine(device, config, checkpoint, &mut |_, _| {})?;
            Ok(Loaded { engine, computes_in_f32: false, no_gpu: None })
        })
    }

    /// A model of a shape, with random weights: for measurements of speed and memory, which don't depend on what weights say. It has
    /// no tokenizer; prompts are token ids.
    ///
    /// # Errors
    /// A quantisation other than symmetric GPTQ and `int-quantized`; a device that isn't there or has no room.
    pub fn random(config: ModelConfig, seed: u64, device: DeviceChoice) -> Result<Model> {
        Model::of_random(config, seed, |config, checkpoint| {
            device::load(device, config, checkpoint, &mut |_, _| {})
        })
    }

    /// As [`Model::random`], on a device of the caller's that rounds activations to bf16.
    ///
    /// # Errors
    /// As [`Model::random`].
    pub fn random_on<D: Device>(config: ModelConfig, seed: u64, device: Arc<D>) -> Result<Model> {
        Model::of_random(config, seed, |config, checkpoint| {
            let engine = device::engine(device, config, checkpoint, &mut |_, _| {})?;
            Ok(Loaded { engine, computes_in_f32: false, no_gpu: None })
        })
    }

    fn of_random(
        config: ModelConfig,
        seed: u64,
        load: impl FnOnce(ModelConfig, &Checkpoint) -> Result<Loaded>,
    ) -> Result<Model> {
        let checkpoint = Checkpoint::random(&config, seed)?;
        let Loaded { engine, computes_in_f32, no_gpu } = load(config.clone(), &checkpoint)?;
        let dir = checkpoint.dir().to_path_buf();
        Ok(Model { dir, config, tokenizer: None, engine, computes_in_f32, no_gpu })
    }

    /// A model of what a folder holds and the engine made of it.
    fn assemble(
        dir: &Path,
        precision: FrequencyPrecision,
        load: impl FnOnce(ModelConfig, &Checkpoint) -> Result<Loaded>,
    ) -> Result<Model> {
        std::fs::read_dir(dir).map_err(Error::io(dir))?;
        let mut config = ModelConfig::load(dir)?;
        config.rope.precision = precision;
        let tokenizer = Tokenizer::load(dir, config.bos_token_id)?.map(Arc::new);
        let checkpoint = Checkpoint::open(dir)?;
        let Loaded { engine, computes_in_f32, no_gpu } = load(config.clone(), &checkpoint)?;
        Ok(Model { dir: dir.to_path_buf(), config, tokenizer, engine, computes_in_f32, no_gpu })
    }

    /// The folder it was loaded from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_deref()
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// That text needs one, where the checkpoint has none.
    pub fn require_tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_deref().ok_or_else(|| {
            Error::file(&self.dir, "tokenizer", "tokenizer.json, or a prompt of token ids", "none")
        })
    }

    /// The token ids of a prompt.
    ///
    /// # Errors
    /// A text where the checkpoint has no tokenizer; no token, which is what an empty text comes to where the checkpoint puts none before
    /// it; an id outside of the vocabulary.
    pub fn encode<'p>(&self, prompt: impl Into<Prompt<'p>>) -> Result<Vec<u32>> {
        let ids = match prompt.into() {
            Prompt::Text(text) => self.require_tokenizer()?.encode(text)?,
            Prompt::Ids(ids) => ids.to_vec(),
        };
        check_tokens(&ids, &self.config)?;
        Ok(ids)
    }

    /// Its weights.
    pub(crate) fn decoder(&self) -> Arc<dyn AnyDecoder> {
        self.engine.clone()
    }

    /// Its tokenizer, to be kept.
    pub(crate) fn shared_tokenizer(&self) -> Option<Arc<Tokenizer>> {
        self.tokenizer.clone()
    }

    /// Its device in words.
    pub fn device(&self) -> String {
        self.engine.describe()
    }

    /// Why it doesn't run on a GPU: where [`DeviceChoice::Auto`] left the choice open, the crate was built for GPUs, and none would do.
    pub fn no_gpu(&self) -> Option<&str> {
        self.no_gpu.as_deref()
    }

    /// Whether its device keeps activations in f32, so that its logits are those of an f32 implementation but for the order of sums.
    pub(crate) fn computes_in_f32(&self) -> bool {
        self.computes_in_f32
    }

    /// The stream of tokens that follow a prompt. Nothing is computed before the first is asked for.
    ///
    /// # Errors
    /// A prompt that is empty, longer than the context or outside of the vocabulary; a parameter out of range.
    pub fn generate<'m, 'p>(
        &'m self,
        prompt: impl Into<Prompt<'p>>,
        params: &GenerateParams,
    ) -> Result<Generation<'m>> {
        Generation::new(self, prompt.into(), params)
    }

    /// An empty sequence of up to `capacity` tokens, to be fed by hand.
    ///
    /// # Errors
    /// If `capacity` is 0 or exceeds the context, or the device has no room.
    pub fn sequence(&self, capacity: usize) -> Result<Box<dyn Sequence + '_>> {
        self.sequence_of(capacity, KvDType::Native)
    }

    /// As [`Model::sequence`], its keys and values stored as `dtype`.
    ///
    /// # Errors
    /// As [`Model::sequence`].
    pub fn sequence_of(&self, capacity: usize, dtype: KvDType) -> Result<Box<dyn Sequence + '_>> {
        self.engine.sequence(capacity, dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::SamplingParams;

    fn fixture(name: &str) -> Model {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
        Model::load(dir, DeviceChoice::Cpu).expect("the fixture loads")
    }

    #[test]
    fn feeding_in_pieces_gives_the_bits_of_feeding_at_once() {
        let model = fixture("mistral-window16");
        let ids: Vec<u32> = (0..40).map(|i| i * 37 % 192).collect();
        let mut logits = Vec::new();
        for cut in [40, 1, 16, 39] {
            let mut all = Vec::new();
            let mut sequence = model.sequence(64).expect("a sequence");
            for part in [&ids[..cut], &ids[cut..]].into_iter().filter(|part| !part.is_empty()) {
                sequence.feed_all(part, &mut |_, row| all.extend_from_slice(row)).expect("fed");
            }
            logits.push(all);
        }
        assert_eq!(logits[0].len(), 40 * 192);
        // NaN isn't equal to itself: this holds for numbers alone.
        assert!(logits.iter().all(|other| *other == logits[0]));
    }

    #[test]
    fn a_sequence_answers_misuse_with_errors() {
        let model = fixture("qwen2-bias");
        assert!(model.sequence(0).is_err() && model.sequence(513).is_err());
        let mut sequence = model.sequence(4).expect("a sequence");
        let greedy = SamplingParams::default();
        let message = |result: Result<()>| result.expect_err("an error").to_string();
        assert!(sequence.choose(&greedy, 0).is_err());
        assert_eq!(message(sequence.feed(&[])), "tokens: expected at least one, found none");
        assert_eq!(
            message(sequence.feed(&[192])),
            "tokens: expected token ids below the vocabulary of 192, found 192"
        );
        assert_eq!(message(sequence.feed(&[1; 5])), "tokens: expected at most 4, found 5");
        sequence.feed(&[1, 2]).expect("fed");
        assert!(sequence.choose(&greedy, 0).is_ok());
        sequence.clear();
        assert!(sequence.choose(&greedy, 0).is_err());
    }

    #[test]
    fn random_weights_are_a_model_of_their_shape() {
        let gptq = |bits: usize, act_order: bool| {
            serde_json::json!({
                "quant_method": "gptq", "bits": bits, "group_size": 32, "sym": true, "desc_act": act_order,
            })
        };
        let weights =
            serde_json::json!({ "num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel" });
        let inputs =
            serde_json::json!({ "num_bits": 8, "dynamic": true, "strategy": "token", "symmetric": true });
        let group =
            serde_json::json!({ "targets": ["Linear"], "weights": weights, "input_activations": inputs });
        let int8 = serde_json::json!({
            "quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": { "group_0": group },
        });
        let shape = |quantisation: Option<serde_json::Value>| {
            let json = serde_json::json!({
                "model_type": "qwen3", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96,
                "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
                "max_position_embeddings": 64, "attention_bias": true,
                "tie_word_embeddings": quantisation.is_some(), "quantization_config": quantisation,
            });
            ModelConfig::from_json("a test", &json.to_string()).expect("a shape")
        };
        let quantisations =
            [None, Some(gptq(4, false)), Some(gptq(4, true)), Some(gptq(8, false)), Some(int8)];
        for quantisation in quantisations {
            let logits = |seed| {
                let shape = shape(quantisation.clone());
                let model = Model::random(shape, seed, DeviceChoice::Cpu).expect("a model");
                let mut sequence = model.sequence(8).expect("a sequence");
                let mut logits = Vec::new();
                sequence.feed_all(&[5, 9, 2], &mut |_, row| logits.extend_from_slice(row)).expect("fed");
                logits
            };
            let first = logits(1);
            assert_eq!(first.len(), 3 * 96);
            assert!(
                first.iter().all(|logit| logit.is_finite()) && first.iter().any(|&logit| logit != first[0])
            );
            assert_eq!(first, logits(1));
            assert_ne!(first, logits(2));
        }
        let mut awq = shape(Some(gptq(4, false)));
        awq.quantization.as_mut().expect("there is one").symmetric = false;
        let error = Model::random(awq, 1, DeviceChoice::Cpu).err().expect("refused").to_string();
        assert!(error.starts_with("random weights: quantization_config: expected symmetric GPTQ"), "{error}");
    }

    #[test]
    fn without_a_tokenizer_prompts_are_token_ids() {
        let model = fixture("llama-gqa-rope3");
        let params = GenerateParams { max_tokens: 3, ignore_eos: true, ..GenerateParams::default() };
        assert!(model.generate("text", &params).is_err());
        let ids: &[u32] = &[1, 2, 3];
        let tokens: Vec<_> = model.generate(ids, &params).expect("a generation").collect();
        assert_eq!(tokens.len(), 3);
        assert!(tokens.iter().all(|token| token.as_ref().is_ok_and(|token| token.text.is_empty())));
    }
}
