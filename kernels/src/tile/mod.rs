//! Shared-memory tiles of bf16: where a row's 16-byte chunks lie.
//!
//! `ldmatrix` reads, per phase, eight chunks of the same column from eight consecutive rows; copies write the chunks of a row
//! side by side. Rows of multiples of 64 bytes put some or all of those eight chunks on the same banks, so a chunk's column is
//! XORed with bits of its row: then both hit all 32 banks once.

#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
mod accumulators;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub(crate) mod fragment;
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub(crate) use accumulators::{Accumulators, OfF16};
#[cfg(any(target_feature = "sm_90a", all(feature = "emulation", not(target_arch = "nvptx64"))))]
pub(crate) mod queue;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
mod ring;
#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub use ring::Ring;

/// Bytes of a chunk: eight bf16, the unit of `cp.async` and of an `ldmatrix` row.
pub const CHUNK_BYTES: u32 = 16;

/// Byte offset of chunk `chunk` of row `row` in a tile whose rows are `CHUNKS` chunks (a multiple of 4) long.
#[inline(always)]
pub const fn swizzle<const CHUNKS: u32>(row: u32, chunk: u32) -> u32 {
    const { assert!(CHUNKS.is_multiple_of(4)) };
    // Where rows end in half a line of 128 bytes, neighbours begin in different halves: the row's lowest bit already tells them
    // apart, and an XOR of three bits would leave the row.
    let mask = if CHUNKS.is_multiple_of(8) { row & 7 } else { (row >> 1) & 3 };
    (row * CHUNKS + (chunk ^ mask)) * CHUNK_BYTES
}

/// As [`swizzle`] of row `row + own_row` and chunk `chunk + own_chunk`, for a `row` that is a multiple of 8, an even `chunk`, and
/// an `own_chunk` of 0 or 1: the lane's own part, which is the same for every row and every group of chunks, and a part that is
/// the same in all lanes. A kernel keeps a few of the former in registers; the latter become offsets in its instructions.
#[inline(always)]
pub const fn swizzle_own<const CHUNKS: u32>(row: u32, chunk: u32, own_row: u32, own_chunk: u32) -> u32 {
    let group = if CHUNKS.is_multiple_of(8) { 8 } else { 4 };
    swizzle::<CHUNKS>(own_row, chunk % group + own_chunk)
        + (row * CHUNKS + chunk / group * group) * CHUNK_BYTES
}

/// Bytes of a tile of bf16.
pub const fn tile_bytes(rows: u32, cols: u32) -> u32 {
    rows * cols * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<const CHUNKS: u32>() {
        let rows = 128;
        let mut seen = vec![false; (rows * CHUNKS) as usize];
        for row in 0..rows {
            for chunk in 0..CHUNKS {
                let offset = swizzle::<CHUNKS>(row, chunk);
                assert_eq!(offset % CHUNK_BYTES, 0);
                let slot = &mut seen[(offset / CHUNK_BYTES) as usize];
                assert!(!*slot, "row {row} chunk {chunk} of {CHUNKS} falls on another");
                *slot = true;
                assert_eq!(offset / (CHUNKS * CHUNK_BYTES), row, "a chunk stays in its row");
            }
        }
        assert!(seen.iter().all(|&s| s));
        let banks_hit = |offsets: &mut dyn Iterator<Item = u32>| {
            let mut hit = [false; 8];
            offsets.for_each(|o| hit[(o / CHUNK_BYTES % 8) as usize] = true);
            hit.iter().all(|&h| h)
        };
        for first in (0..rows).step_by(8) {
            for chunk in 0..CHUNKS {
                let mut phase = (first..first + 8).map(|row| swizzle::<CHUNKS>(row, chunk));
                assert!(banks_hit(&mut phase), "ldmatrix of rows {first}.., chunk {chunk} of {CHUNKS}");
            }
        }
        for first in (0..rows * CHUNKS).step_by(8) {
            let mut phase = (first..first + 8).map(|i| swizzle::<CHUNKS>(i / CHUNKS, i % CHUNKS));
            assert!(banks_hit(&mut phase), "copy of chunks {first}.. of {CHUNKS}");
        }
    }

    fn check_own<const CHUNKS: u32>() {
        for (row, own_row) in (0..64).step_by(8).flat_map(|row| (0..16).map(move |own| (row, own))) {
            for chunk in 0..CHUNKS {
                let (even, own) = (chunk & !1, chunk & 1);
                assert_eq!(
                    swizzle_own::<CHUNKS>(row, even, own_row, own),
                    swizzle::<CHUNKS>(row + own_row, chunk),
                    "row {row} + {own_row}, chunk {chunk} of {CHUNKS}"
                );
            }
        }
    }

    #[test]
    fn a_lane_s_own_part_adds_up_to_the_whole() {
        check_own::<4>();
        check_own::<8>();
        check_own::<12>();
        check_own::<16>();
        check_own::<24>();
        check_own::<32>();
    }

    #[test]
    fn swizzles_are_bijections_without_bank_conflicts() {
        check::<4>();
        check::<8>();
        check::<12>();
        check::<24>();
        check::<32>();
        check::<16>();
    }
}
