use super::{ROWS, VARIANTS, Variant, Weights, layout};
use crate::abi::GemmFew;

/// 4-bit weights in the kernel's tiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The tiles.
    pub bytes: Vec<u8>,
    /// Bytes of each.
    pub tile_bytes: u32,
    /// Tiles along `k`.
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

/// Tiles that are worth a thread: a millisecond of work, about.
const LEAST_TILES: usize = 16;

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
        let groups = groups_of_tile(group_size).expect("a group size that has a kernel");
        let zeros = plain.zeros.is_some_and(|zeros| zeros.iter().any(|&zero| zero != 8));
        let tile_bytes = layout::int4_tile_bytes(groups, zeros);
        let (row_tiles, steps) = (n.div_ceil(ROWS as usize), k.div_ceil(layout::TILE_K as usize));
        let mut bytes = vec![0; row_tiles * steps * tile_bytes as usize];
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        let share = (row_tiles * steps).div_ceil(threads).max(LEAST_TILES);
        std::thread::scope(|scope| {
            for (thread, tiles) in bytes.chunks_mut(share * tile_bytes as usize).enumerate() {
                let mut pack = move || {
                    for (at, tile) in tiles.chunks_exact_mut(tile_bytes as usize).enumerate() {
                        let index = thread * share + at;
                        pack_tile(plain, groups, zeros, [index / steps, index % steps], tile);
                    }
                };
                // A matrix of a few tiles isn't worth a thread.
                if row_tiles * steps <= LEAST_TILES { pack() } else { drop(scope.spawn(pack)) }
            }
        });
        Packed { bytes, tile_bytes, steps: steps as u32, groups, zeros }
    }
}

/// Groups to 128 of `k`, if there is a kernel.
pub fn groups_of_tile(group_size: usize) -> Option<u32> {
    match group_size {
        32 => Some(4),
        64 => Some(2),
        size if size > 0 && size.is_multiple_of(128) => Some(1),
        _ => None,
    }
}

fn pack_tile(plain: &Plain<'_>, groups: u32, zeros: bool, [row_tile, step]: [usize; 2], tile: &mut [u8]) {
    let (first_row, first_k) = (row_tile * ROWS as usize, step * layout::TILE_K as usize);
    let groups_of_row = plain.k.div_ceil(plain.group_size);
    let put16 = |tile: &mut [u8], at: u32, bits: u16| {
        tile[at as usize..at as usize + 2].copy_from_slice(&bits.to_le_bytes());
    };
    for row in 0..ROWS {
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
                tile[(byte + shift / 8) as usize] |= value << (shift % 8);
            }
        }
        for group in 0..groups {
            let col = first_k + (group * layout::TILE_K / groups) as usize;
            if col >= plain.k {
                continue;
            }
            let at = n * groups_of_row + col / plain.group_size;
            put16(tile, layout::scale(ROWS, group, row), plain.scales[at]);
            if zeros {
                let zero = plain.zeros.map_or(8, |zeros| zeros[at]);
                let bits = half::bf16::from_f32(-(128.0 + f32::from(zero))).to_bits();
                put16(tile, layout::zero(ROWS, groups, group, row), bits);
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

/// Lets the launch of `params` bring the first of `next`'s 4-bit weights to the L2, about `bytes` of them.
pub fn follow(params: &mut GemmFew, next: &GemmFew, bytes: u32) {
    let items = next.n.div_ceil(ROWS) * next.splits;
    let ahead = u64::from(bytes) / (u64::from(items) * u64::from(next.tile_bytes)).max(1);
    if ahead == 0 || next.tile_bytes == 0 {
        return;
    }
    params.next_packed = next.packed;
    params.next_items = items;
    params.next_splits = next.splits;
    params.next_steps = next.steps;
    params.next_tile_bytes = next.tile_bytes;
    params.next_ahead = ahead.min(u64::from(next.steps)) as u32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_weights_are_where_the_layout_says() {
        let (n, k, group_size) = (300, 192, 64);
        let values: Vec<u8> = (0..n * k).map(|i| (i * 7 % 16) as u8).collect();
        let scales: Vec<u16> = (0..n * 3).map(|i| i as u16 + 1).collect();
        let zeros: Vec<u8> = (0..n * 3).map(|i| (i % 16) as u8).collect();
        let plain = Plain { n, k, group_size, values: &values, scales: &scales, zeros: Some(&zeros) };
        let packed = Packed::new(&plain);
        assert_eq!((packed.steps, packed.groups, packed.zeros), (2, 2, true));
        let tile = |row: usize, col: usize| {
            let index = row / 256 * 2 + col / 128;
            &packed.bytes[index * packed.tile_bytes as usize..][..packed.tile_bytes as usize]
        };
        for (row, col) in [(0, 0), (255, 127), (256, 128), (299, 191), (77, 130)] {
            let (byte, shift) = layout::nibble(row as u32 % 256, col as u32 % 128);
            let word =
                u32::from_le_bytes(tile(row, col)[byte as usize..][..4].try_into().expect("four bytes"));
            assert_eq!((word >> shift & 15) as u8, values[row * k + col], "row {row}, column {col}");
            let group = col as u32 % 128 / 64;
            let at = layout::scale(ROWS, group, row as u32 % 256) as usize;
            let scale = u16::from_le_bytes(tile(row, col)[at..][..2].try_into().expect("two bytes"));
            assert_eq!(scale, scales[row * 3 + col / 64]);
        }
        let without = Packed::new(&Plain { zeros: Some(&vec![8; n * 3]), ..plain });
        assert!(!without.zeros);
    }

    #[test]
    fn tokens_choose_the_entry() {
        let name = |m| choose(Weights::Int4 { groups: 1 }, m).map(|variant| variant.spec.name);
        assert_eq!(name(1), Some("gemm_few_int4_g128_8"));
        assert_eq!(name(9), Some("gemm_few_int4_g128_16"));
        assert_eq!(name(500), Some("gemm_few_int4_g128_128"));
    }

    #[test]
    fn what_follows_is_brought_as_far_as_it_is_meant_to() {
        let next =
            GemmFew { packed: 64, n: 28_672, steps: 32, splits: 1, tile_bytes: 16_896, ..GemmFew::default() };
        let mut params = GemmFew::default();
        follow(&mut params, &next, 16 << 20);
        assert_eq!((params.next_packed, params.next_items, params.next_ahead), (64, 112, 8));
        follow(&mut params, &GemmFew { packed: 128, n: 256, ..next }, 16 << 20);
        assert_eq!((params.next_packed, params.next_items, params.next_ahead), (128, 1, 32));
        let mut params = GemmFew::default();
        follow(&mut params, &next, 1 << 20);
        assert_eq!(params.next_packed, 0);
    }

    #[test]
    fn stages_fit_a_multiprocessor() {
        for variant in &VARIANTS {
            assert!(variant.spec.shared_bytes * variant.spec.min_blocks <= 226 << 10, "{variant:?}");
        }
    }
}
