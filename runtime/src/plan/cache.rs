//! Bytes of keys and values: what the engine allocates, page by page.

use std::str::FromStr;

use serde::Serialize;

use tilewright_host::KvDType;

use super::{DeviceKind, product};
use crate::config::ModelConfig;
use crate::{Error, Result};

/// Lanes that the CPU device rounds keys of a page and elements of a value up to.
const CPU_LANES: usize = 16;

/// What keys and values are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KvFormat {
    /// f32, in the CPU device's panels: what the engine allocates there.
    F32,
    /// bf16, or fp16, which takes the same: what the engine allocates on a GPU.
    Bf16,
    /// Eight-bit integers, an f32 scale a token and head.
    Int8,
    /// fp8 e4m3, an f32 scale a token and head.
    Fp8,
}

impl KvFormat {
    /// As it is named on the command line.
    pub fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::Bf16 => "bf16",
            KvFormat::Int8 => "int8",
            KvFormat::Fp8 => "fp8",
        }
    }

    /// What an engine stores on a device.
    pub fn of(dtype: KvDType, kind: DeviceKind) -> KvFormat {
        match (dtype, kind) {
            (KvDType::Native, DeviceKind::Gpu) => KvFormat::Bf16,
            (KvDType::Native, DeviceKind::Cpu) => KvFormat::F32,
            (KvDType::Int8, _) => KvFormat::Int8,
            (KvDType::Fp8, _) => KvFormat::Fp8,
        }
    }

    fn is_quantised(self) -> bool {
        matches!(self, KvFormat::Int8 | KvFormat::Fp8)
    }

    /// Bytes of one token's key (or value) of one head.
    fn vector_bytes(self, head_dim: usize) -> usize {
        match self {
            KvFormat::F32 => 4 * head_dim,
            KvFormat::Bf16 => 2 * head_dim,
            KvFormat::Int8 | KvFormat::Fp8 => head_dim + 4,
        }
    }
}

impl FromStr for KvFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<KvFormat> {
        match text {
            "f32" | "fp32" => Ok(KvFormat::F32),
            "bf16" | "fp16" | "f16" => Ok(KvFormat::Bf16),
            "int8" => Ok(KvFormat::Int8),
            "fp8" => Ok(KvFormat::Fp8),
            _ => Err(Error::request("kv", "f32, bf16 (or fp16), int8 or fp8", format!("{text:?}"))),
        }
    }
}

/// A cache's sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CachePlan {
    /// What it holds.
    pub format: KvFormat,
    /// Tokens a page.
    pub page_size: usize,
    /// Bytes of one token's keys and values of all layers, without what pages add.
    pub token_bytes: u64,
    /// Bytes of a page of all layers, and of what it is widened to.
    pub page_bytes: u64,
    /// Tokens of a sequence.
    pub context: usize,
    /// Bytes of a sequence's tokens, without what pages add.
    pub sequence_bytes: u64,
    /// Whole pages that hold a sequence.
    pub sequence_pages: usize,
    /// Bytes of those pages: what the engine sets aside for a sequence.
    pub paged_bytes: u64,
    /// Of those, what a GPU's prompts read of a quantised cache: one layer's keys and values as bf16.
    pub widened_bytes: u64,
    /// Sequences.
    pub batch: usize,
    /// Bytes of all sequences' pages.
    pub batch_bytes: u64,
}

impl CachePlan {
    /// Sizes for `batch` sequences of `context` tokens on a device of a kind.
    ///
    /// # Errors
    /// A size of 0, or beyond 2^63 bytes.
    pub fn new(
        config: &ModelConfig,
        (format, kind): (KvFormat, DeviceKind),
        page_size: usize,
        context: usize,
        batch: usize,
    ) -> Result<CachePlan> {
        for (what, value) in [("page_size", page_size), ("context", context), ("batch", batch)] {
            if value == 0 {
                return Err(Error::request(what, "at least 1", 0));
            }
        }
        let (layers, heads, dim) = (config.layers, config.kv_heads, config.head_dim);
        let token_bytes = product(&[2, layers, heads, format.vector_bytes(dim)])?;
        let widened = match kind {
            DeviceKind::Gpu if format.is_quantised() => {
                product(&[2, heads, page_size, KvFormat::Bf16.vector_bytes(dim)])?
            }
            _ => 0,
        };
        let page_bytes = match format {
            // Keys stand in panels of sixteen tokens, values in rows of whole vectors.
            KvFormat::F32 => {
                let keys = product(&[layers, heads, page_size.next_multiple_of(CPU_LANES), dim, 4])?;
                let values = product(&[layers, heads, page_size, dim.next_multiple_of(CPU_LANES), 4])?;
                keys + values
            }
            _ => product(&[2, layers, heads, page_size, format.vector_bytes(dim)])? + widened,
        };
        let sequence_pages = context.div_ceil(page_size);
        let times =
            |bytes: u64, count: usize| product(&[usize::try_from(bytes).unwrap_or(usize::MAX), count]);
        let paged_bytes = times(page_bytes, sequence_pages)?;
        Ok(CachePlan {
            format,
            page_size,
            token_bytes,
            page_bytes,
            context,
            sequence_bytes: times(token_bytes, context)?,
            sequence_pages,
            paged_bytes,
            widened_bytes: times(widened, sequence_pages)?,
            batch,
            batch_bytes: times(paged_bytes, batch)?,
        })
    }

    /// Bytes of a sequence's pages that no token of it fills, and what rounding to whole vectors adds.
    pub fn slack_bytes(&self) -> u64 {
        self.paged_bytes.saturating_sub(self.sequence_bytes).saturating_sub(self.widened_bytes)
    }

    /// Tokens for [`crate::engine::EngineConfig::cache_tokens`].
    pub fn cache_tokens(&self) -> usize {
        self.sequence_pages.saturating_mul(self.page_size).saturating_mul(self.batch)
    }

    /// Sequences of `context` tokens whose pages fit in `room`.
    pub fn batch_in(&self, room: u64) -> u64 {
        room / self.paged_bytes.max(1)
    }

    /// Tokens a sequence at most where the pages of `batch` sequences share `room`.
    pub fn context_in(&self, room: u64) -> u64 {
        room / self.page_bytes.max(1) / self.batch as u64 * self.page_size as u64
    }
}
