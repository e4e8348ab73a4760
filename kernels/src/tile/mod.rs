//! Shared-memory tiles of bf16: where a row's 16-byte chunks lie.
//!
//! `ldmatrix` reads, per phase, eight chunks of the same column from eight consecutive rows; copies write the chunks of a row
//! side by side. Rows of 64, 128 or 256 bytes put those eight chunks on the same banks, so a chunk's column is XORed with bits
//! of its row: then both hit all 32 banks once.

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub(crate) mod fragment;

/// Bytes of a chunk: eight bf16, the unit of `cp.async` and of an `ldmatrix` row.
pub const CHUNK_BYTES: u32 = 16;

/// Byte offset of chunk `chunk` of row `row` in a tile whose rows are `CHUNKS` chunks (4, 8 or 16) long.
#[inline(always)]
pub const fn swizzle<const CHUNKS: u32>(row: u32, chunk: u32) -> u32 {
    // Two rows of four chunks share a 128-byte line, so there the row's lowest bit already tells them apart.
    let mask = if CHUNKS == 4 { (row >> 1) & 3 } else { row & 7 };
    (row * CHUNKS + (chunk ^ mask)) * CHUNK_BYTES
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

    #[test]
    fn swizzles_are_bijections_without_bank_conflicts() {
        check::<4>();
        check::<8>();
        check::<16>();
    }
}
