//! Choosing tokens from logits, and logits on their way to the host.

use bytemuck::{Zeroable, cast_slice, cast_slice_mut};
use tilewright_kernels::{
    abi,
    adjust_logits::ADJUST_LOGITS,
    argmax::{self, ARGMAX},
    sample::SAMPLE,
};

use super::{
    Driver, GpuDevice, GpuLogits,
    scratch::{self, Scratch},
    storage::{WORD, dim, require},
};
use crate::{Error, LogitChanges, Result, SampleRow};

/// Bytes that a block of a row leaves for the last one.
const PARTIAL_BYTES: usize = 16;

/// What launches of `argmax` use one after the other: findings of blocks, and counters that every launch leaves zero.
pub(super) struct ChooseScratch<Dr: Driver> {
    partials: Scratch<Dr>,
    counters: Scratch<Dr>,
}

impl<Dr: Driver> Default for ChooseScratch<Dr> {
    fn default() -> Self {
        let [partials, counters] = std::array::from_fn(|_| Scratch::new("argmax", "the parts of rows"));
        Self { partials, counters }
    }
}

impl<Dr: Driver> GpuDevice<Dr> {
    pub(super) fn launch_adjust(&self, logits: &mut GpuLogits<Dr>, changes: &LogitChanges) -> Result<()> {
        let op = "adjust_logits";
        changes.check(logits.rows, logits.vocab)?;
        if changes.is_empty() {
            return Ok(());
        }
        let (rows, all) = changes.parts();
        let grid = [dim(op, "rows", rows.len())?, 1, 1];
        let (rows, all): (&[u8], &[u8]) = (cast_slice(rows), cast_slice(all));
        let (buffer, address) = self.allocate(op, &[rows.len() + all.len()], "changes of logits")?;
        self.upload(&buffer, 0, &[rows, all].concat())?;
        let params = abi::AdjustLogits {
            logits: logits.address,
            rows: address,
            changes: address + rows.len() as u64,
            cols: dim(op, "vocab", logits.vocab)?,
            reserved: 0,
        };
        // SAFETY: rows and tokens are those of `logits`, and none is there twice: just checked. The buffer is freed in the order of the stream.
        unsafe { self.launch(&ADJUST_LOGITS, grid, params) }
    }

    pub(super) fn launch_argmax(&self, logits: &GpuLogits<Dr>) -> Result<Vec<u32>> {
        valid(self.argmax_rows(logits)?)
    }

    pub(super) fn launch_sample(&self, logits: &GpuLogits<Dr>, samples: &[SampleRow]) -> Result<Vec<u32>> {
        valid(self.sample_rows("sample", logits, samples)?)
    }

    /// As [`crate::Device::choose`]: the largest logit of a row is also the draw from the first of its ranking, so that a batch of both
    /// kinds takes one launch.
    pub(super) fn launch_choose(
        &self,
        logits: &GpuLogits<Dr>,
        samples: &[SampleRow],
    ) -> Result<Vec<Option<u32>>> {
        require(samples.len() == logits.rows, "choose", "rows", logits.rows, samples.len())?;
        let tokens = if samples.iter().all(|row| row.temperature == 0.0) {
            self.argmax_rows(logits)?
        } else {
            let first = SampleRow { temperature: 1.0, top_k: 1, top_p: 1.0, ..SampleRow::zeroed() };
            let rows: Vec<SampleRow> =
                samples.iter().map(|row| if row.temperature == 0.0 { first } else { *row }).collect();
            self.sample_rows("choose", logits, &rows)?
        };
        Ok(tokens.into_iter().map(|token| (token != abi::INVALID_TOKEN).then_some(token)).collect())
    }

    pub(super) fn download_rows(&self, logits: &GpuLogits<Dr>, rows: &[u32]) -> Result<Vec<f32>> {
        let mut values = vec![0f32; rows.len() * logits.vocab];
        for (&row, out) in rows.iter().zip(values.chunks_exact_mut(logits.vocab)) {
            let (row, held) = (row as usize, logits.rows);
            require(row < held, "read_logit_rows", "rows", format!("below {held}"), row)?;
            self.driver.download(&logits.buffer, row * logits.vocab * WORD, cast_slice_mut(out))?;
        }
        Ok(values)
    }

    fn argmax_rows(&self, logits: &GpuLogits<Dr>) -> Result<Vec<u32>> {
        let (rows, cols) = (dim("argmax", "rows", logits.rows)?, dim("argmax", "vocab", logits.vocab)?);
        let (buffer, out) = self.allocate("argmax", &[logits.rows, WORD], "tokens")?;
        let parts = argmax::parts(cols);
        let mut held = scratch::lock(&self.choose_scratch);
        let partials = held.partials.at_least(self, logits.rows * parts as usize * PARTIAL_BYTES, false)?;
        let counters = held.counters.at_least(self, logits.rows * WORD, true)?;
        let params = abi::Argmax { logits: logits.address, out, partials, counters, rows, cols };
        // SAFETY: `logits` is `[rows, cols]`, `out` `[rows]`, scratch as large as the parameters say, and counters are zero: fresh
        // ones are, and launches leave them so. Launches that share scratch follow each other on one stream; the lock is held until
        // this one is in it.
        unsafe { self.launch(&ARGMAX, [rows, parts, 1], params)? };
        drop(held);
        self.tokens(&buffer, logits.rows)
    }

    fn sample_rows(
        &self,
        op: &'static str,
        logits: &GpuLogits<Dr>,
        samples: &[SampleRow],
    ) -> Result<Vec<u32>> {
        require(samples.len() == logits.rows, op, "rows", logits.rows, samples.len())?;
        let (rows, cols) = (dim(op, "rows", logits.rows)?, dim(op, "vocab", logits.vocab)?);
        let (row_buffer, row_params) =
            self.allocate(op, &[samples.len(), size_of::<SampleRow>()], "sampling parameters")?;
        self.upload(&row_buffer, 0, cast_slice(samples))?;
        let (buffer, out) = self.allocate(op, &[logits.rows, WORD], "tokens")?;
        let params = abi::Sample { logits: logits.address, row_params, out, rows, cols };
        // SAFETY: `logits` is `[rows, cols]`, `row_params` and `out` `[rows]`.
        unsafe { self.launch(&SAMPLE, [rows, 1, 1], params)? };
        self.tokens(&buffer, logits.rows)
    }

    /// What a kernel left for each row.
    fn tokens(&self, buffer: &Dr::Buffer, rows: usize) -> Result<Vec<u32>> {
        let mut tokens = vec![0u32; rows];
        self.download(buffer, &mut tokens)?;
        Ok(tokens)
    }
}

/// The tokens, unless one marks its row invalid.
fn valid(tokens: Vec<u32>) -> Result<Vec<u32>> {
    match tokens.iter().position(|&token| token == abi::INVALID_TOKEN) {
        Some(row) => Err(Error::InvalidLogits { row }),
        None => Ok(tokens),
    }
}
