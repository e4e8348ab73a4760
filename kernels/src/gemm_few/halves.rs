//! 8-bit weights for activations of 16 bits, as twice as many columns of 4 bits.
//!
//! `(code - zero) * scale = (code / 16 - zero / 16) * 16 * scale + (code % 16 - zero % 16) * scale`: a piece of upper halves is followed by that
//! of the lower ones, so that a product with activations that come twice, piece by piece, is one of 4-bit weights, with their kernels, splits and
//! order of sums. Each half less that of its zero point is a whole number below 16, exact in bf16, as the code less its zero point would be
//! (at most 255, of eight bits); but a nibble becomes bf16 by two instructions for a pair, for which a byte has too many bits: bf16 keeps seven
//! beside the leading one.
//!
//! ```text
//! weights      piece 0, upper | piece 0, lower | piece 1, upper | ...     each [16 rows, 128 columns]
//! activations  0 .. 127       | 0 .. 127       | 128 .. 255     | ...
//! ```

use half::{bf16, f16};

use super::{
    launch::{Packed, Plain},
    layout::TILE_K,
};

/// Columns of a tile.
const TILE: usize = TILE_K as usize;

/// 8-bit weights `[n, k]` as plain numbers.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a> {
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// Columns that share a scale, 32, 64 or a multiple of 128; the last group may be shorter.
    pub group_size: usize,
    /// `[n, k]`.
    pub values: &'a [u8],
    /// `[n, ceil(k / group_size)]`, which f16 or bf16 hold, and so 16 times each.
    pub scales: &'a [f32],
    /// Whether they are kept as f16.
    pub scales_f16: bool,
    /// `[n, ceil(k / group_size)]`.
    pub zeros: &'a [u8],
}

/// Columns of both halves of a row of `k`: of whole tiles.
pub fn packed_cols(k: usize) -> usize {
    2 * k.next_multiple_of(TILE)
}

/// The column of a row of `k` that a packed one is half of; past its end, none.
fn column(packed: usize, k: usize) -> Option<usize> {
    let col = packed / (2 * TILE) * TILE + packed % TILE;
    (col < k).then_some(col)
}

/// The activation that each packed column multiplies, of a row of `k` whose columns multiply `order`, or those of their own number. Columns past
/// the end are zeros, whatever they multiply.
pub fn order(order: Option<&[u32]>, k: usize) -> impl Iterator<Item = u32> + '_ {
    (0..packed_cols(k)).map(move |packed| match (column(packed, k), order) {
        (None, _) => 0,
        (Some(col), None) => col as u32,
        (Some(col), Some(order)) => order[col],
    })
}

/// Lays weights out for the kernel.
///
/// # Panics
/// As [`Packed::new`].
pub fn pack(bytes: &Bytes<'_>) -> Packed {
    let Bytes { n, k, group_size, .. } = *bytes;
    let (cols, of_row) = (packed_cols(k), k.div_ceil(group_size));
    assert_eq!(bytes.values.len(), n * k, "values of a packed matrix");
    let group = |row: usize, col: usize| row * of_row + col.min(k - 1) / group_size;
    let is_upper = |packed: usize| (packed / TILE).is_multiple_of(2);
    let half = |packed: usize, code: u8| if is_upper(packed) { code >> 4 } else { code & 15 };
    let value = |at: usize| {
        let (row, packed) = (at / cols, at % cols);
        let code = match column(packed, k) {
            Some(col) => bytes.values[row * k + col],
            None => bytes.zeros[group(row, k)],
        };
        half(packed, code)
    };
    let values: Vec<u8> = (0..n * cols).map(value).collect();
    let small = group_size.min(TILE);
    let (mut scales, mut zeros) = (Vec::new(), Vec::new());
    for row in 0..n {
        for packed in (0..cols).step_by(small) {
            let group = group(row, packed / (2 * TILE) * TILE + packed % TILE);
            let scale = bytes.scales[group] * if is_upper(packed) { 16.0 } else { 1.0 };
            scales.push(if bytes.scales_f16 {
                f16::from_f32(scale).to_bits()
            } else {
                bf16::from_f32(scale).to_bits()
            });
            zeros.push(half(packed, bytes.zeros[group]));
        }
    }
    Packed::new(&Plain {
        n,
        k: cols,
        group_size: small,
        values: &values,
        scales: &scales,
        zeros: Some(&zeros),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_come_twice_tile_by_tile() {
        let all: Vec<u32> = order(None, 192).collect();
        assert_eq!(all.len(), 512);
        assert_eq!([all[0], all[127], all[128], all[255], all[256], all[319]], [0, 127, 0, 127, 128, 191]);
        assert_eq!(all[320..384], [0; 64]);
        let turned: Vec<u32> = (0..192).rev().collect();
        assert_eq!(order(Some(&turned), 192).nth(256), Some(63));
    }
}
