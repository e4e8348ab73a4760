//! How a sequence's keys are cut into chunks, one a block. Launcher and kernel both ask here.
//!
//! A rule knows the sequence's length and nothing else: not its batch mates, not the device. Which rule it is depends on the cache's
//! elements alone. So a sequence is cut in the same places and its parts are added in the same order wherever it runs, and its bits
//! are the same.

use crate::abi::KV_BF16;

/// Keys up to which a sequence is one chunk: joining two would take longer than one block takes for the second half.
pub const WHOLE_TOKENS: u32 = 512;
/// Chunks that the join has room for: no rule cuts a sequence into more.
pub const MOST_CHUNKS: u32 = 64;
/// Keys that a block takes in one round of its warps, at most; chunks are multiples of it.
pub const ROUND_TOKENS: u32 = 128;

/// Where sequences of more than [`WHOLE_TOKENS`] keys are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Keys up to which chunks are short: alone on a device, such a sequence waits for its longest chunk and for little else.
    pub short_tokens: u32,
    /// Keys of a short chunk: a multiple of [`ROUND_TOKENS`].
    pub short_chunk_tokens: u32,
    /// Keys up to which chunks are of [`WHOLE_TOKENS`].
    pub middle_tokens: u32,
    /// Keys of a chunk past that, while there are few enough of them: a multiple of [`ROUND_TOKENS`].
    pub chunk_tokens: u32,
    /// Chunks of a sequence at most: 1 to [`MOST_CHUNKS`].
    pub max_chunks: u32,
}

impl Rule {
    /// Of bf16 caches. A block spends microseconds on latencies whatever its chunk, so that one sequence wants short chunks, and a full device
    /// long ones. H200, 2026-11-30, in us: 1 x 1024 and 256 x 1024 with chunks of 256, 384 and 512: 7.4, 8.7, 10.0 and 267, 259, 256; with chunks
    /// of 512 and 768 1 x 4096 11.6 and 13.7, 64 x 4096 253.4 and 250.4, 16 x 8192 133.8 and 130.9. 32 chunks are what the last block can join
    /// in a few microseconds, and with eight key heads 256 blocks, one wave on the devices of this class: one sequence of 32768 tokens takes
    /// 40.5 us with 32, 42.0 with 48, 46.9 with 64.
    pub const SIXTEEN_BITS: Rule = Rule {
        short_tokens: 1024,
        short_chunk_tokens: 384,
        middle_tokens: 4096,
        chunk_tokens: 768,
        max_chunks: 32,
    };
    /// Of int8 and fp8 caches, whose chunk of 512 keys is half the bytes for the same latencies. H200, 2026-11-25, int8, chunks of 640, 768,
    /// 896 and 1024: 64 sequences of 4096 tokens 155.4, 154.0, 152.2 and 154.3 us; eight 29.5, 25.3, 26.6 and 29.7 us; one 12.8, 14.0, 15.2
    /// and 16.3 us. 48 chunks of eight key heads fill three blocks a multiprocessor: one sequence of 131072 tokens takes 77.5 us, and 94.1 with
    /// 32.
    pub const EIGHT_BITS: Rule = Rule {
        short_tokens: 1024,
        short_chunk_tokens: 384,
        middle_tokens: 0,
        chunk_tokens: 896,
        max_chunks: 48,
    };
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
            && self.short_chunk_tokens > 0
            && self.short_chunk_tokens <= self.chunk_tokens
            && self.short_chunk_tokens.is_multiple_of(ROUND_TOKENS)
            && self.short_tokens <= self.max_chunks * self.short_chunk_tokens
            && self.middle_tokens <= self.max_chunks * WHOLE_TOKENS
    }

    /// Keys of each chunk of a sequence of `kv_len` keys.
    #[inline(always)]
    pub const fn tokens(&self, kv_len: u32) -> u32 {
        // What divides is kept from 0, or the compiler leaves a panic in.
        let max_chunks = if self.max_chunks == 0 { 1 } else { self.max_chunks };
        let tokens = if kv_len <= WHOLE_TOKENS {
            WHOLE_TOKENS
        } else if kv_len <= self.short_tokens {
            self.short_chunk_tokens
        } else if kv_len <= self.middle_tokens {
            WHOLE_TOKENS
        } else if kv_len <= self.chunk_tokens * max_chunks {
            self.chunk_tokens
        } else {
            kv_len.div_ceil(max_chunks * ROUND_TOKENS) * ROUND_TOKENS
        };
        if tokens == 0 { 1 } else { tokens }
    }

    /// Whether a sequence of `kv_len` keys has more than the most chunks of [`WHOLE_TOKENS`]: longer ones, whose blocks may be too few to fill a device.
    #[cfg(not(target_arch = "nvptx64"))]
    pub const fn has_long_chunks(&self, kv_len: u32) -> bool {
        kv_len > self.max_chunks * WHOLE_TOKENS
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
        let one = Rule {
            short_tokens: 0,
            short_chunk_tokens: 128,
            middle_tokens: 0,
            chunk_tokens: 128,
            max_chunks: 1,
        };
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
        let lens = [0, 1, 512, 513, 1024, 1025, 4096, 4097, 16384, 16385, 32768, 32769, 131_072];
        let chunks = |format| lens.map(|kv_len| Rule::of(format).chunks(kv_len));
        assert_eq!(chunks(KV_BF16), [1, 1, 1, 2, 3, 3, 8, 6, 22, 22, 32, 29, 32]);
        assert_eq!(chunks(KV_INT8), [1, 1, 1, 2, 3, 2, 5, 5, 19, 19, 37, 37, 47]);
        assert_eq!(chunks(KV_FP8), chunks(KV_INT8));
        let long = |format| lens.map(|kv_len| Rule::of(format).has_long_chunks(kv_len));
        assert_eq!(long(KV_BF16).map(u8::from), [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(long(KV_INT8).map(u8::from), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]);
    }

    #[test]
    fn rules_that_no_kernel_can_follow_are_told() {
        let good = Rule::EIGHT_BITS;
        for bad in [
            Rule { chunk_tokens: 0, ..good },
            Rule { chunk_tokens: 130, ..good },
            Rule { max_chunks: 0, ..good },
            Rule { max_chunks: MOST_CHUNKS + 1, ..good },
            Rule { max_chunks: 2, ..good },
            Rule { short_chunk_tokens: 0, ..good },
            Rule { short_chunk_tokens: 130, ..good },
            Rule { short_chunk_tokens: 1024, ..good },
            Rule { middle_tokens: 48 * WHOLE_TOKENS + 1, ..good },
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
