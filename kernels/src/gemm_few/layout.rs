//! How 4-bit weights lie in memory, and how `k` is split. Packer, launcher and kernel all ask here.
//!
//! `[ceil(n / 256) * 16][ceil(k / 128)]` pieces of 16 rows by 128 columns, each of contiguous bytes: a warp's part of a product, and along `k` a run of them that
//! one copy brings.
//!
//! ```text
//! nibbles   [2 halves of k][32 lanes][4 steps of 16 of k]   a word each: a lane's part of the step's fragment
//! scales    [groups][16 rows]   f16 or bf16
//! zeros     [groups][16 rows]   bf16 of -(zero point / 64); absent where all zero points are 8
//! ```
//!
//! Rows and columns past the end hold the zero point under a scale of zero.

use super::ROWS;

/// Elements of `k` a piece.
pub const TILE_K: u32 = 128;
/// Rows of a piece.
pub const PIECE_ROWS: u32 = 16;
/// Pieces of the rows that lie together.
pub const PIECES: u32 = ROWS / PIECE_ROWS;
/// Bytes of a piece's nibbles.
pub const NIBBLE_BYTES: u32 = PIECE_ROWS * TILE_K / 2;
/// Bytes of the nibbles of a half of `k`.
pub const HALF_BYTES: u32 = NIBBLE_BYTES / 2;
/// Bytes of a row's scale or zero point.
const META_BYTES: u32 = 2;
/// Blocks that run at a time on the devices of this class, about.
const BLOCKS: u32 = 132;
/// What starting and joining a split costs, in steps of 64 of `k`.
const SPLIT_COST: u32 = 6;
/// Splits at most.
pub const MAX_SPLITS: u32 = 16;

/// Bytes of a piece.
pub const fn piece_bytes(groups: u32, zeros: bool) -> u32 {
    NIBBLE_BYTES + groups * PIECE_ROWS * META_BYTES * if zeros { 2 } else { 1 }
}

/// Where a nibble of a piece is: its byte, and its shift within the little-endian word there.
pub const fn nibble(row: u32, k: u32) -> (u32, u32) {
    let (half, step, c) = (k / 64, k % 64 / 16, k % 16);
    let lane = row % 8 * 4 + c % 8 / 2;
    let word = (half * 32 + lane) * 4 + step;
    // The operand's register, and the half of it.
    let (register, odd) = (row / 8 + c / 8 * 2, c % 2);
    (word * 4, odd * 16 + register * 4)
}

/// Where the scale of a row of a piece is.
#[inline(always)]
pub const fn scale(group: u32, row: u32) -> u32 {
    NIBBLE_BYTES + (group * PIECE_ROWS + row) * META_BYTES
}

/// Where its zero point is.
#[inline(always)]
pub const fn zero(groups: u32, group: u32, row: u32) -> u32 {
    scale(groups + group, row)
}

/// Splits of `k`: steps of 64 elements (`k_steps`) of `tiles` tiles of rows are dealt to about `BLOCKS` blocks. Depends on the shape
/// of the weights alone, whatever they are made of.
pub const fn splits(row_tiles: u32, k_steps: u32) -> u32 {
    let (mut best, mut least, mut splits) = (1, u32::MAX, 1);
    while splits <= MAX_SPLITS && splits * 2 <= k_steps {
        let cost = (row_tiles * splits).div_ceil(BLOCKS) * (k_steps.div_ceil(splits) + SPLIT_COST);
        if cost < least {
            (best, least) = (splits, cost);
        }
        splits += 1;
    }
    best
}

/// The steps (each of `per` times 64 elements, `steps` of them) of split `split`: its first and one past its last.
#[inline(always)]
pub const fn split_steps(steps: u32, splits: u32, split: u32) -> (u32, u32) {
    // What is left over goes to the first ones, one each. Never 0: a division that can fail has no place in a kernel.
    let splits = if splits == 0 { 1 } else { splits };
    let (each, more) = (steps / splits, steps % splits);
    let first = split * each + if split < more { split } else { more };
    (first, first + each + if split < more { 1 } else { 0 })
}

/// `a / b`; 0 of nothing: a division that can fail has no place in a kernel.
#[inline(always)]
pub const fn divide(a: u32, b: u32) -> u32 {
    match a.checked_div(b) {
        Some(quotient) => quotient,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nibble_has_a_place_of_its_own() {
        let mut seen = vec![false; (PIECE_ROWS * TILE_K) as usize];
        for row in 0..PIECE_ROWS {
            for k in 0..TILE_K {
                let (byte, shift) = nibble(row, k);
                assert!(byte % 4 == 0 && shift % 4 == 0 && shift < 32);
                let place = &mut seen[(byte * 2 + shift / 4) as usize];
                assert!(!*place, "row {row}, k {k}");
                *place = true;
            }
        }
        assert!(seen.into_iter().all(|seen| seen));
    }

    #[test]
    fn splits_cover_k_and_fill_the_device() {
        let of = |n: u32, k: u32| splits(n.div_ceil(ROWS), k.div_ceil(64));
        assert_eq!([of(4096, 4096), of(14_336, 4096), of(4096, 14_336), of(28_672, 8192)], [8, 2, 8, 1]);
        for (steps, splits) in (1..200).flat_map(|steps| (1..=MAX_SPLITS).map(move |splits| (steps, splits)))
        {
            let mut next = 0;
            for split in 0..splits {
                let (first, end) = split_steps(steps, splits, split);
                assert_eq!(first, next);
                assert!(splits > steps || end > first);
                next = end;
            }
            assert_eq!(next, steps);
        }
        assert_eq!(of(64, 64), 1);
    }
}
