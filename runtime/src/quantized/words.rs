use rayon::prelude::*;

/// Words of a line of the caches: as many of one row are read together where codes lie across.
const LINE: usize = 16;
/// Words whose codes are stored together: two lines of a row.
const TOGETHER: usize = 16;

/// Where AWQ puts the code of output `8 * i + j`: in nibble `AWQ_NIBBLE[j]` of its word.
const AWQ_NIBBLE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// How the codes of a word are laid out.
#[derive(Clone, Copy)]
pub(super) struct Packing {
    /// 4 or 8.
    pub bits: usize,
    /// Whether outputs within a word are in AWQ's order.
    pub interleaved: bool,
}

impl Packing {
    /// Codes a word.
    pub fn pack(self) -> usize {
        32 / self.bits
    }

    /// The codes of a little-endian word in their order: the first [`Packing::pack`] of these.
    #[inline(always)]
    fn codes(self, word: [u8; 4]) -> [u8; 8] {
        let word = u64::from(u32::from_le_bytes(word));
        if self.bits == 8 {
            return word.to_le_bytes();
        }
        let pairs = (word | word << 16) & 0x0000_ffff_0000_ffff;
        let bytes = (pairs | pairs << 8) & 0x00ff_00ff_00ff_00ff;
        let codes = ((bytes | bytes << 4) & 0x0f0f_0f0f_0f0f_0f0f).to_le_bytes();
        if self.interleaved { AWQ_NIBBLE.map(|nibble| codes[nibble]) } else { codes }
    }
}

/// Codes `[rows, cols]` of words `[cols / pack, rows]`, a word's codes along the columns.
pub(super) fn along_cols(words: &[[u8; 4]], rows: usize, cols: usize, packing: Packing) -> Vec<u8> {
    match packing.bits {
        8 => packs_along_cols::<4>(words, rows, cols, packing),
        _ => packs_along_cols::<8>(words, rows, cols, packing),
    }
}

fn packs_along_cols<const PACK: usize>(
    words: &[[u8; 4]],
    rows: usize,
    cols: usize,
    packing: Packing,
) -> Vec<u8> {
    let mut codes = vec![0; rows * cols];
    codes.par_chunks_mut(LINE * cols).enumerate().for_each(|(chunk, codes)| {
        for first in (0..cols / PACK).step_by(TOGETHER) {
            for (row, codes) in codes.chunks_exact_mut(cols).enumerate() {
                let (packs, _) = codes[first * PACK..].as_chunks_mut::<PACK>();
                for (block, pack) in packs.iter_mut().take(TOGETHER).enumerate() {
                    let word = words[(first + block) * rows + chunk * LINE + row];
                    pack.copy_from_slice(&packing.codes(word)[..PACK]);
                }
            }
        }
    });
    codes
}

/// Codes `[rows, cols]` of words `[cols, rows / pack]`, a word's codes along the rows.
pub(super) fn along_rows(words: &[[u8; 4]], rows: usize, cols: usize, packing: Packing) -> Vec<u8> {
    let (pack, in_row) = (packing.pack(), rows / packing.pack());
    let mut codes = vec![0; rows * cols];
    codes.par_chunks_mut(LINE * pack * cols).enumerate().for_each(|(chunk, codes)| {
        for first in (0..cols).step_by(TOGETHER) {
            let count = TOGETHER.min(cols - first);
            for (block, codes) in codes.chunks_exact_mut(pack * cols).enumerate() {
                let word = |col: usize| words[(first + col) * in_row + chunk * LINE + block];
                let mut by_col = [[0; 8]; TOGETHER];
                by_col[..count]
                    .iter_mut()
                    .enumerate()
                    .for_each(|(col, of_col)| *of_col = packing.codes(word(col)));
                for (i, row) in codes.chunks_exact_mut(cols).enumerate() {
                    let of_row = by_col.map(|of_col| of_col[i]);
                    row[first..][..count].copy_from_slice(&of_row[..count]);
                }
            }
        }
    });
    codes
}

/// Codes `[rows, cols]` of words `[rows, ceil(cols / pack)]`.
pub(super) fn row_by_row(words: &[[u8; 4]], rows: usize, cols: usize, packing: Packing) -> Vec<u8> {
    let pack = packing.pack();
    let mut codes = vec![0; rows * cols];
    let of_words = words.par_chunks(cols.div_ceil(pack));
    codes.par_chunks_mut(cols).zip(of_words).for_each(|(codes, words)| {
        for (codes, &word) in codes.chunks_mut(pack).zip(words) {
            let len = codes.len();
            codes.copy_from_slice(&packing.codes(word)[..len]);
        }
    });
    codes
}

/// `[rows, cols]` of `[cols, rows]`.
pub(super) fn transposed<T: Copy>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(rows * cols);
    for row in 0..rows {
        out.extend((0..cols).map(|col| values[col * rows + row]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that look drawn.
    fn drawn(count: usize) -> Vec<[u8; 4]> {
        (1..=count as u32).map(|at| at.wrapping_mul(0x9e37_79b9).rotate_left(at % 32).to_le_bytes()).collect()
    }

    /// The code at place `i` of a word.
    fn code(packing: Packing, word: [u8; 4], i: usize) -> u8 {
        let place = if packing.interleaved { AWQ_NIBBLE[i] } else { i };
        (u32::from_le_bytes(word) >> (place * packing.bits)) as u8 & (u8::MAX >> (8 - packing.bits))
    }

    #[test]
    fn codes_are_where_each_layout_has_them() {
        let packings =
            [(4, false), (4, true), (8, false)].map(|(bits, interleaved)| Packing { bits, interleaved });
        let shapes = [(8, 8), (16, 64), (40, 136), (136, 72), (264, 200)];
        for (packing, (rows, cols)) in
            packings.into_iter().flat_map(|packing| shapes.map(|shape| (packing, shape)))
        {
            let pack = packing.pack();
            let words = drawn(rows * cols / pack);
            let expected = |place: &dyn Fn(usize, usize) -> (usize, usize)| -> Vec<u8> {
                let all = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
                all.map(|(row, col)| place(row, col)).map(|(word, i)| code(packing, words[word], i)).collect()
            };
            let across = expected(&|row, col| (col / pack * rows + row, col % pack));
            assert!(along_cols(&words, rows, cols, packing) == across, "{rows} by {cols}, columns");
            let down = expected(&|row, col| (col * (rows / pack) + row / pack, row % pack));
            assert!(along_rows(&words, rows, cols, packing) == down, "{rows} by {cols}, rows");
            let along = expected(&|row, col| (row * (cols / pack) + col / pack, col % pack));
            assert!(row_by_row(&words, rows, cols, packing) == along, "{rows} by {cols}, row by row");
        }
        // A last word that is not full, and a single column.
        let nibbles = packings[0];
        assert_eq!(
            row_by_row(&[*b"\x21\x43\x65\x87", *b"\x09\0\0\0"], 1, 9, nibbles),
            [1, 2, 3, 4, 5, 6, 7, 8, 9]
        );
        assert_eq!(along_rows(&[*b"\x21\x43\x65\x87"], 8, 1, nibbles), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(transposed(&[1, 2, 3, 4, 5, 6], 3, 2), [1, 4, 2, 5, 3, 6]);
    }
}
