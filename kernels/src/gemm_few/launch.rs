use super::{ROWS, VARIANTS, Variant, Weights, layout};
use crate::abi::{GemmChain, GemmFew, GemmWhole};

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

/// Pieces that are worth a thread: a millisecond of work, about.
const LEAST_PIECES: usize = 256;

impl Packed {
    /// Lays weights out for the kernel.
    ///
    /// # Panics
    /// If lengths don't agree with the shape, or the group size has no kernel: the caller has checked them.
    pub fn new(plain: &Plain<'_>) -> Packed {
        let Plain { n, k, group_size, .. } = *plain;
        let groups_of_row = k.div_ceil(group_size);
        assert_eq!(plain.values.len(), n * k, "values of a packed matrix");
        assert_eq!(plain.scales.len(), n * groups_of_row, "scales of a packed matrix");
        assert!(plain.zeros.is_none_or(|zeros| zeros.len() == n * groups_of_row), "zeros of a packed matrix");
        let groups = groups_of_piece(group_size).expect("a group size that has a kernel");
        let zeros = plain.zeros.is_some_and(|zeros| zeros.iter().any(|&zero| zero != 8));
        let piece_bytes = layout::piece_bytes(groups, zeros);
        let steps = k.div_ceil(layout::TILE_K as usize);
        let pieces = n.div_ceil(ROWS as usize) * layout::PIECES as usize * steps;
        let mut bytes = vec![0; pieces * piece_bytes as usize];
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        let share = pieces.div_ceil(threads).max(LEAST_PIECES);
        std::thread::scope(|scope| {
            for (thread, of_thread) in bytes.chunks_mut(share * piece_bytes as usize).enumerate() {
                let mut pack = move || {
                    for (at, piece) in of_thread.chunks_exact_mut(piece_bytes as usize).enumerate() {
                        let index = thread * share + at;
                        pack_piece(plain, groups, zeros, [index / steps, index % steps], piece);
                    }
                };
                // A matrix of a few pieces isn't worth a thread.
                if pieces <= LEAST_PIECES { pack() } else { drop(scope.spawn(pack)) }
            }
        });
        Packed { bytes, piece_bytes, steps: steps as u32, groups, zeros }
    }
}

/// Groups to 128 of `k`, if there is a kernel.
pub fn groups_of_piece(group_size: usize) -> Option<u32> {
    match group_size {
        32 => Some(4),
        64 => Some(2),
        size if size > 0 && size.is_multiple_of(128) => Some(1),
        _ => None,
    }
}

fn pack_piece(plain: &Plain<'_>, groups: u32, zeros: bool, [of_rows, step]: [usize; 2], piece: &mut [u8]) {
    let (first_row, first_k) = (of_rows * layout::PIECE_ROWS as usize, step * layout::TILE_K as usize);
    let groups_of_row = plain.k.div_ceil(plain.group_size);
    let put16 = |piece: &mut [u8], at: u32, bits: u16| {
        piece[at as usize..at as usize + 2].copy_from_slice(&bits.to_le_bytes());
    };
    for row in 0..layout::PIECE_ROWS {
        let n = first_row + row as usize;
        // Of rows and columns past the end, whatever: their scales or activations are zeros.
        if n >= plain.n {
            continue;
        }
        for k in 0..layout::TILE_K {
            let col = first_k + k as usize;
            if col < plain.k {
                let (byte, shift) = layout::nibble(row, k);
                let value = plain.values[n * plain.k + col] & 15;
                piece[(byte + shift / 8) as usize] |= value << (shift % 8);
            }
        }
        for group in 0..groups {
            let col = first_k + (group * layout::TILE_K / groups) as usize;
            if col >= plain.k {
                continue;
            }
            let at = n * groups_of_row + col / plain.group_size;
            put16(piece, layout::scale(group, row), plain.scales[at]);
            if zeros {
                let zero = plain.zeros.map_or(8, |zeros| zeros[at]);
                let bits = half::bf16::from_f32(-(128.0 + f32::from(zero))).to_bits();
                put16(piece, layout::zero(groups, group, row), bits);
            }
        }
    }
}

/// The entry for `m` rows: the one with the fewest tokens that hold them, or the most.
pub fn choose(weights: Weights, m: u32) -> Option<&'static Variant> {
    let mut of_kind = VARIANTS.iter().filter(|variant| variant.weights == weights);
    let widest = VARIANTS.iter().rfind(|variant| variant.weights == weights);
    of_kind.find(|variant| m <= variant.tile.tokens).or(widest)
}

/// Splits of `k` for weights `[n, k]`, of which a stage holds `stage_k`.
pub fn splits(n: u32, k: u32, stage_k: u32) -> u32 {
    layout::splits(n.div_ceil(ROWS), k.div_ceil(64)).min(k.div_ceil(stage_k)).max(1)
}

/// Tiles of a launch.
pub fn tiles(variant: &Variant, m: u32, n: u32) -> u32 {
    m.div_ceil(variant.tile.tokens) * n.div_ceil(variant.tile.rows)
}

/// Bytes of the scratch of a launch.
pub fn partial_bytes(variant: &Variant, m: u32, n: u32, splits: u32) -> usize {
    match splits {
        1 => 0,
        _ => {
            (tiles(variant, m, n) * splits) as usize * (variant.tile.tokens * variant.tile.rows * 4) as usize
        }
    }
}

/// The grid of a launch: of a persistent variant as many tiles as run at a time.
pub fn grid(variant: &Variant, m: u32, n: u32, splits: u32, multiprocessors: u32) -> [u32; 3] {
    let tiles = tiles(variant, m, n);
    let at_once = (multiprocessors * variant.spec.min_blocks / splits.max(1)).max(1);
    [splits, if variant.tile.is_persistent() { tiles.min(at_once) } else { tiles }, 1]
}

/// 4-bit weights of a launch, as the one before it has to know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follower {
    /// Where they are.
    pub packed: u64,
    /// Rows.
    pub n: u32,
    /// Pieces along `k`.
    pub steps: u32,
    /// Splits of `k`.
    pub splits: u32,
    /// Bytes of a piece.
    pub piece_bytes: u32,
}

impl From<&GemmFew> for Follower {
    fn from(params: &GemmFew) -> Follower {
        let GemmFew { packed, n, steps, splits, piece_bytes, .. } = *params;
        Follower { packed, n, steps, splits, piece_bytes }
    }
}

impl From<&GemmWhole> for Follower {
    fn from(params: &GemmWhole) -> Follower {
        let GemmWhole { packed, n, steps, splits, piece_bytes, .. } = *params;
        Follower { packed, n, steps, splits, piece_bytes }
    }
}

impl Follower {
    /// Groups of 16 rows times their splits, and how many of an item's pieces make about `bytes` of all of them; of none, or of other weights, `None`.
    fn ahead(&self, bytes: u32) -> Option<(u32, u32)> {
        let items = self.n.div_ceil(layout::PIECE_ROWS) * self.splits;
        let ahead = u64::from(bytes).checked_div(u64::from(items) * u64::from(self.piece_bytes))?;
        (ahead > 0).then_some((items, ahead.min(u64::from(self.steps)) as u32))
    }
}

impl From<&GemmChain> for Follower {
    fn from(params: &GemmChain) -> Follower {
        Follower::from(&params.phases[0])
    }
}

/// Lets a launch bring the first of `next`'s 4-bit weights to the L2, about `bytes` of them.
pub trait Follow {
    /// See [`Follow`].
    fn follow(&mut self, next: &Follower, bytes: u32);
}

macro_rules! follow {
    ($($params:ty),*) => {
        $(impl Follow for $params {
            fn follow(&mut self, next: &Follower, bytes: u32) {
                let Some((items, ahead)) = next.ahead(bytes) else { return };
                self.next_packed = next.packed;
                self.next_items = items;
                self.next_splits = next.splits;
                self.next_steps = next.steps;
                self.next_piece_bytes = next.piece_bytes;
                self.next_ahead = ahead;
            }
        })*
    };
}

follow!(GemmFew, GemmWhole);

impl Follow for GemmChain {
    fn follow(&mut self, next: &Follower, bytes: u32) {
        if let Some(last) = self.phases[..self.count as usize].last_mut() {
            last.follow(next, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm_few::Activations;

    #[test]
    fn packed_weights_are_where_the_layout_says() {
        let (n, k, group_size) = (300, 192, 64);
        let values: Vec<u8> = (0..n * k).map(|i| (i * 7 % 16) as u8).collect();
        let scales: Vec<u16> = (0..n * 3).map(|i| i as u16 + 1).collect();
        let zeros: Vec<u8> = (0..n * 3).map(|i| (i % 16) as u8).collect();
        let plain = Plain { n, k, group_size, values: &values, scales: &scales, zeros: Some(&zeros) };
        let packed = Packed::new(&plain);
        assert_eq!((packed.steps, packed.groups, packed.zeros), (2, 2, true));
        let piece = |row: usize, col: usize| {
            let index = row / 16 * 2 + col / 128;
            &packed.bytes[index * packed.piece_bytes as usize..][..packed.piece_bytes as usize]
        };
        for (row, col) in [(0, 0), (255, 127), (256, 128), (299, 191), (77, 130)] {
            let (byte, shift) = layout::nibble(row as u32 % 16, col as u32 % 128);
            let word =
                u32::from_le_bytes(piece(row, col)[byte as usize..][..4].try_into().expect("four bytes"));
            assert_eq!((word >> shift & 15) as u8, values[row * k + col], "row {row}, column {col}");
            let group = col as u32 % 128 / 64;
            let at = layout::scale(group, row as u32 % 16) as usize;
            let scale = u16::from_le_bytes(piece(row, col)[at..][..2].try_into().expect("two bytes"));
            assert_eq!(scale, scales[row * 3 + col / 64]);
        }
        let without = Packed::new(&Plain { zeros: Some(&vec![8; n * 3]), ..plain });
        assert!(!without.zeros);
    }

    #[test]
    fn tokens_choose_the_entry() {
        let name = |m, groups, activations| {
            choose(Weights::Int4 { groups, activations }, m).map(|variant| variant.spec.name)
        };
        assert_eq!(name(1, 1, Activations::Bf16), Some("gemm_few_int4_g128_8"));
        assert_eq!(name(9, 1, Activations::Bf16), Some("gemm_few_int4_g128_16"));
        assert_eq!(name(500, 1, Activations::Bf16), Some("gemm_few_int4_g128_128"));
        assert_eq!(name(1, 1, Activations::F16), Some("gemm_few_int4_g128_8_f16"));
        assert_eq!(name(40, 2, Activations::F16), Some("gemm_few_int4_g64_128_f16"));
    }

    #[test]
    fn what_follows_is_brought_as_far_as_it_is_meant_to() {
        let next = Follower { packed: 64, n: 28_672, steps: 32, splits: 1, piece_bytes: 1056 };
        let mut params = GemmFew::default();
        params.follow(&next, 16 << 20);
        assert_eq!((params.next_packed, params.next_items, params.next_ahead), (64, 1792, 8));
        params.follow(&Follower { packed: 128, n: 256, ..next }, 16 << 20);
        assert_eq!((params.next_packed, params.next_items, params.next_ahead), (128, 16, 32));
        let mut params = GemmWhole::default();
        params.follow(&next, 1 << 20);
        assert_eq!(params.next_packed, 0);
    }

    #[test]
    fn stages_fit_a_multiprocessor() {
        for variant in &VARIANTS {
            assert!(variant.spec.shared_bytes * variant.spec.min_blocks <= 226 << 10, "{variant:?}");
        }
    }
}
