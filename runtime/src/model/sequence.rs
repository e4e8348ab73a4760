use tilewright_host::{Batch, Device, KvDType, Outputs, RowClass};

use super::{Decoder, Scratch};
use crate::cache::ContiguousCache;
use crate::sampling::{Draw, DrawKey, SamplingParams};
use crate::{Error, Result};

/// Rows of a prompt's chunk: enough to fill a GEMM, little enough for scratch memory.
const CHUNK_ROWS: usize = 512;
/// Logits that are held at once when those of every position are wanted.
const MAX_LOGITS: usize = 1 << 24;

/// What generation needs of one sequence, whatever the device.
pub trait Sequence: Send {
    /// Tokens whose keys and values are cached.
    fn cached(&self) -> usize;
    /// Tokens that can be cached.
    fn capacity(&self) -> usize;
    /// Forgets all tokens.
    fn clear(&mut self);
    /// Appends tokens; the last one's logits are then those that [`Sequence::choose`] reads.
    ///
    /// # Errors
    /// Token ids outside of the vocabulary, more tokens than the capacity, or a failure of the device.
    fn feed(&mut self, ids: &[u32]) -> Result<()>;
    /// Chooses the token that follows the last. `request` keys the draw, together with the position.
    ///
    /// # Errors
    /// Nothing fed by [`Sequence::feed`] since the sequence was made or cleared or fed otherwise; logits that hold a NaN; a
    /// failure of the device.
    fn choose(&mut self, sampling: &SamplingParams, request: u64) -> Result<u32>;
    /// Appends tokens and hands the logits of each to `visit`: index in `ids`, logits `[vocab]`.
    ///
    /// # Errors
    /// As [`Sequence::feed`].
    fn feed_all(&mut self, ids: &[u32], visit: &mut dyn FnMut(usize, &[f32])) -> Result<()>;
}

/// A sequence with a cache of its own.
pub struct DecoderSequence<'m, D: Device> {
    model: &'m Decoder<D>,
    cache: ContiguousCache<D>,
    slot: u32,
    scratch: Scratch<D>,
    /// Made when [`Sequence::feed_all`] is first called.
    wide_scratch: Option<Scratch<D>>,
    max_rows: usize,
    cached: usize,
    /// `scratch` holds the last token's logits.
    has_logits: bool,
}

impl<'m, D: Device> DecoderSequence<'m, D> {
    /// A sequence of up to `capacity` tokens, whose keys and values are stored as `dtype`.
    ///
    /// # Errors
    /// If `capacity` is 0 or exceeds the model's context, or the device has no room.
    pub fn new(model: &'m Decoder<D>, capacity: usize, dtype: KvDType) -> Result<Self> {
        let context = model.config().context;
        if capacity == 0 || capacity > context {
            return Err(Error::request("tokens", format!("1 to {context} (the model's context)"), capacity));
        }
        let mut cache = ContiguousCache::new(model.device(), model.config(), 1, capacity, dtype)?;
        let slot = cache.acquire()?;
        let max_rows = capacity.min(CHUNK_ROWS);
        let scratch = model.scratch(max_rows, 1)?;
        Ok(DecoderSequence {
            model,
            cache,
            slot,
            scratch,
            wide_scratch: None,
            max_rows,
            cached: 0,
            has_logits: false,
        })
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.model.config().vocab_size;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            let expected = format!("token ids below the vocabulary of {vocab}");
            return Err(Error::request("tokens", expected, id));
        }
        if ids.is_empty() {
            return Err(Error::request("tokens", "at least one", "none"));
        }
        if self.cached + ids.len() > self.capacity() {
            let expected = format!("at most {}", self.capacity());
            return Err(Error::request("tokens", expected, self.cached + ids.len()));
        }
        Ok(())
    }

    fn batch(&self, ids: &[u32], class: RowClass, outputs: Outputs) -> Batch {
        let mut batch = Batch::default();
        let (cached, pages, page_size) = (self.cached as u32, [self.slot], self.cache.page_size() as u32);
        match class {
            RowClass::Generated => batch.push_generated(ids, cached, &pages, page_size, outputs),
            RowClass::Prompt => batch.push(ids, cached, &pages, page_size, outputs),
        }
        batch
    }
}

impl<D: Device> Sequence for DecoderSequence<'_, D> {
    fn cached(&self) -> usize {
        self.cached
    }

    fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    fn clear(&mut self) {
        self.cached = 0;
        self.has_logits = false;
    }

    fn feed(&mut self, ids: &[u32]) -> Result<()> {
        self.check(ids)?;
        // One token behind others is taken for a generated one.
        let generated = ids.len() == 1 && self.cached > 0;
        let class = if generated { RowClass::Generated } else { RowClass::Prompt };
        let chunks = ids.len().div_ceil(self.max_rows);
        for (index, chunk) in ids.chunks(self.max_rows).enumerate() {
            let outputs = if index + 1 == chunks { Outputs::Last } else { Outputs::None };
            let batch = self.batch(chunk, class, outputs);
            self.model.forward(&batch, &mut self.cache.cache, &mut self.scratch)?;
            self.cached += chunk.len();
        }
        self.has_logits = true;
        Ok(())
    }

    fn choose(&mut self, sampling: &SamplingParams, request: u64) -> Result<u32> {
        if !self.has_logits {
            return Err(Error::request("choose", "tokens fed before", "none"));
        }
        let device = self.model.device();
        let chosen = if sampling.is_greedy() {
            device.argmax(&self.scratch.logits)?
        } else {
            let key = DrawKey { seed: sampling.seed, request, choice: 0 };
            let row = sampling.row(key.uniform(self.cached, Draw::Token));
            device.sample(&self.scratch.logits, &[row])?
        };
        Ok(chosen[0])
    }

    fn feed_all(&mut self, ids: &[u32], visit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.check(ids)?;
        self.has_logits = false;
        let vocab = self.model.config().vocab_size;
        let rows = (MAX_LOGITS / vocab).clamp(1, self.max_rows);
        let mut scratch = match self.wide_scratch.take() {
            Some(scratch) => scratch,
            None => self.model.scratch(rows, rows)?,
        };
        for (chunk_index, chunk) in ids.chunks(rows).enumerate() {
            let batch = self.batch(chunk, RowClass::Prompt, Outputs::All);
            self.model.forward(&batch, &mut self.cache.cache, &mut scratch)?;
            self.cached += chunk.len();
            let logits = self.model.device().read_logits(&scratch.logits)?;
            for (row, logits) in logits.chunks_exact(vocab).take(chunk.len()).enumerate() {
                visit(chunk_index * rows + row, logits);
            }
        }
        self.wide_scratch = Some(scratch);
        Ok(())
    }
}
