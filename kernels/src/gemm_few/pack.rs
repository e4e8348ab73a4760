//! Weights on their way into the kernels' pieces ([`layout`]), from a byte a code: threads take runs of pieces, and a piece is laid out word by word
//! from a tile of codes that the nearest cache holds.

use super::{
    ROWS,
    layout::{self, NIBBLE_BYTES, PIECE_ROWS, TILE_K},
};

/// Columns of a piece.
const COLS: usize = TILE_K as usize;
/// Rows that share the words of a piece with those as far below.
const PAIRS: usize = PIECE_ROWS as usize / 2;
/// Columns of a step of the kernels' products.
const STEP_COLS: usize = 16;
/// Steps of a half of a piece.
const STEPS: usize = COLS / STEP_COLS / 2;
/// Lanes that hold a row's part of a step, four codes of it each.
const ROW_LANES: usize = 4;
/// Pieces that are worth a thread: a fifth of a millisecond of work, about.
const LEAST_PIECES: usize = 256;

/// Rows that lie together where they come in turn.
pub const TURN: usize = 8;

/// Where rows lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Where they are given.
    AsGiven,
    /// [`TURN`] of the first half and as many of the second in turn; of a multiple of twice as many.
    InTurn,
}

impl Rows {
    /// Which of `n` rows lies at `row`.
    pub fn source(self, row: usize, n: usize) -> usize {
        match self {
            Rows::AsGiven => row,
            Rows::InTurn => row / TURN % 2 * (n / 2) + row / (2 * TURN) * TURN + row % TURN,
        }
    }
}

/// 4-bit weights in the kernel's pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The pieces.
    pub bytes: Vec<u8>,
    /// Bytes of each.
    pub piece_bytes: u32,
    /// Pieces along `k`.
    pub steps: u32,
    /// Groups to 128 of `k`: 1 where a group is larger.
    pub groups: u32,
    /// Whether there are zero points.
    pub zeros: bool,
}

/// 4-bit weights `[n, k]` as plain numbers.
#[derive(Debug, Clone, Copy)]
pub struct Plain<'a> {
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// Columns that share a scale, 32, 64 or a multiple of 128; the last group may be shorter.
    pub group_size: usize,
    /// `[n, k]`, below 16.
    pub values: &'a [u8],
    /// `[n, ceil(k / group_size)]`, the bits of f16 or bf16.
    pub scales: &'a [u16],
    /// `[n, ceil(k / group_size)]`, at most 16 (files that store one less can mean 16); 8 all over if absent.
    pub zeros: Option<&'a [u8]>,
}

/// Groups to 128 of `k`, if there is a kernel.
pub fn groups_of_piece(group_size: usize) -> Option<u32> {
    match group_size {
        32 => Some(4),
        64 => Some(2),
        size if size > 0 && size.is_multiple_of(COLS) => Some(1),
        _ => None,
    }
}

/// What pieces are made of, row by row as it is given.
pub(super) trait Source: Sync {
    /// The codes of piece `step` of a row, of which the low four bits count; what is past the end stays.
    fn codes(&self, row: usize, step: usize, codes: &mut [u8; COLS]);
    /// The scale's bits and the zero point of a group of that piece; past the end, none.
    fn group(&self, row: usize, step: usize, group: usize) -> Option<(u16, u8)>;
}

impl Source for Plain<'_> {
    fn codes(&self, row: usize, step: usize, codes: &mut [u8; COLS]) {
        let first = step * COLS;
        let given = &self.values[row * self.k + first..][..COLS.min(self.k - first)];
        codes[..given.len()].copy_from_slice(given);
    }

    fn group(&self, row: usize, step: usize, group: usize) -> Option<(u16, u8)> {
        let col = step * COLS + group * self.group_size;
        let at = row * self.k.div_ceil(self.group_size) + col / self.group_size;
        (col < self.k).then(|| (self.scales[at], self.zeros.map_or(8, |zeros| zeros[at])))
    }
}

impl Packed {
    /// Lays weights out for the kernel.
    ///
    /// # Panics
    /// If lengths don't agree with the shape, or the group size has no kernel: the caller has checked them.
    pub fn new(plain: &Plain<'_>, rows: Rows) -> Packed {
        let Plain { n, k, group_size, .. } = *plain;
        let groups_of_row = k.div_ceil(group_size);
        assert_eq!(plain.values.len(), n * k, "values of a packed matrix");
        assert_eq!(plain.scales.len(), n * groups_of_row, "scales of a packed matrix");
        assert!(plain.zeros.is_none_or(|zeros| zeros.len() == n * groups_of_row), "zeros of a packed matrix");
        let groups = groups_of_piece(group_size).expect("a group size that has a kernel");
        let zeros = plain.zeros.is_some_and(|zeros| zeros.iter().any(|&zero| zero != 8));
        Pieces { source: plain, rows, n, steps: k.div_ceil(COLS), groups, zeros }.pack()
    }
}

/// All pieces of a matrix.
pub(super) struct Pieces<'a, S> {
    pub source: &'a S,
    pub rows: Rows,
    /// Rows.
    pub n: usize,
    /// Pieces along `k`.
    pub steps: usize,
    /// Groups to a piece.
    pub groups: u32,
    /// Whether zero points are kept.
    pub zeros: bool,
}

impl<S: Source> Pieces<'_, S> {
    pub fn pack(&self) -> Packed {
        let piece_bytes = layout::piece_bytes(self.groups, self.zeros);
        let pieces = self.n.div_ceil(ROWS as usize) * layout::PIECES as usize * self.steps;
        let mut bytes = vec![0; pieces * piece_bytes as usize];
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        let share = pieces.div_ceil(threads).max(LEAST_PIECES);
        std::thread::scope(|scope| {
            for (thread, of_thread) in bytes.chunks_mut(share * piece_bytes as usize).enumerate() {
                let mut pack = move || {
                    for (at, piece) in of_thread.chunks_exact_mut(piece_bytes as usize).enumerate() {
                        let index = thread * share + at;
                        self.pack_piece(index / self.steps, index % self.steps, piece);
                    }
                };
                // A matrix of a few pieces isn't worth a thread.
                if pieces <= LEAST_PIECES { pack() } else { drop(scope.spawn(pack)) }
            }
        });
        Packed { bytes, piece_bytes, steps: self.steps as u32, groups: self.groups, zeros: self.zeros }
    }

    fn pack_piece(&self, of_rows: usize, step: usize, piece: &mut [u8]) {
        let mut put16 = |at: u32, bits: u16| piece[at as usize..][..2].copy_from_slice(&bits.to_le_bytes());
        // Of rows and columns past the end, whatever: their scales or activations are zeros.
        let mut tile = [[0; COLS]; PIECE_ROWS as usize];
        for (row, codes) in (0..PIECE_ROWS).zip(&mut tile) {
            let at = of_rows * PIECE_ROWS as usize + row as usize;
            if at >= self.n {
                continue;
            }
            let from = self.rows.source(at, self.n);
            self.source.codes(from, step, codes);
            for group in 0..self.groups {
                let Some((scale, zero)) = self.source.group(from, step, group as usize) else { continue };
                put16(layout::scale(group, row), scale);
                if self.zeros {
                    let bits = half::bf16::from_f32(-f32::from(zero) / 64.0).to_bits();
                    put16(layout::zero(self.groups, group, row), bits);
                }
            }
        }
        if let Some(nibbles) = piece.first_chunk_mut() {
            put_nibbles(&tile, nibbles);
        }
    }
}

/// Nibbles where [`layout::nibble`] says. A word has two columns of a row and those eight further on, each beside the same of the row
/// eight below: bytes of pairs of rows, woven.
fn put_nibbles(tile: &[[u8; COLS]; PIECE_ROWS as usize], nibbles: &mut [u8; NIBBLE_BYTES as usize]) {
    let (upper, lower) = tile.split_at(PAIRS);
    let (words, _) = nibbles.as_chunks_mut::<4>();
    for (row, (upper, lower)) in upper.iter().zip(lower).enumerate() {
        let pairs: [u8; COLS] = std::array::from_fn(|k| upper[k] & 15 | lower[k] << 4);
        for (step, pairs) in pairs.as_chunks::<STEP_COLS>().0.iter().enumerate() {
            let first = (step / STEPS * PAIRS + row) * ROW_LANES * STEPS + step % STEPS;
            for lane in 0..ROW_LANES {
                let [a, b] = [2 * lane, 2 * lane + 1];
                words[first + lane * STEPS] = [pairs[a], pairs[a + 8], pairs[b], pairs[b + 8]];
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Rows, columns and columns of a group; rows of a multiple of 16 can come in turn.
    const SHAPES: [(usize, usize, usize); 7] = [
        (16, 128, 128),
        (304, 192, 64),
        (300, 200, 64),
        (48, 64, 32),
        (272, 320, 128),
        (32, 576, 256),
        (512, 1152, 384),
    ];

    /// Code by code, as the layout says.
    pub(in super::super) fn plainly(plain: &Plain<'_>, rows: Rows) -> Packed {
        let Plain { n, k, group_size, .. } = *plain;
        let groups = groups_of_piece(group_size).expect("a kernel");
        let zeros = plain.zeros.is_some_and(|zeros| zeros.iter().any(|&zero| zero != 8));
        let (piece_bytes, steps) = (layout::piece_bytes(groups, zeros), k.div_ceil(128));
        let mut bytes = vec![0u8; n.div_ceil(256) * 16 * steps * piece_bytes as usize];
        for row in 0..n {
            let from = match rows {
                Rows::AsGiven => row,
                Rows::InTurn if row % 16 < 8 => row / 16 * 8 + row % 16,
                Rows::InTurn => n / 2 + row / 16 * 8 + row % 16 - 8,
            };
            for col in 0..k {
                let piece = &mut bytes[(row / 16 * steps + col / 128) * piece_bytes as usize..];
                let (row, k_of_piece) = (row as u32 % 16, col as u32 % 128);
                let (byte, shift) = layout::nibble(row, k_of_piece);
                piece[(byte + shift / 8) as usize] |= plain.values[from * k + col] << (shift % 8);
                let (group, at) =
                    (k_of_piece * groups / 128, from * k.div_ceil(group_size) + col / group_size);
                let mut put16 =
                    |at: u32, bits: u16| piece[at as usize..][..2].copy_from_slice(&bits.to_le_bytes());
                put16(layout::scale(group, row), plain.scales[at]);
                if let Some(all) = plain.zeros.filter(|_| zeros) {
                    let zero = half::bf16::from_f32(-f32::from(all[at]) / 64.0);
                    put16(layout::zero(groups, group, row), zero.to_bits());
                }
            }
        }
        Packed { bytes, piece_bytes, steps: steps as u32, groups, zeros }
    }

    /// Numbers that look drawn.
    pub(in super::super) fn drawn(count: usize, below: u32) -> Vec<u8> {
        let mut state = count as u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 16) % below) as u8
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn pieces_are_those_laid_out_code_by_code() {
        for (n, k, group_size) in SHAPES {
            let count = n * k.div_ceil(group_size);
            let values = drawn(n * k, 16);
            let scales: Vec<u16> = (1..=count as u16).collect();
            let zeros = drawn(count, 17);
            for zeros in [None, Some(&zeros[..]), Some(&vec![8; count][..])] {
                let plain = Plain { n, k, group_size, values: &values, scales: &scales, zeros };
                let orders = if n % 16 == 0 { &[Rows::AsGiven, Rows::InTurn][..] } else { &[Rows::AsGiven] };
                for &rows in orders {
                    assert!(
                        Packed::new(&plain, rows) == plainly(&plain, rows),
                        "{n} by {k}, {group_size}, {rows:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn rows_alternate_in_eights() {
        let turned: Vec<usize> = (0..32).map(|row| Rows::InTurn.source(row, 32)).collect();
        assert_eq!(turned[..16], [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23]);
        assert_eq!(turned[16..24], [8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(Rows::AsGiven.source(17, 32), 17);
    }
}
