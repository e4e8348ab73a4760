use std::sync::Arc;

use tilewright_host::{Batch, CacheSpec, Device, KvDType, LogitChanges, Pace, SampleRow};

use super::{Decoder, Scratch};
use crate::Result;

/// What a [`Runner`] has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunnerSizes {
    /// Pages of the cache.
    pub pages: usize,
    /// Tokens a page.
    pub page_size: usize,
    /// What pages store.
    pub dtype: KvDType,
    /// Rows a step.
    pub max_rows: usize,
    /// Rows a step whose logits are wanted.
    pub max_outputs: usize,
}

/// What the engine needs of a model, whatever the device: steps of many sequences over one paged cache.
pub(crate) trait Runner: Send {
    /// Runs a step; its logits are then those that the other methods read.
    ///
    /// # Errors
    /// If the step doesn't fit, or the device fails.
    fn forward(&mut self, batch: &Batch) -> Result<Pace>;
    /// As [`Device::copy_pages`].
    ///
    /// # Errors
    /// If the device fails.
    fn copy_pages(&mut self, copies: &[(u32, u32)]) -> Result<()>;
    /// As [`Device::choose`], of logits that are changed first, for good.
    ///
    /// # Errors
    /// If the device fails.
    fn choose(&mut self, rows: &[SampleRow], changes: &LogitChanges) -> Result<Vec<Option<u32>>>;
    /// As [`Device::read_logit_rows`].
    ///
    /// # Errors
    /// If the device fails.
    fn read_rows(&self, rows: &[u32]) -> Result<Vec<f32>>;
    /// As [`Device::is_asynchronous`].
    fn is_asynchronous(&self) -> bool;
    /// Logits a row.
    fn vocab(&self) -> usize;
    /// Bytes of the cache.
    fn cache_bytes(&self) -> usize;
}

/// A decoder with a paged cache and the activations of a step.
pub(crate) struct DecoderRunner<D: Device> {
    model: Arc<Decoder<D>>,
    cache: D::Cache,
    scratch: Scratch<D>,
}

impl<D: Device> DecoderRunner<D> {
    /// Reserves all that steps will need.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(model: Arc<Decoder<D>>, sizes: RunnerSizes) -> Result<Self> {
        let config = model.config();
        let spec = CacheSpec {
            layers: config.layers,
            pages: sizes.pages,
            page_size: sizes.page_size,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            dtype: sizes.dtype,
        };
        let cache = model.device().cache(spec)?;
        let scratch = model.scratch(sizes.max_rows, sizes.max_outputs)?;
        Ok(DecoderRunner { model, cache, scratch })
    }
}

impl<D: Device> Runner for DecoderRunner<D> {
    fn forward(&mut self, batch: &Batch) -> Result<Pace> {
        self.model.forward(batch, &mut self.cache, &mut self.scratch)
    }

    fn copy_pages(&mut self, copies: &[(u32, u32)]) -> Result<()> {
        if copies.is_empty() {
            return Ok(());
        }
        Ok(self.model.device().copy_pages(&mut self.cache, copies)?)
    }

    fn choose(&mut self, rows: &[SampleRow], changes: &LogitChanges) -> Result<Vec<Option<u32>>> {
        if !changes.is_empty() {
            self.model.device().adjust_logits(&mut self.scratch.logits, changes)?;
        }
        Ok(self.model.device().choose(&self.scratch.logits, rows)?)
    }

    fn read_rows(&self, rows: &[u32]) -> Result<Vec<f32>> {
        Ok(self.model.device().read_logit_rows(&self.scratch.logits, rows)?)
    }

    fn is_asynchronous(&self) -> bool {
        self.model.device().is_asynchronous()
    }

    fn vocab(&self) -> usize {
        self.model.config().vocab_size
    }

    fn cache_bytes(&self) -> usize {
        self.model.device().cache_bytes(&self.cache)
    }
}
