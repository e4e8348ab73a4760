use std::cmp::Reverse;

use super::{ROWS, VARIANTS, Variant, Weights, layout};
use crate::abi::{GemmChain, GemmFew, GemmWhole};

/// The entry for `m` rows and so many splits of `k`: the one with the fewest tokens that hold them, or the most. Where there are two splits, a block takes both of
/// them rather than one of more rows, if there is an entry that does. H200, 2026-12-01, 64 rows of 14336 x 4096 (n x k): 18.9 us instead of 21.0. Pairs of eight
/// splits, which blocks have to join, were 3% faster for 4096 x 4096 and 3% slower for 4096 x 14336.
pub fn choose(weights: Weights, m: u32, splits: u32) -> Option<&'static Variant> {
    let of_kind = || VARIANTS.iter().filter(|variant| variant.weights == weights);
    let holds = |variant: &&Variant| m <= variant.tile.tokens && [1, splits].contains(&variant.tile.abreast);
    let least = |variant: &&Variant| (variant.tile.tokens, Reverse(variant.tile.abreast));
    of_kind().filter(holds).min_by_key(least).or_else(|| of_kind().max_by_key(|variant| variant.tile.tokens))
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

/// The grid of a launch: a block for each split of each tile. Of a persistent variant as many as run at a time, and as many to a tile as make the fewest
/// splits one after the other, or the fewest that do: blocks of a tile wait for each other once a tile. These have one split each, or pairs.
pub fn grid(variant: &Variant, m: u32, n: u32, splits: u32, multiprocessors: u32) -> [u32; 3] {
    let (tiles, splits) = (tiles(variant, m, n), splits.max(1));
    if !variant.tile.is_persistent() {
        return [splits.div_ceil(variant.tile.abreast), tiles, 1];
    }
    let blocks = (multiprocessors * variant.spec.min_blocks).max(1);
    let pairs = splits.div_ceil(2);
    let splits_of = |ranks: u32| if ranks == splits { 1 } else { 2 * pairs.div_ceil(ranks) };
    let in_a_row = |ranks: &u32| tiles.div_ceil(blocks / ranks) * splits_of(*ranks);
    let ranks =
        (1..=pairs).chain([splits]).filter(|&ranks| ranks <= blocks).min_by_key(in_a_row).unwrap_or(1);
    [ranks, tiles.min(blocks / ranks), 1]
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
    fn tokens_choose_the_entry() {
        let of_splits = |splits, m, groups, activations| {
            choose(Weights::Int4 { groups, activations }, m, splits).map(|variant| variant.spec.name)
        };
        let name = |m, groups, activations| of_splits(1, m, groups, activations);
        assert_eq!(name(1, 1, Activations::Bf16), Some("gemm_few_int4_g128_8"));
        assert_eq!(name(9, 1, Activations::Bf16), Some("gemm_few_int4_g128_16"));
        assert_eq!(name(500, 1, Activations::Bf16), Some("gemm_few_int4_g128_128"));
        assert_eq!(name(1, 1, Activations::F16), Some("gemm_few_int4_g128_8_f16"));
        assert_eq!(name(40, 2, Activations::F16), Some("gemm_few_int4_g64_128_f16"));
        assert_eq!(name(40, 1, Activations::Bf16), Some("gemm_few_int4_g128_64"));
        assert_eq!(of_splits(5, 40, 1, Activations::Bf16), Some("gemm_few_int4_g128_64"));
        assert_eq!(of_splits(8, 40, 1, Activations::Bf16), Some("gemm_few_int4_g128_64"));
        assert_eq!(of_splits(2, 64, 1, Activations::F16), Some("gemm_few_int4_g128_64_pair_f16"));
        assert_eq!(of_splits(2, 65, 1, Activations::Bf16), Some("gemm_few_int4_g128_128"));
        assert_eq!(of_splits(2, 9, 1, Activations::Bf16), Some("gemm_few_int4_g128_16"));
    }

    #[test]
    fn blocks_of_many_tokens_take_the_splits_that_others_have_no_room_for() {
        let grid = |m, n, k| {
            let weights = Weights::Int4 { groups: 1, activations: Activations::Bf16 };
            let splits = splits(n, k, layout::TILE_K);
            choose(weights, m, splits).map(|variant| grid(variant, m, n, splits, 132))
        };
        assert_eq!(grid(128, 4096, 4096), Some([4, 32, 1]));
        assert_eq!(grid(128, 4096, 14_336), Some([4, 32, 1]));
        assert_eq!(grid(128, 14_336, 4096), Some([1, 112, 1]));
        assert_eq!(grid(128, 28_672, 8192), Some([1, 132, 1]));
        assert_eq!(grid(256, 4096, 4096), Some([2, 64, 1]));
        assert_eq!(grid(64, 4096, 4096), Some([8, 16, 1]));
        assert_eq!(grid(64, 14_336, 4096), Some([1, 112, 1]));
        assert_eq!(grid(64, 6144, 4096), Some([5, 24, 1]));
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
            assert!(
                variant.spec.shared_bytes * variant.spec.min_blocks <= crate::gemm_few::MOST_SHARED_BYTES,
                "{variant:?}"
            );
        }
    }
}
