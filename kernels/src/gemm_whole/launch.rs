use super::{MOST_ROW_BYTES, Plan, TOKENS, VARIANTS, Variant, WARPS};
use crate::gemm_few::{Weights, layout};

/// The entries for `m` rows and 4-bit weights `[n, k]`, and how many groups of 16 rows each block has, where there are any: where a block has room for
/// the rows of `a`, and warps for the splits of its share of the rows.
pub fn choose(
    weights: Weights,
    [m, n, k]: [u32; 3],
    splits: u32,
    multiprocessors: u32,
) -> Option<(&'static Variant, u32)> {
    let variant = VARIANTS.iter().find(|variant| variant.weights == weights)?;
    let a_bytes = u64::from(m) * u64::from(Plan::a_pitch(k.div_ceil(layout::TILE_K)));
    if m > TOKENS || a_bytes > u64::from(MOST_ROW_BYTES) {
        return None;
    }
    let row_groups = n.div_ceil(layout::PIECE_ROWS);
    // As many rounds of blocks as they must be, of blocks as small as they may be.
    let most = WARPS / splits.max(1);
    let rounds = row_groups.div_ceil(multiprocessors.max(1) * most.max(1));
    let share = row_groups.div_ceil(multiprocessors.max(1) * rounds.max(1));
    let is_one_round = most > 0 && (rounds == 1 || splits == 1);
    is_one_round.then_some((variant, share.max(1)))
}

/// Blocks of a launch of `row_groups` times 16 of `n` rows each.
pub fn blocks(n: u32, row_groups: u32) -> u32 {
    n.div_ceil(layout::PIECE_ROWS).div_ceil(row_groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm_few::{Activations, launch::splits};

    const WEIGHTS: Weights = Weights::Int4 { groups: 1, activations: Activations::Bf16 };

    #[test]
    fn blocks_are_one_round_of_the_device() {
        let of = |m, n, k| {
            let splits = splits(n, k, layout::TILE_K);
            let (_, row_groups) = choose(WEIGHTS, [m, n, k], splits, 132)?;
            Some((row_groups, blocks(n, row_groups)))
        };
        assert_eq!(of(1, 4096, 4096), Some((2, 128)));
        assert_eq!(of(4, 14_336, 4096), Some((7, 128)));
        assert_eq!(of(1, 4096, 14_336), Some((2, 128)));
        assert_eq!(of(1, 6144, 4096), Some((3, 128)));
        assert_eq!(of(2, 28_672, 8192), Some((14, 128)));
        // More of `a` than is worth it; more rows of weights than warps.
        assert_eq!(of(2, 4096, 14_336), None);
        assert_eq!(of(8, 4096, 4096), None);
        assert_eq!(of(1, 4352, 4096), None);
        // Several rounds where nothing is joined.
        assert_eq!(of(1, 128_256, 4096), Some((16, 501)));
    }

    #[test]
    fn rows_have_room() {
        for variant in &VARIANTS {
            assert!(variant.plan.a() + MOST_ROW_BYTES <= variant.one.shared_bytes, "{variant:?}");
        }
    }
}
