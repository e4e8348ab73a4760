use rayon::prelude::*;

/// Rows worked on together: their words share a cache line.
const ROWS: usize = 16;

/// Where AWQ puts the code of output `8 * i + j`: in nibble `AWQ_NIBBLE[j]` of its word.
const AWQ_NIBBLE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// How the codes of a word are laid out.
#[derive(Clone, Copy)]
pub(super) struct Packing {
    pub bits: usize,
    /// Whether outputs within a word are in AWQ's order.
    pub interleaved: bool,
}

impl Packing {
    /// Codes a word.
    pub fn pack(self) -> usize {
        32 / self.bits
    }

    /// The code at place `i` of a word.
    pub fn code(self, word: u32, i: usize) -> u8 {
        let place = if self.interleaved { AWQ_NIBBLE[i] } else { i };
        (word >> (place * self.bits) & ((1 << self.bits) - 1)) as u8
    }
}

/// Codes `[rows, cols]` of words `[cols / pack, rows]`, a word's codes along the columns.
pub(super) fn along_cols(words: &[u32], rows: usize, cols: usize, packing: Packing) -> Vec<u8> {
    let pack = packing.pack();
    let mut codes = vec![0; rows * cols];
    codes.par_chunks_mut(ROWS * cols).enumerate().for_each(|(chunk, codes)| {
        for (block, words) in words.chunks_exact(rows).enumerate() {
            let words = &words[chunk * ROWS..];
            for (row, &word) in codes.chunks_exact_mut(cols).zip(words) {
                for (i, code) in row[block * pack..][..pack].iter_mut().enumerate() {
                    *code = packing.code(word, i);
                }
            }
        }
    });
    codes
}

/// Codes `[rows, cols]` of words `[cols, rows / pack]`, a word's codes along the rows.
pub(super) fn along_rows(words: &[u32], rows: usize, cols: usize, packing: Packing) -> Vec<u8> {
    let pack = packing.pack();
    let mut codes = vec![0; rows * cols];
    codes.par_chunks_mut(pack * cols).enumerate().for_each(|(block, codes)| {
        for col in 0..cols {
            let word = words[col * (rows / pack) + block];
            for i in 0..pack {
                codes[i * cols + col] = packing.code(word, i);
            }
        }
    });
    codes
}

/// Codes `[rows, cols]` of words `[rows, ceil(cols / pack)]`.
pub(super) fn row_by_row(words: &[u32], rows: usize, cols: usize, packing: Packing) -> Vec<u8> {
    let pack = packing.pack();
    let mut codes = Vec::with_capacity(rows * cols);
    for words in words.chunks_exact(cols.div_ceil(pack)) {
        codes.extend((0..cols).map(|col| packing.code(words[col / pack], col % pack)));
    }
    codes
}

/// `[rows, cols]` of `[cols, rows]`.
pub(super) fn transposed<T: Copy>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..rows * cols).map(|i| values[i % cols * rows + i / cols]).collect()
}
