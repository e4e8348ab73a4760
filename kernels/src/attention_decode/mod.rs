//! Attention of the last few tokens of each sequence over a paged cache, at the speed of reading the cache once.
//!
//! A block owns one chunk of keys of one key head; all query rows that share the head (its query heads, times the tokens of a
//! draft) are the columns of its products, so each key and value is read once for all of them. Products are transposed,
//! S^T = K Q^T and O^T = V^T P^T: keys and dims fill the 16 rows of an `mma`, and 8 query rows are enough to fill its columns.
//!
//! ```text
//! warp w   keys [16w, 16w+16) of each round (32 a warp where rows are short), by a ring of its own: no block barrier in the loop
//! copies   page ids | K0 V0 | K1 V1 | K2 V2 | ...       ids a tile ahead of the copies, copies three tiles ahead of the products
//! compute                   | S0 softmax O0 | S1 ...    each warp its own maxima and sums
//! block    the four warps meet in shared memory, in ascending order
//! device   the last block of (sequence, key head, row tile) joins the chunks, in ascending order
//! ```
//!
//! Where a chunk ends and which warp takes which key depend on the sequence's length and the cache's elements alone ([`split`]), so a sequence has the
//! same bits alone and in any batch. Quantised caches are widened in registers, exactly: an 8-bit element is an f16 but for a power of
//! two, its key's scale goes into the score and its value's into the exponential. Shapes: head dim 64 or 128, any page size, any group.
//!
//! Keys and values, which a step reads once, are the first that the L2 lets go of: what chunks leave each other and page tables stay. H200,
//! 2026-11-30: 0.2% to 6% faster in bf16, 64 x 4096 259.1 us instead of 260.8 and 1 x 1024 7.26 instead of 7.72.
//!
//! [`APPENDING`] does [`rope_append`](crate::rope_append)'s part too, where a sequence has one query: see `newest`.
//!
//! Source: Dao et al., "Flash-Decoding for long-context inference", 2023; Milakov and Gimelshein, "Online normalizer calculation
//! for softmax", 2018; the last-block join is that of Harris, "Optimizing parallel reduction in CUDA" and its successors.

use crate::abi::{KV_BF16, KV_FP8, KV_INT8, KernelSpec};

pub mod split;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod convert;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod item;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod join;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod kernel;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod newest;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod products;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod ring;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod softmax;

/// Threads a block.
pub const THREADS: u32 = 128;
pub(crate) const WARPS: u32 = THREADS / 32;
/// Tiles of keys and values in a warp's ring. With 8 KiB a tile and three blocks a multiprocessor, 96 KiB are in flight while
/// every warp computes: at 33 bytes a nanosecond and multiprocessor, twice what a latency of 1.2 microseconds asks for.
pub const STAGES: u32 = 2;

/// Bytes of a row of the cache.
pub const fn row_bytes(format: u32, head_dim: u32) -> u32 {
    if format == KV_BF16 { head_dim * 2 } else { head_dim }
}

/// What a block keeps in shared memory.
#[derive(Debug, Clone, Copy)]
pub struct SharedPlan {
    /// Keys of a warp's tile.
    pub tile_keys: u32,
    /// Query rows of a block.
    pub rows: u32,
    /// Bytes of a row of the cache.
    pub row_bytes: u32,
    /// Elements of a head.
    pub head_dim: u32,
}

impl SharedPlan {
    /// Bytes of a tile of keys, and of one of values.
    pub const fn tile_bytes(&self) -> u32 {
        self.tile_keys * self.row_bytes
    }
    /// Bytes of a warp's ring. Its parts of the merge and the chunks' sums of the join reuse the rings.
    pub const fn ring_bytes(&self) -> u32 {
        STAGES * 2 * self.tile_bytes()
    }
    /// Bytes from one warp's ring to the next: room for its part of the merge too, and rows stay aligned to their length.
    pub const fn ring_stride(&self) -> u32 {
        let merge_bytes = (self.rows * self.merge_row() * 4).next_multiple_of(256);
        if merge_bytes > self.ring_bytes() { merge_bytes } else { self.ring_bytes() }
    }
    /// f32 a row of a warp's output: four more than the head, so that the rows that lanes write together fall on different banks.
    pub const fn merge_row(&self) -> u32 {
        self.head_dim + 4
    }
    /// f32 `[warps, rows, 2]`: each warp's maxima and sums.
    pub const fn merge_sums(&self) -> u32 {
        WARPS * self.ring_stride()
    }
    /// u32: whether this block is the last of its sequence.
    pub const fn is_last(&self) -> u32 {
        self.merge_sums() + WARPS * self.rows * 8
    }
    /// All of it.
    pub const fn bytes(&self) -> u32 {
        self.is_last() + 16
    }
    const fn holds(&self) -> bool {
        // 99 KiB is what a block can have on the smallest devices from sm_80 on.
        self.rows * split::MOST_CHUNKS * 8 <= WARPS * self.ring_stride()
            && WARPS * self.tile_keys <= split::ROUND_TOKENS
            && self.bytes() <= 99 << 10
    }
}

/// One entry of the family.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    /// How it is launched.
    pub spec: KernelSpec,
    /// The same entry, for long chunks: see [`Variant::spec_for`].
    spread: KernelSpec,
    /// [`KV_BF16`], [`KV_INT8`] or [`KV_FP8`].
    pub format: u32,
    /// 64 or 128.
    pub head_dim: u32,
    /// Query rows of a block.
    pub rows: u32,
}

/// Keys of a warp's tile: 4 or 8 KiB of keys and values.
pub const fn tile_keys(format: u32, head_dim: u32) -> u32 {
    if row_bytes(format, head_dim) == 256 { 16 } else { 32 }
}

const fn variant(name: &'static str, format: u32, head_dim: u32, rows: u32) -> Variant {
    let row_bytes = row_bytes(format, head_dim);
    let plan = SharedPlan { tile_keys: tile_keys(format, head_dim), rows, row_bytes, head_dim };
    assert!(plan.holds());
    // As many blocks as registers allow: a block spends microseconds on loads that wait for each other and on its fence, during
    // which the others must keep the memory busy.
    let min_blocks = match (rows, row_bytes) {
        (8, 64) => 4,
        (8, _) => 3,
        _ => 2,
    };
    let spec = KernelSpec {
        name,
        threads: THREADS,
        min_blocks,
        shared_bytes: plan.bytes(),
        allowance: None,
        starts_early: true,
        waits_in_row: false,
        cooperative: false,
        spreads: false,
    };
    Variant { spec, spread: KernelSpec { spreads: true, ..spec }, format, head_dim, rows }
}

impl Variant {
    /// How it is launched where chunks are long ([`split::Rule::has_long_chunks`]) or aren't. Long ones are spread over the device: three on one multiprocessor
    /// and one on another take longer than two on each. Short ones gain more from starting early wherever there is room. H200, 2026-11-30: one
    /// sequence of 32768 tokens 38.6 us instead of 47.7; a step of 32 short ones 1% slower if they are spread.
    pub const fn spec_for(&self, long_chunks: bool) -> &KernelSpec {
        if long_chunks { &self.spread } else { &self.spec }
    }
}

/// Every entry. Rows of a batch have the same bits in each.
pub static VARIANTS: [Variant; 12] = [
    variant("attention_decode_bf16_hd64_rows8", KV_BF16, 64, 8),
    variant("attention_decode_bf16_hd64_rows16", KV_BF16, 64, 16),
    variant("attention_decode_bf16_hd128_rows8", KV_BF16, 128, 8),
    variant("attention_decode_bf16_hd128_rows16", KV_BF16, 128, 16),
    variant("attention_decode_int8_hd64_rows8", KV_INT8, 64, 8),
    variant("attention_decode_int8_hd64_rows16", KV_INT8, 64, 16),
    variant("attention_decode_int8_hd128_rows8", KV_INT8, 128, 8),
    variant("attention_decode_int8_hd128_rows16", KV_INT8, 128, 16),
    variant("attention_decode_fp8_hd64_rows8", KV_FP8, 64, 8),
    variant("attention_decode_fp8_hd64_rows16", KV_FP8, 64, 16),
    variant("attention_decode_fp8_hd128_rows8", KV_FP8, 128, 8),
    variant("attention_decode_fp8_hd128_rows16", KV_FP8, 128, 16),
];

/// Of one query a sequence over a bf16 cache, which rotate it and append its key and value themselves: see
/// [`AttentionDecodeAppend`](crate::abi::AttentionDecodeAppend).
pub static APPENDING: [Variant; 2] = [
    variant("attention_decode_append_hd64", KV_BF16, 64, 8),
    variant("attention_decode_append_hd128", KV_BF16, 128, 8),
];

/// That of [`APPENDING`] which does what the entry called `name` does behind an append, if there is one.
pub fn appending(name: &str) -> Option<&'static Variant> {
    let of = VARIANTS.iter().find(|v| v.spec.name == name)?;
    let kind = |v: &Variant| (v.format, v.head_dim, v.rows);
    APPENDING.iter().find(|v| kind(v) == kind(of))
}

/// The entry for a cache of `format` and `head_dim` and spans of at most `rows` query rows (query heads of a key head times
/// tokens): the narrowest that holds them, else the widest. `None` for a format or a head dim that has none.
pub fn select(format: u32, head_dim: u32, rows: u32) -> Option<&'static Variant> {
    let fits = |v: &&Variant| v.format == format && v.head_dim == head_dim;
    let all = || VARIANTS.iter().filter(fits);
    all().filter(|v| v.rows >= rows).min_by_key(|v| v.rows).or_else(|| all().max_by_key(|v| v.rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_entry_is_selected() {
        let rows = |format, head_dim, rows| select(format, head_dim, rows).map(|v| v.rows);
        assert_eq!(rows(KV_BF16, 128, 1), Some(8));
        assert_eq!(rows(KV_BF16, 128, 8), Some(8));
        assert_eq!(rows(KV_INT8, 64, 9), Some(16));
        assert_eq!(rows(KV_FP8, 64, 500), Some(16));
        assert_eq!(rows(KV_BF16, 96, 1), None);
        assert_eq!(rows(3, 64, 1), None);
    }

    #[test]
    fn names_say_what_an_entry_is() {
        for v in &VARIANTS {
            let format = ["bf16", "int8", "fp8"][v.format as usize];
            assert_eq!(v.spec.name, format!("attention_decode_{format}_hd{}_rows{}", v.head_dim, v.rows));
        }
    }
}
