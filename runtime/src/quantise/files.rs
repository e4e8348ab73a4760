use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Value, json};

use super::matrix::Quantised;
use super::options::{Linear, Method, QuantiseOptions, linears};
use super::pack::{Tensor, gptq_tensors, int8_tensors};
use crate::checkpoint::{Checkpoint, read_file};
use crate::config::ModelConfig;
use crate::{Error, Result};

/// The key of a file's metadata that says how, and of what, it was made.
const MADE_BY: &str = "tilewright_quantise";
/// Files beside the weights larger than this are not copied.
const MAX_COPIED_BYTES: u64 = 1 << 28;

/// A folder of quantised files: one a layer, and one of all that isn't quantised.
pub(super) struct Output {
    from: PathBuf,
    dir: PathBuf,
    layers: usize,
    bits: usize,
    made_by: String,
    /// The names of layers' tensors that are replaced, by layer.
    replaced: Vec<Vec<String>>,
}

impl Output {
    /// Makes the folder. One that holds a checkpoint made otherwise, or of something else, is refused.
    pub fn open(
        from: &Path,
        dir: &Path,
        config: &ModelConfig,
        options: &QuantiseOptions,
        checkpoint: &Checkpoint,
        windows: &[Vec<u32>],
    ) -> Result<Output> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let canonical = |path: &Path| path.canonicalize().map_err(Error::io(path));
        if canonical(from)? == canonical(dir)? {
            return Err(Error::file(dir, "output", "another folder than the model's", "the same"));
        }
        let names =
            |index| linears(config, index).into_iter().map(|linear| format!("{}.weight", linear.name));
        let output = Output {
            from: from.to_path_buf(),
            dir: dir.to_path_buf(),
            layers: config.layers,
            bits: options.bits,
            made_by: format!("{} {:016x}", options.in_words(), fingerprint(from, checkpoint, windows)?),
            replaced: (0..config.layers).map(|index| names(index).collect()).collect(),
        };
        if !output.shard_path(0).exists()
            && (0..=config.layers).all(|index| !output.shard_path(index).exists())
        {
            for name in ["config.json", "model.safetensors", "model.safetensors.index.json"] {
                if dir.join(name).exists() {
                    return Err(Error::file(dir, "output", "an empty folder, or an unfinished run", name));
                }
            }
        }
        Ok(output)
    }

    fn shard_name(&self, index: usize) -> String {
        format!("model-{:05}-of-{:05}.safetensors", index + 1, self.layers + 1)
    }

    /// The file of shard `index`: layer `index - 1`, or what isn't quantised.
    fn shard_path(&self, index: usize) -> PathBuf {
        self.dir.join(self.shard_name(index))
    }

    /// Where layer `index` is written.
    pub fn layer_path(&self, index: usize) -> PathBuf {
        self.shard_path(index + 1)
    }

    /// Whether an earlier run finished the layer. A file of another run is refused.
    pub fn has_layer(&self, index: usize) -> Result<bool> {
        self.has_shard(index + 1)
    }

    fn has_shard(&self, index: usize) -> Result<bool> {
        let path = self.shard_path(index);
        if !path.exists() {
            return Ok(false);
        }
        let bytes = read_file(&path)?;
        let metadata = safetensors::SafeTensors::read_metadata(&bytes);
        let (_, metadata) =
            metadata.map_err(|error| Error::file(&path, "contents", "a whole safetensors file", error))?;
        let found = metadata.metadata().as_ref().and_then(|map| map.get(MADE_BY));
        match found {
            Some(found) if *found == self.made_by => Ok(true),
            _ => {
                let found = found.map_or("none", String::as_str);
                let expected = format!("a file of this run ({})", self.made_by);
                Err(Error::file(&path, "origin", expected, found))
            }
        }
    }

    /// An empty file for layer `index`.
    pub fn layer(&self, index: usize) -> Shard<'_> {
        Shard { output: self, index: index + 1, tensors: Vec::new() }
    }

    /// Copies what belongs to no layer.
    pub fn copy_unquantised(&self, checkpoint: &Checkpoint) -> Result<()> {
        if self.has_shard(0)? {
            return Ok(());
        }
        Shard { output: self, index: 0, tensors: Vec::new() }.write(checkpoint)
    }

    /// The layer that a tensor belongs to, as a shard's index.
    fn shard_of(name: &str) -> usize {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
        layer.and_then(|index| index.parse::<usize>().ok()).map_or(0, |index| index + 1)
    }

    /// Writes the index, the configuration and the files beside it, once all layers are there. Bytes of all tensors.
    pub fn finish(&self, options: &QuantiseOptions) -> Result<usize> {
        let mut weight_map = BTreeMap::new();
        let mut total = 0;
        for index in 0..=self.layers {
            for tensor in Checkpoint::open_file(&self.shard_path(index))?.tensors() {
                total += tensor.bytes;
                weight_map.insert(tensor.name, self.shard_name(index));
            }
        }
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        self.write_json("model.safetensors.index.json", &index)?;
        self.copy_files_beside()?;
        let path = self.from.join("config.json");
        let config = read_file(&path)?;
        let mut config: Value =
            serde_json::from_slice(&config).map_err(|error| Error::file(&path, "contents", "JSON", error))?;
        config["quantization_config"] = quantization_config(options);
        // Last: with it the folder is a checkpoint.
        self.write_json("config.json", &config)?;
        Ok(total)
    }

    fn copy_files_beside(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.from).map_err(Error::io(&self.from))? {
            let path = entry.map_err(Error::io(&self.from))?.path();
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let text = matches!(extension, "json" | "txt" | "model" | "jinja" | "tiktoken");
            let ours = name == "config.json" || name == "model.safetensors.index.json";
            let size = path.metadata().map_err(Error::io(&path))?;
            if text && !ours && size.is_file() && size.len() <= MAX_COPIED_BYTES {
                std::fs::copy(&path, self.dir.join(name)).map_err(Error::io(&path))?;
            }
        }
        Ok(())
    }

    fn write_json(&self, name: &str, value: &Value) -> Result<()> {
        // A value made of strings and numbers always has a text.
        let text = serde_json::to_string_pretty(value).unwrap_or_default();
        self.replace(name, text.as_bytes())
    }

    /// Writes a file under another name, and renames it once it's whole.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, unfinished) = (self.dir.join(name), self.dir.join(format!("{name}.unfinished")));
        std::fs::write(&unfinished, bytes).map_err(Error::io(&unfinished))?;
        std::fs::rename(&unfinished, &path).map_err(Error::io(&path))
    }
}

/// A file under way.
pub(super) struct Shard<'o> {
    output: &'o Output,
    index: usize,
    tensors: Vec<Tensor>,
}

impl Shard<'_> {
    /// Adds a matrix in GPTQ's layout.
    pub fn gptq(&mut self, linear: &Linear, quantised: &Quantised) {
        self.tensors.extend(gptq_tensors(&linear.name, self.output.bits, quantised));
    }

    /// Adds a matrix in eight-bit channels.
    pub fn int8(&mut self, linear: &Linear, weights: &[f32]) {
        self.tensors.extend(int8_tensors(&linear.name, weights, linear.cols));
    }

    /// Adds the layer's other tensors and writes the file.
    pub fn write(self, checkpoint: &Checkpoint) -> Result<()> {
        let Shard { output, index, tensors } = self;
        let replaced: &[String] = if index == 0 { &[] } else { &output.replaced[index - 1] };
        let mut views = Vec::new();
        let kept: Vec<String> = checkpoint
            .tensors()
            .map(|tensor| tensor.name)
            .filter(|name| Output::shard_of(name) == index && !replaced.contains(name))
            .collect();
        for name in kept {
            let (dtype, shape, bytes) = checkpoint.raw(&name)?;
            views.push((name, dtype, shape, bytes));
        }
        views.extend(tensors.iter().map(|t| (t.name.clone(), t.dtype, t.shape.clone(), &t.bytes[..])));
        output.replace(&output.shard_name(index), &safetensors_file(views, &output.made_by))
    }
}

/// A safetensors file: the header's length, the header (JSON, padded to whole words), the tensors, widest elements first so that
/// each is aligned. Written here because the same tensors must give the same bytes, in whatever order a hash map has metadata.
fn safetensors_file(mut tensors: Vec<(String, Dtype, Vec<usize>, &[u8])>, made_by: &str) -> Vec<u8> {
    tensors.sort_by(|a, b| b.1.bitsize().cmp(&a.1.bitsize()).then_with(|| a.0.cmp(&b.0)));
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_string(), json!({"format": "pt", MADE_BY: made_by}));
    let mut end = 0;
    for (name, dtype, shape, bytes) in &tensors {
        let offsets = [end, end + bytes.len()];
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        end += bytes.len();
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    tensors.iter().for_each(|(_, _, _, bytes)| file.extend_from_slice(bytes));
    file
}

fn quantization_config(options: &QuantiseOptions) -> Value {
    let version = format!("tilewright {}", env!("CARGO_PKG_VERSION"));
    if options.method == Method::Int8 {
        return json!({
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "kv_cache_scheme": null,
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel", "dynamic": false},
                "input_activations":
                    {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true},
                "output_activations": null,
            }},
        });
    }
    json!({
        "quant_method": "gptq",
        "bits": options.bits,
        "group_size": options.group.map_or(-1, |group| group as i64),
        "desc_act": options.act_order,
        "sym": options.symmetric,
        "checkpoint_format": "gptq",
        "lm_head": false,
        "true_sequential": true,
        "damp_percent": options.damp,
        "meta": {"quantizer": version},
    })
}

/// FNV-1a over what the run works on: names, shapes and first bytes of all tensors, the configuration, the texts.
fn fingerprint(from: &Path, checkpoint: &Checkpoint, windows: &[Vec<u32>]) -> Result<u64> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    let config = from.join("config.json");
    add(&read_file(&config)?);
    for tensor in checkpoint.tensors() {
        let (_, _, bytes) = checkpoint.raw(&tensor.name)?;
        add(format!("{} {} {:?}", tensor.name, tensor.dtype, tensor.shape).as_bytes());
        add(&bytes[..bytes.len().min(256)]);
    }
    windows.iter().flatten().for_each(|id| add(&id.to_le_bytes()));
    Ok(hash)
}
