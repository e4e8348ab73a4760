//! Tensors of a safetensors checkpoint, one file or sharded, mapped into memory.

mod file;
mod header;
mod integers;
mod random;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use tilewright_host::DType;

pub(crate) use file::open_file;
pub use file::{check_folder, is_there, read_any, read_at_most, read_file};

use crate::{Error, Result};

/// A checkpoint's tensors by name.
pub struct Checkpoint {
    dir: PathBuf,
    shards: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
}

struct Shard {
    path: PathBuf,
    bytes: Mmap,
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// In the shard's file.
    range: std::ops::Range<usize>,
}

/// What a checkpoint says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorSummary {
    /// Its name.
    pub name: String,
    /// Its element type, as safetensors spells it.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Bytes it occupies.
    pub bytes: usize,
    /// The file it is in.
    pub file: PathBuf,
}

/// A weight matrix where it lies in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MatrixView<'a> {
    pub rows: usize,
    pub dtype: DType,
    pub bytes: &'a [u8],
}

impl Checkpoint {
    /// Opens `model.safetensors` of `dir`, or the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// A missing, truncated or damaged file; an index that disagrees with its shards; a checkpoint of pickles.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        std::fs::read_dir(dir).map_err(Error::io(dir))?;
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        let mut checkpoint =
            Checkpoint { dir: dir.to_path_buf(), shards: Vec::new(), entries: BTreeMap::new() };
        if single.exists() {
            checkpoint.add_shard(&single)?;
        } else if index.exists() {
            checkpoint.add_indexed(&index)?;
        } else {
            return Err(no_safetensors(dir));
        }
        Ok(checkpoint)
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_file(path: &Path) -> Result<Checkpoint> {
        let mut checkpoint =
            Checkpoint { dir: path.to_path_buf(), shards: Vec::new(), entries: BTreeMap::new() };
        checkpoint.add_shard(path)?;
        Ok(checkpoint)
    }

    /// Every tensor, by name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSummary> + '_ {
        self.entries.iter().map(|(name, entry)| TensorSummary {
            name: name.clone(),
            dtype: format!("{:?}", entry.dtype),
            shape: entry.shape.clone(),
            bytes: entry.range.len(),
            file: self.shards[entry.shard].path.clone(),
        })
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// A matrix of floating-point weights.
    pub(crate) fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<MatrixView<'_>> {
        let (entry, path) = self.entry(name)?;
        let dtype = self.float_type(name)?;
        expect_shape(entry, path, name, &[rows, cols])?;
        Ok(MatrixView { rows, dtype, bytes: self.bytes(entry) })
    }

    /// A vector of floating-point weights, widened.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let (entry, path) = self.entry(name)?;
        expect_shape(entry, path, name, &[len])?;
        self.floats(name)
    }

    /// All elements of a floating-point tensor, widened.
    pub(crate) fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let (entry, _) = self.entry(name)?;
        let bytes = self.bytes(entry);
        Ok(match self.float_type(name)? {
            DType::Bf16 => {
                bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
            DType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        })
    }

    /// All elements of an integer tensor `[rows, cols]` of token ids, row by row.
    pub(crate) fn token_rows(&self, name: &str, vocab_size: usize) -> Result<Vec<Vec<u32>>> {
        let (entry, path) = self.entry(name)?;
        let wrong = |expected: &str, found: String| Err(Error::tensor(path, name, expected, found));
        if entry.dtype != Dtype::I64 {
            return wrong("dtype I64", format!("{:?}", entry.dtype));
        }
        let &[rows, cols] = entry.shape.as_slice() else {
            return wrong("shape [batch, tokens]", format!("{:?}", entry.shape));
        };
        if rows == 0 || cols == 0 {
            return wrong("at least one token", format!("{:?}", entry.shape));
        }
        let ids = self
            .bytes(entry)
            .as_chunks::<8>()
            .0
            .iter()
            .map(|bytes| i64::from_le_bytes(*bytes))
            .map(|id| u32::try_from(id).ok().filter(|&id| (id as usize) < vocab_size).ok_or(id))
            .collect::<Result<Vec<u32>, i64>>();
        match ids {
            Ok(ids) => Ok(ids.chunks_exact(cols).map(<[u32]>::to_vec).collect()),
            Err(id) => wrong(&format!("token ids below the vocabulary of {vocab_size}"), id.to_string()),
        }
    }

    /// A tensor as it's stored: type, shape, bytes.
    pub(crate) fn raw(&self, name: &str) -> Result<(Dtype, Vec<usize>, &[u8])> {
        let (entry, _) = self.entry(name)?;
        Ok((entry.dtype, entry.shape.clone(), self.bytes(entry)))
    }

    /// The shape of a tensor.
    pub(crate) fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.entry(name)?.0.shape)
    }

    /// The folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file a tensor is in, or the folder where it's in none.
    pub(crate) fn path_of(&self, name: &str) -> &Path {
        self.entries.get(name).map_or(&self.dir, |entry| &self.shards[entry.shard].path)
    }

    /// Complains of the first tensor that isn't in `used`, unless it's one that checkpoints carry without need.
    pub(crate) fn expect_all_used(
        &self,
        used: &HashSet<String>,
        harmless: impl Fn(&str) -> bool,
    ) -> Result<()> {
        match self.entries.keys().find(|name| !used.contains(*name) && !harmless(name)) {
            None => Ok(()),
            Some(name) => {
                let found = format!("{:?} {:?}", self.entries[name].dtype, self.entries[name].shape);
                Err(Error::tensor(self.path_of(name), name, "no tensor of this name in this model", found))
            }
        }
    }

    fn entry(&self, name: &str) -> Result<(&Entry, &Path)> {
        match self.entries.get(name) {
            Some(entry) => Ok((entry, &self.shards[entry.shard].path)),
            None => Err(Error::tensor(self.missing_from(), name, "a tensor", "none of this name")),
        }
    }

    /// The one file, or the folder of shards.
    fn missing_from(&self) -> &Path {
        match self.shards.as_slice() {
            [only] => &only.path,
            _ => &self.dir,
        }
    }

    fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.shards[entry.shard].bytes[entry.range.clone()]
    }

    fn float_type(&self, name: &str) -> Result<DType> {
        let (entry, path) = self.entry(name)?;
        match entry.dtype {
            Dtype::BF16 => Ok(DType::Bf16),
            Dtype::F16 => Ok(DType::F16),
            Dtype::F32 => Ok(DType::F32),
            other => Err(Error::tensor(path, name, "dtype BF16, F16 or F32", format!("{other:?}"))),
        }
    }

    fn add_shard(&mut self, path: &Path) -> Result<()> {
        let file = open_file(path)?;
        // SAFETY: the mapping is read-only and private to us; a checkpoint that another process rewrites while it's being
        // loaded is outside of what a loader can guard against, as with every program that maps its weights.
        let bytes = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        let (header_bytes, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|error| header::refusal(path, &bytes, &error))?;
        let data_start = header_bytes + 8;
        let shard = self.shards.len();
        for (name, info) in metadata.tensors() {
            let range = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
            let entry = Entry { shard, dtype: info.dtype, shape: info.shape.clone(), range };
            if let Some(earlier) = self.entries.insert(name.clone(), entry) {
                let found = format!("another in {}", self.shards[earlier.shard].path.display());
                return Err(Error::tensor(path, &name, "one tensor of this name", found));
            }
        }
        self.shards.push(Shard { path: path.to_path_buf(), bytes });
        Ok(())
    }

    fn add_indexed(&mut self, index_path: &Path) -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = read_file(index_path)?;
        let index: Index = serde_json::from_slice(&text)
            .map_err(|error| Error::file(index_path, "contents", "JSON with a weight_map", error))?;
        let mut files: Vec<&String> = index.weight_map.values().collect();
        files.sort();
        files.dedup();
        for file in files {
            if Path::new(file).components().count() != 1 || file == ".." {
                return Err(Error::file(index_path, "weight_map", "names of files beside it", file));
            }
            self.add_shard(&self.dir.join(file))?;
        }
        for (name, file) in &index.weight_map {
            let path = self.dir.join(file);
            match self.entries.get(name) {
                Some(entry) if self.shards[entry.shard].path == path => {}
                _ => return Err(Error::tensor(&path, name, "the tensor that the index puts here", "none")),
            }
        }
        Ok(())
    }
}

fn expect_shape(entry: &Entry, path: &Path, name: &str, expected: &[usize]) -> Result<()> {
    if entry.shape == expected {
        return Ok(());
    }
    Err(Error::tensor(path, name, format!("shape {expected:?}"), format!("{:?}", entry.shape)))
}

fn no_safetensors(dir: &Path) -> Error {
    let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.pt"];
    match pickles.iter().map(|name| dir.join(name)).find(|path| path.exists()) {
        Some(path) => Error::file(
            &path,
            "format",
            "model.safetensors beside it (pickles can run code and are not read)",
            "a pickle checkpoint",
        ),
        None => {
            Error::file(dir, "checkpoint", "model.safetensors or model.safetensors.index.json", "neither")
        }
    }
}

#[cfg(test)]
mod tests;
