//! How a sequence's keys are cut into chunks, one a block. Launcher and kernel both ask here.
//!
//! The rule knows the sequence's length and nothing else: not its batch mates, not the device. So a sequence is cut in the same
//! places and its parts are added in the same order wherever it runs, and its bits are the same.

/// Keys up to which a sequence is one chunk: joining two would take longer than one block takes for the second half.
pub const WHOLE_TOKENS: u32 = 512;
/// Keys up to which chunks are short: alone on a device, such a sequence waits for its longest chunk and for little else.
pub const SHORT_TOKENS: u32 = 1024;
/// Keys of a short chunk.
pub const SHORT_CHUNK_TOKENS: u32 = 256;
/// Keys of a chunk while there are few enough of them. A block spends microseconds on latencies whatever its chunk. H200, 2026-11-25, 64
/// sequences of 4096 tokens: 257 us, and 266 with chunks of 256; one such sequence: 13.0 us and 12.3.
pub const CHUNK_TOKENS: u32 = 512;
/// Chunks of a sequence at most: what the last block can join in a few microseconds, and with eight key heads 256 blocks, which are
/// one wave on the devices of this class. H200, 2026-11-25, one sequence of 32768 tokens: 40.5 us with 32, 42.0 with 48, 46.9 with 64.
pub const MAX_CHUNKS: u32 = 32;
/// Keys that a block takes in one round of its warps, at most; chunks are multiples of it.
pub const ROUND_TOKENS: u32 = 128;

/// Keys of each chunk of a sequence of `kv_len` keys.
#[inline(always)]
pub const fn chunk_tokens(kv_len: u32) -> u32 {
    if kv_len <= WHOLE_TOKENS {
        WHOLE_TOKENS
    } else if kv_len <= SHORT_TOKENS {
        SHORT_CHUNK_TOKENS
    } else if kv_len <= CHUNK_TOKENS * MAX_CHUNKS {
        CHUNK_TOKENS
    } else {
        kv_len.div_ceil(MAX_CHUNKS * ROUND_TOKENS) * ROUND_TOKENS
    }
}

/// Chunks of a sequence of `kv_len` keys; one for none, which writes the zeros.
#[inline(always)]
pub const fn chunks(kv_len: u32) -> u32 {
    if kv_len == 0 { 1 } else { kv_len.div_ceil(chunk_tokens(kv_len)) }
}

/// The first key that any of a sequence's `queries` may see under `window`.
#[inline(always)]
pub const fn first_visible(kv_len: u32, queries: u32, window: u32) -> u32 {
    // Of the keys up to its own, the first query sees the last `window`.
    if window == 0 { 0 } else { (kv_len + 1).saturating_sub(queries.saturating_add(window)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_keys_and_are_few() {
        for kv_len in (0..70_000).chain((70_000..(1 << 31) - 1).step_by(9_999_991)) {
            let (tokens, count) = (chunk_tokens(kv_len), chunks(kv_len));
            assert!((1..=MAX_CHUNKS).contains(&count), "{kv_len}: {count} chunks");
            assert_eq!(tokens % ROUND_TOKENS, 0);
            assert!(u64::from(count) * u64::from(tokens) >= u64::from(kv_len));
            assert!(kv_len == 0 || (count - 1) * tokens < kv_len, "{kv_len}: the last chunk is empty");
        }
        assert_eq!(
            [0, 1, 512, 513, 1024, 1025, 4096, 16384, 16385, 131_072].map(chunks),
            [1, 1, 1, 3, 4, 3, 8, 32, 26, 32]
        );
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
