use super::{Plan, TOKENS, VARIANTS};
use crate::{
    abi::{GemmWhole, KernelSpec},
    gemm_few::{Weights, layout},
};

/// The entry for `m` rows and 4-bit weights `[n, k]`, and its [`row_groups`], where there are any. H200, 2026-11-30, one row: half blocks 5.1 us for
/// 4096 x 4096 and 10.0 for 14336 x 4096 (n x k), where blocks take 5.4 and 10.9; as long for 4096 x 14336 and 28672 x 8192. Not where they are
/// more than run at a time, which wasn't timed.
pub fn choose(
    weights: Weights,
    shape: [u32; 3],
    splits: u32,
    multiprocessors: u32,
) -> Option<(&'static KernelSpec, u32)> {
    let variant = VARIANTS.iter().find(|variant| variant.weights == weights)?;
    let whole = row_groups(variant.plan, shape, splits, multiprocessors)?;
    let half = row_groups(variant.half_plan, shape, splits, multiprocessors);
    let is_one_round = |half: &u32| blocks(shape[1], *half) <= multiprocessors * variant.half_plan.blocks();
    let half = half.filter(|half| shape[0] == 1 && is_one_round(half));
    Some(half.map_or((&variant.one, whole), |half| (&variant.half, half)))
}

/// A product of [`choose`]'s entry `name` as a phase of a chain: the chain's entry and the product in blocks of the chain's size, or none.
pub fn as_phase(
    name: &str,
    product: GemmWhole,
    multiprocessors: u32,
) -> Option<(&'static KernelSpec, GemmWhole)> {
    let variant = VARIANTS.iter().find(|variant| variant.names().contains(&name))?;
    let GemmWhole { m, n, k, splits, .. } = product;
    let row_groups = match name == variant.half.name {
        true => row_groups(variant.plan, [m, n, k], splits, multiprocessors)?,
        false => product.row_groups,
    };
    Some((variant.chain?, GemmWhole { row_groups, ..product }))
}

/// Bytes of several rows of `a` up to which whole blocks are faster than blocks that split `k`, with bf16 weights. H200, 2026-11-30: steps of
/// the demo model's 384 and 1024 columns, of 2 to 8 rows, take 10% to 20% less.
const SEVERAL_ROWS_BYTES: u64 = 20 << 10;

/// [`row_groups`] for `m` rows and bf16 weights `[n, k]`, where they are faster than blocks that split `k`. H200, 2026-11-30, a decode step of the 8B shape: of one
/// row by 1.5%, of two as fast, of four slower by 0.5%; with the head, whose blocks take four rounds, slower.
pub fn choose_bf16(shape: [u32; 3], splits: u32, multiprocessors: u32) -> Option<u32> {
    let [m, n, k] = shape;
    let row_groups = row_groups(Plan::BF16, shape, splits, multiprocessors)?;
    let are_few = m == 1 || m > 0 && u64::from(m) * u64::from(k) * 2 <= SEVERAL_ROWS_BYTES;
    (are_few && blocks(n, row_groups) <= multiprocessors).then_some(row_groups)
}

/// How many groups of 16 rows of the weights `[n, k]` each block has, of `m` rows: where a block has room for the rows of `a`, and warps for the splits of
/// its share of the rows.
pub fn row_groups(plan: Plan, [m, n, k]: [u32; 3], splits: u32, multiprocessors: u32) -> Option<u32> {
    let a_bytes = u64::from(m) * u64::from(plan.a_pitch(k.div_ceil(plan.step_k)));
    if m > TOKENS || a_bytes > u64::from(plan.most_row_bytes()) {
        return None;
    }
    let row_groups = n.div_ceil(layout::PIECE_ROWS);
    // As many rounds of blocks as they must be, of blocks as small as they may be.
    let most = plan.warps / splits.max(1);
    let places = multiprocessors.max(1) * plan.blocks();
    let rounds = row_groups.div_ceil(places * most.max(1));
    let share = row_groups.div_ceil(places * rounds.max(1));
    let is_one_round = most > 0 && (rounds == 1 || splits == 1);
    is_one_round.then_some(share.max(1))
}

/// Whether `next` may be the phase after `before`, of which the last has just been taken: it reads that one's rows, which come by mail, and adds none but its own
/// block's of another; and nothing of it is written where the first phase, which nobody tells that all have read, reads its rows.
pub fn follows(before: &[GemmWhole], next: &GemmWhole) -> bool {
    let [first, ..] = before else { return true };
    let last = &before[before.len() - 1];
    let input = |phase: &GemmWhole| if phase.norm_x == 0 { phase.a } else { phase.norm_x };
    let writes = |address: u64| next.out == address || next.norm_x != 0 && next.a == address;
    let cols = if last.silu == 0 { last.n } else { last.n / 2 };
    let is_own = |earlier: &GemmWhole| [earlier.n, earlier.row_groups] == [next.n, next.row_groups];
    input(next) == last.out
        && !writes(input(first))
        && last.out_f32 == 0
        && [last.m, cols, last.out_stride] == [next.m, next.k, next.k]
        && before
            .iter()
            .all(|earlier| earlier.out != next.residual || earlier.silu == next.silu && is_own(earlier))
}

/// Blocks of a launch of `row_groups` times 16 of `n` rows each.
pub fn blocks(n: u32, row_groups: u32) -> u32 {
    n.div_ceil(layout::PIECE_ROWS).div_ceil(row_groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gemm_few::{Activations, launch::splits},
        gemm_whole::BF16,
    };

    const WEIGHTS: Weights = Weights::Int4 { groups: 1, activations: Activations::Bf16 };

    #[test]
    fn blocks_are_one_round_of_the_device() {
        let of = |m, n, k| {
            let splits = splits(n, k, layout::TILE_K);
            let (spec, row_groups) = choose(WEIGHTS, [m, n, k], splits, 132)?;
            Some((spec.min_blocks, row_groups, blocks(n, row_groups)))
        };
        assert_eq!(of(1, 4096, 4096), Some((2, 1, 256)));
        assert_eq!(of(4, 14_336, 4096), Some((1, 7, 128)));
        assert_eq!(of(1, 14_336, 4096), Some((2, 4, 224)));
        assert_eq!(of(1, 4096, 14_336), Some((2, 1, 256)));
        assert_eq!(of(1, 6144, 4096), Some((1, 3, 128)));
        assert_eq!(of(2, 28_672, 8192), Some((1, 14, 128)));
        // More splits than a half block has warps.
        assert_eq!(of(1, 896, 4864), Some((1, 1, 56)));
        // More of `a` than is worth it; more rows of weights than warps.
        assert_eq!(of(2, 4096, 14_336), None);
        assert_eq!(of(8, 4096, 4096), None);
        assert_eq!(of(1, 4352, 4096), None);
        // Several rounds where nothing is joined.
        assert_eq!(of(1, 128_256, 4096), Some((1, 16, 501)));
        let of_bf16 = |m, n, k| {
            let splits = splits(n, k, Plan::BF16.step_k);
            choose_bf16([m, n, k], splits, 132).map(|groups| (splits, groups, blocks(n, groups)))
        };
        assert_eq!(of_bf16(1, 4096, 4096), Some((8, 2, 128)));
        assert_eq!(of_bf16(1, 28_672, 4096), Some((1, 14, 128)));
        assert_eq!(of_bf16(1, 4096, 14_336), Some((8, 2, 128)));
        assert_eq!(of_bf16(3, 4096, 4096), None);
        assert_eq!(of_bf16(0, 384, 384), None);
        assert_eq!(of_bf16(8, 384, 384).map(|(_, groups, _)| groups), Some(1));
        assert_eq!(of_bf16(1, 128_256, 4096), None);
    }

    #[test]
    fn phases_read_the_rows_of_the_one_before() {
        let first = GemmWhole {
            a: 1,
            residual: 2,
            out: 2,
            m: 1,
            n: 64,
            k: 128,
            row_groups: 2,
            out_stride: 64,
            ..GemmWhole::default()
        };
        let gated = GemmWhole {
            a: 3,
            norm_x: 2,
            out: 4,
            n: 512,
            k: 64,
            silu: 1,
            out_stride: 256,
            residual: 0,
            ..first
        };
        let down = GemmWhole { a: 4, residual: 2, out: 2, n: 64, k: 256, ..first };
        assert!(follows(&[], &first) && follows(&[first], &gated) && follows(&[first, gated], &down));
        for other in [
            GemmWhole { a: 5, ..down },
            GemmWhole { m: 2, ..down },
            GemmWhole { k: 512, ..down },
            GemmWhole { row_groups: 1, ..down },
            GemmWhole { silu: 1, ..down },
            GemmWhole { out: 1, ..down },
        ] {
            assert!(!follows(&[first, gated], &other), "{other:?}");
        }
        for last in [
            GemmWhole { out_f32: 1, ..gated },
            GemmWhole { out_stride: 512, ..gated },
            GemmWhole { silu: 0, ..gated },
        ] {
            assert!(!follows(&[first, last], &down), "{last:?}");
        }
    }

    #[test]
    fn rows_have_room() {
        let of_four_bits = VARIANTS.iter().flat_map(|it| [(it.plan, &it.one), (it.half_plan, &it.half)]);
        for (plan, spec) in of_four_bits.chain([(Plan::BF16, &BF16)]) {
            assert!(plan.a() + plan.most_row_bytes() <= spec.shared_bytes, "{}", spec.name);
            assert!(plan.most_row_bytes() >= 20 << 10, "{}", spec.name);
        }
    }
}
