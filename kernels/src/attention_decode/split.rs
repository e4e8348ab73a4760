//! How a sequence's keys are cut into chunks, one a block. Launcher and kernel both ask here.
//!
//! A rule knows the sequence's length and nothing else: not its batch mates, not the device. Which rule it is depends on the cache's
//! elements alone. So a sequence is cut in the same places and its parts are added in the same order wherever it runs, and its bits
//! are the same.

use crate::abi::KV_BF16;

/// Keys up to which a sequence is one chunk: joining two would take longer than one block takes for the second half.
pub const WHOLE_TOKENS: u32 = 512;
/// Keys of a short chunk.
pub const SHORT_CHUNK_TOKENS: u32 = 256;
/// Chunks that the join has room for: no rule cuts a sequence into more.
pub const MOST_CHUNKS: u32 = 64;
/// Keys that a block takes in one round of its warps, at most; chunks are multiples of it.
pub const ROUND_TOKENS: u32 = 128;

/// Where sequences of more than [`WHOLE_TOKENS`] keys are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Keys up to which chunks are short: alone on a device, such a sequence waits for its longest chunk and for little else.
    pub short_tokens: u32,
    /// Keys of a chunk past that, while there are few enough of them: a multiple of [`ROUND_TOKENS`].
    pub chunk_tokens: u32,
    /// Chunks of a sequence at most: 1 to [`MOST_CHUNKS`].
    pub max_chunks: u32,
}

impl Rule {
    /// Of bf16 caches. A block spends microseconds on latencies whatever its chunk. H200, 2026-11-25, 64 sequences of 4096 tokens:
    /// 257 us, and 266 with chunks of 256; one such sequence: 13.0 us and 12.3. 32 chunks are what the last block can join in a few
    /// microseconds, and with eight key heads 256 blocks, one wave on the devices of this class: one sequence of 32768 tokens takes
    /// 40.5 us with 32, 42.0 with 48, 46.9 with 64.
    pub const SIXTEEN_BITS: Rule = Rule { short_tokens: 1024, chunk_tokens: 512, max_chunks: 32 };
    /// Of int8 and fp8 caches, whose chunk of 512 keys is half the bytes for the same latencies. H200, 2026-11-25, int8, chunks of 640, 768,
    /// 896 and 1024: 64 sequences of 4096 tokens 155.4, 154.0, 152.2 and 154.3 us; eight 29.5, 25.3, 26.6 and 29.7 us; one 12.8, 14.0, 15.2
    /// and 16.3 us. 48 chunks of eight key heads fill three blocks a multiprocessor: one sequence of 131072 tokens takes 77.5 us, and 94.1 with
    /// 32.
    pub const EIGHT_BITS: Rule = Rule { short_tokens: 1024, chunk_tokens: 896, max_chunks: 48 };
    /// All that [`Rule::of`] answers, by [`Rule::index`].
    pub const ALL: [Rule; 2] = [Rule::SIXTEEN_BITS, Rule::EIGHT_BITS];

    /// Which of [`Rule::ALL`] a cache of `format` has.
    pub const fn index(format: u32) -> usize {
        if format == KV_BF16 { 0 } else { 1 }
    }

    /// The rule of a cache of `format`.
    pub const fn of(format: u32) -> Rule {
        Rule::ALL[Rule::index(format)]
    }

    /// Whether the kernel can follow it.
    pub const fn holds(&self) -> bool {
        self.chunk_tokens > 0
            && self.chunk_tokens <= 1 << 24
            && self.chunk_tokens.is_multiple_of(ROUND_TOKENS)
            && self.max_chunks > 0
            && self.max_chunks <= MOST_CHUNKS
            && self.short_tokens <= self.max_chunks * SHORT_CHUNK_TOKENS
    }

    /// Keys of each chunk of a sequence of `kv_len` keys.
    #[inline(always)]
    pub const fn tokens(&self, kv_len: u32) -> u32 {
        // What divides is kept from 0, or the compiler leaves a panic in.
        let max_chunks = if self.max_chunks == 0 { 1 } else { self.max_chunks };
        let tokens = if kv_len <= WHOLE_TOKENS {
            WHOLE_TOKENS
        } else if kv_len <= self.short_tokens {
            SHORT_CHUNK_TOKENS
        } else if kv_len <= self.chunk_tokens * max_chunks {
            self.chunk_tokens
        } else {
            kv_len.div_ceil(max_chunks * ROUND_TOKENS) * ROUND_TOKENS
        };
        if tokens == 0 { 1 } else { tokens }
    }

    /// Whether a sequence of `kv_len` keys has so many that its chunks are longer than those of others.
    #[cfg(not(target_arch = "nvptx64"))]
    pub const fn has_long_chunks(&self, kv_len: u32) -> bool {
        kv_len > WHOLE_TOKENS && self.tokens(kv_len) > self.chunk_tokens
    }

    /// Chunks of a sequence of `kv_len` keys; one for none, which writes the zeros.
    #[inline(always)]
    pub const fn chunks(&self, kv_len: u32) -> u32 {
        if kv_len == 0 { 1 } else { kv_len.div_ceil(self.tokens(kv_len)) }
    }
}

const _: () = assert!(Rule::SIXTEEN_BITS.holds() && Rule::EIGHT_BITS.holds());

/// The first key that any of a sequence's `queries` may see under `window`.
#[inline(always)]
pub const fn first_visible(kv_len: u32, queries: u32, window: u32) -> u32 {
    // Of the keys up to its own, the first query sees the last `window`.
    if window == 0 { 0 } else { (kv_len + 1).saturating_sub(queries.saturating_add(window)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{KV_FP8, KV_INT8};

    #[test]
    fn chunks_cover_the_keys_and_are_few() {
        let one = Rule { short_tokens: 0, chunk_tokens: 128, max_chunks: 1 };
        for rule in [Rule::SIXTEEN_BITS, Rule::EIGHT_BITS, one] {
            assert!(rule.holds());
            for kv_len in (0..70_000).chain((70_000..(1 << 31) - 1).step_by(9_999_991)) {
                let (tokens, count) = (rule.tokens(kv_len), rule.chunks(kv_len));
                assert!((1..=rule.max_chunks).contains(&count), "{kv_len}: {count} chunks");
                assert_eq!(tokens % ROUND_TOKENS, 0);
                assert!(u64::from(count) * u64::from(tokens) >= u64::from(kv_len));
                assert!(kv_len == 0 || (count - 1) * tokens < kv_len, "{kv_len}: the last chunk is empty");
            }
        }
        let lens = [0, 1, 512, 513, 1024, 1025, 4096, 16384, 16385, 32768, 32769, 131_072];
        let chunks = |format| lens.map(|kv_len| Rule::of(format).chunks(kv_len));
        assert_eq!(chunks(KV_BF16), [1, 1, 1, 3, 4, 3, 8, 32, 26, 32, 29, 32]);
        assert_eq!(chunks(KV_INT8), [1, 1, 1, 3, 4, 2, 5, 19, 19, 37, 37, 47]);
        assert_eq!(chunks(KV_FP8), chunks(KV_INT8));
        let long = |format| lens.map(|kv_len| Rule::of(format).has_long_chunks(kv_len));
        assert_eq!(long(KV_BF16).map(u8::from), [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(long(KV_INT8).map(u8::from), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn rules_that_no_kernel_can_follow_are_told() {
        let good = Rule::EIGHT_BITS;
        for bad in [
            Rule { chunk_tokens: 0, ..good },
            Rule { chunk_tokens: 130, ..good },
            Rule { max_chunks: 0, ..good },
            Rule { max_chunks: MOST_CHUNKS + 1, ..good },
            Rule { max_chunks: 3, ..good },
        ] {
            assert!(!bad.holds(), "{bad:?}");
        }
    }

    #[test]
    fn a_window_counts_from_the_first_query() {
        assert_eq!(first_visible(100, 1, 0), 0);
        assert_eq!(first_visible(100, 1, 1), 99);
        assert_eq!(first_visible(100, 4, 10), 87);
        assert_eq!(first_visible(5, 4, 10), 0);
        assert_eq!(first_visible(0, 1, 1), 0);
        assert_eq!(first_visible(7, 1, u32::MAX), 0);
    }
}
