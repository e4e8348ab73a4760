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
    layout::TILE_K,
    pack::{Packed, Pieces, Rows, Source, groups_of_piece},
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

/// The upper or the lower half of a code in the piece of that number.
fn half(step: usize, code: u8) -> u8 {
    if step.is_multiple_of(2) { code >> 4 } else { code & 15 }
}

impl Bytes<'_> {
    /// Where the scale and the zero point of a column are, or of what is past the last.
    fn place(&self, row: usize, col: usize) -> usize {
        row * self.k.div_ceil(self.group_size) + col.min(self.k - 1) / self.group_size
    }
}

impl Source for Bytes<'_> {
    fn codes(&self, row: usize, step: usize, codes: &mut [u8; TILE]) {
        let first = step / 2 * TILE;
        let given = &self.values[row * self.k + first..][..TILE.min(self.k - first)];
        codes[..given.len()].copy_from_slice(given);
        codes[given.len()..].fill(self.zeros[self.place(row, self.k)]);
        codes.iter_mut().for_each(|code| *code = half(step, *code));
    }

    fn group(&self, row: usize, step: usize, group: usize) -> Option<(u16, u8)> {
        let at = self.place(row, step / 2 * TILE + group * self.group_size);
        let scale = self.scales[at] * if step.is_multiple_of(2) { 16.0 } else { 1.0 };
        let scale = match self.scales_f16 {
            true => f16::from_f32(scale).to_bits(),
            false => bf16::from_f32(scale).to_bits(),
        };
        Some((scale, half(step, self.zeros[at])))
    }
}

/// Lays weights out for the kernel.
///
/// # Panics
/// As [`Packed::new`].
pub fn pack(bytes: &Bytes<'_>, rows: Rows) -> Packed {
    let Bytes { n, k, group_size, .. } = *bytes;
    let count = n * k.div_ceil(group_size);
    assert_eq!(bytes.values.len(), n * k, "values of a packed matrix");
    assert_eq!([bytes.scales.len(), bytes.zeros.len()], [count; 2], "scales and zeros of a packed matrix");
    let groups = groups_of_piece(group_size).expect("a group size that has a kernel");
    // Whose halves both are 8.
    let zeros = bytes.zeros.iter().any(|&zero| zero != 0x88);
    Pieces { source: bytes, rows, n, steps: packed_cols(k) / TILE, groups, zeros }.pack()
}

#[cfg(test)]
mod tests {
    use super::{
        super::pack::{
            Plain,
            tests::{drawn, plainly},
        },
        *,
    };

    const SHAPES: [(usize, usize, usize); 5] =
        [(16, 128, 128), (304, 192, 64), (48, 64, 32), (272, 320, 128), (32, 576, 256)];

    /// Every half of every code, as weights of four bits.
    fn pack_plainly(bytes: &Bytes<'_>, rows: Rows) -> Packed {
        let Bytes { n, k, group_size, .. } = *bytes;
        let (cols, small) = (packed_cols(k), group_size.min(TILE));
        let half =
            |packed: usize, code: u8| if (packed / TILE).is_multiple_of(2) { code / 16 } else { code % 16 };
        let group = |row: usize, col: usize| row * k.div_ceil(group_size) + col.min(k - 1) / group_size;
        let (mut values, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
        for (row, packed) in (0..n).flat_map(|row| (0..cols).map(move |packed| (row, packed))) {
            let of_group = group(row, packed / (2 * TILE) * TILE + packed % TILE);
            let code = column(packed, k).map_or(bytes.zeros[of_group], |col| bytes.values[row * k + col]);
            values.push(half(packed, code));
            if packed % small == 0 {
                let factor = if (packed / TILE).is_multiple_of(2) { 16.0 } else { 1.0 };
                let scale = bytes.scales[of_group] * factor;
                let [of_f16, of_bf16] = [f16::from_f32(scale).to_bits(), bf16::from_f32(scale).to_bits()];
                scales.push(if bytes.scales_f16 { of_f16 } else { of_bf16 });
                zeros.push(half(packed, bytes.zeros[of_group]));
            }
        }
        let (values, scales, zeros) = (&values, &scales, Some(&zeros[..]));
        plainly(&Plain { n, k: cols, group_size: small, values, scales, zeros }, rows)
    }

    #[test]
    fn pieces_are_those_of_every_half() {
        for (n, k, group_size) in SHAPES {
            let count = n * k.div_ceil(group_size);
            let values = drawn(n * k, 256);
            let scales: Vec<f32> = drawn(count, 200).iter().map(|&drawn| f32::from(drawn) / 512.0).collect();
            for (zeros, scales_f16) in
                [(drawn(count, 256), true), (vec![128; count], false), (vec![0x88; count], true)]
            {
                let bytes =
                    Bytes { n, k, group_size, values: &values, scales: &scales, scales_f16, zeros: &zeros };
                for rows in [Rows::AsGiven, Rows::InTurn] {
                    assert!(
                        pack(&bytes, rows) == pack_plainly(&bytes, rows),
                        "{n} by {k}, {group_size}, {rows:?}"
                    );
                }
            }
        }
    }

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
