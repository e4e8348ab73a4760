//! How 4-bit weights lie in memory, and how steps of `k` are dealt to blocks. Packer, launcher and kernel all ask here.
//!
//! `[ceil(n / 256)][ceil(k / 128)]` tiles, each of contiguous bytes that one copy brings:
//!
//! ```text
//! nibbles   [4 warpgroups][2 halves of k][128 threads][4 steps of 16 of k]   a word each: a thread's part of the step's fragment
//! scales    [groups][256 rows]   f16 or bf16
//! zeros     [groups][256 rows]   bf16 of -(128 + zero point); absent where all zero points are 8
//! ```
//!
//! Rows and columns past the end hold the zero point under a scale of zero.

use super::ROWS;

/// Elements of `k` a tile.
pub const TILE_K: u32 = 128;
/// Bytes of a tile's nibbles.
pub const NIBBLE_BYTES: u32 = ROWS * TILE_K / 2;
/// Bytes of a row's scale or zero point.
const META_BYTES: u32 = 2;
/// Blocks that run at a time on the devices of this class, about.
const BLOCKS: u32 = 132;
/// What starting a portion and joining its sums costs, in steps.
const PORTION_COST: u32 = 3;
/// Steps from which on a portion may have parts of several tiles.
const LONG_PORTION: u32 = 8;
/// Steps at least.
const SHORT_PORTION: u32 = 2;

/// Bytes of a tile.
pub const fn int4_tile_bytes(groups: u32, zeros: bool) -> u32 {
    NIBBLE_BYTES + groups * ROWS * META_BYTES * if zeros { 2 } else { 1 }
}

/// Where a nibble of a tile is: its byte, and its shift within the little-endian word there.
pub const fn nibble(row: u32, k: u32) -> (u32, u32) {
    let (warpgroup, warp, r) = (row / 64, row % 64 / 16, row % 16);
    let (half, step, c) = (k / 64, k % 64 / 16, k % 16);
    let lane = r % 8 * 4 + c % 8 / 2;
    let thread = warp * 32 + lane;
    let word = ((warpgroup * 2 + half) * 128 + thread) * 4 + step;
    // The operand's register, and the half of it.
    let (register, odd) = (r / 8 + c / 8 * 2, c % 2);
    (word * 4, odd * 16 + register * 4)
}

/// Where the scale of a row is in a tile, or a half of one in shared memory, of `rows` rows.
#[inline(always)]
pub const fn scale(rows: u32, group: u32, row: u32) -> u32 {
    rows * (TILE_K / 2) + (group * rows + row) * META_BYTES
}

/// Where its zero point is.
#[inline(always)]
pub const fn zero(rows: u32, groups: u32, group: u32, row: u32) -> u32 {
    scale(rows, groups + group, row)
}

/// Portions that the `steps` steps of each of `row_tiles` tiles of rows are dealt to, one a block: about [`BLOCKS`] of them, so that all
/// multiprocessors have as much to do. Depends on the shape of the weights alone.
pub const fn portions(row_tiles: u32, steps: u32) -> u32 {
    let all = row_tiles * steps;
    if all >= BLOCKS * LONG_PORTION {
        return BLOCKS;
    }
    // A portion with parts of two tiles has sums to leave twice: short ones are fractions of a tile.
    let (mut best, mut least, mut splits) = (row_tiles, u32::MAX, 1);
    while splits == 1 || splits * SHORT_PORTION <= steps {
        let portions = row_tiles * splits;
        let cost = portions.div_ceil(BLOCKS) * (steps.div_ceil(splits) + PORTION_COST);
        if cost < least {
            (best, least) = (portions, cost);
        }
        splits += 1;
    }
    best
}

/// `a / b`; 0 of nothing: a division that can fail has no place in a kernel.
#[inline(always)]
pub const fn divide(a: u32, b: u32) -> u32 {
    match a.checked_div(b) {
        Some(quotient) => quotient,
        None => 0,
    }
}

/// The first of `all` steps that portion `portion` of `portions` has. Portions differ by a step at most.
#[inline(always)]
pub const fn portion_start(all: u32, portions: u32, portion: u32) -> u32 {
    // `all * portion / portions`, by way of numbers that stay small.
    let each = divide(all, portions);
    each * portion + divide((all - each * portions) * portion, portions)
}

/// The portion that has step `step`; `all * portions` is below 2^32.
#[inline(always)]
pub const fn portion_of(all: u32, portions: u32, step: u32) -> u32 {
    // The last one with `all * portion < (step + 1) * portions`.
    divide((step + 1) * portions - 1, all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nibble_has_a_place_of_its_own() {
        let mut seen = vec![false; (ROWS * TILE_K) as usize];
        for row in 0..ROWS {
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
    fn portions_fill_the_device() {
        let of = |n: u32, k: u32| portions(n.div_ceil(ROWS), k.div_ceil(TILE_K));
        let shapes =
            [of(4096, 4096), of(14_336, 4096), of(4096, 14_336), of(28_672, 8192), of(128_256, 4096)];
        assert_eq!(shapes, [128, 132, 132, 132, 132]);
        assert_eq!([of(64, 64), of(256, 256), of(256, 512), of(512, 128)], [1, 1, 2, 2]);
    }

    #[test]
    fn portions_cover_all_steps() {
        for (all, portions) in (1..200).flat_map(|all| (1..=all).map(move |portions| (all, portions))) {
            let mut next = 0;
            for portion in 0..portions {
                assert_eq!(portion_start(all, portions, portion), next);
                let end = portion_start(all, portions, portion + 1);
                assert!(end > next && end - next <= all.div_ceil(portions));
                for step in next..end {
                    assert_eq!(portion_of(all, portions, step), portion, "step {step} of {all}");
                }
                next = end;
            }
            assert_eq!(next, all);
        }
    }
}
