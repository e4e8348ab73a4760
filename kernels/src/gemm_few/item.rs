//! What a block works on.

use super::{Tile, layout};
use crate::{abi::GemmFew, ptx};

/// One of a block's splits of `k` of one of its tiles. It has one of each, or, of a persistent variant, several splits of one tile after the other.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub tile: u32,
    pub split: u32,
}

impl Place {
    /// The block's first, of its splits side by side that of `side`, which need not be there.
    #[inline(always)]
    pub(super) fn first(p: &GemmFew, plan: Tile, side: u32) -> Place {
        Place { tile: ptx::ctaid_y(), split: Splits::own(p, plan).first + side }
    }

    /// The one after it, which need not be inside of the launch.
    #[inline(always)]
    pub(super) fn next(self, p: &GemmFew, plan: Tile) -> Place {
        let own = Splits::own(p, plan);
        if self.split + 1 < own.end {
            Place { split: self.split + 1, ..self }
        } else {
            Place { tile: self.tile + ptx::nctaid_y(), split: own.first }
        }
    }

    /// Whether the launch has it.
    #[inline(always)]
    pub(super) fn is_inside(self, p: &GemmFew, plan: Tile) -> bool {
        self.tile < p.m.div_ceil(plan.tokens) * p.n.div_ceil(plan.rows)
    }
}

/// The block's splits of each of its tiles.
#[derive(Clone, Copy)]
pub(super) struct Splits {
    pub first: u32,
    /// One past the last.
    pub end: u32,
    /// Splits whose sums a block hands over together: 1, where each block has one, or 2, of which the first's are kept for the second.
    pub together: u32,
}

impl Splits {
    #[inline(always)]
    pub(super) fn own(p: &GemmFew, plan: Tile) -> Splits {
        let rank = ptx::ctaid_x();
        let [ranks, splits] = [ptx::nctaid_x(), p.splits].map(ptx::here);
        if plan.abreast == 2 {
            return Splits { first: 0, end: splits, together: 2 };
        }
        if !plan.is_persistent() || ranks == splits {
            return Splits { first: rank, end: rank + 1, together: 1 };
        }
        let (first, end) = layout::split_steps(splits.div_ceil(2), ranks, rank);
        Splits { first: first * 2, end: (end * 2).min(splits), together: 2 }
    }
}

/// Stages of a tile.
#[derive(Clone, Copy)]
pub(super) struct Item {
    /// In tiles of the block's rows.
    pub row_tile: u32,
    pub token_tile: u32,
    /// The first stage of `k` and one past the last.
    pub first: u32,
    pub end: u32,
    /// How many the block has: as many, or those of a longer split beside this one.
    pub stages: u32,
}

impl Item {
    /// Those of one split.
    #[inline(always)]
    pub(super) fn of(p: &GemmFew, plan: Tile, place: Place) -> Item {
        Item::new(p, plan, place.tile, place.split, place.split + 1)
    }

    /// Those of all splits that the block takes of a tile, one after the other, from the one at `place` on.
    #[inline(always)]
    pub(super) fn whole(p: &GemmFew, plan: Tile, place: Place) -> Item {
        Item::new(p, plan, place.tile, place.split, Splits::own(p, plan).end)
    }

    /// Tiles that read the same weights stand beside each other.
    #[inline(always)]
    fn new(p: &GemmFew, plan: Tile, tile: u32, split: u32, end_split: u32) -> Item {
        // Divisors are hidden from the compiler, which would keep their reciprocals in registers through the products.
        let token_tiles = ptx::here(p.m).div_ceil(plan.tokens).max(1);
        let splits = ptx::here(p.splits);
        let (first, mut end) = layout::split_steps(p.steps, splits, split);
        if plan.is_persistent() {
            (_, end) = layout::split_steps(p.steps, splits, end_split - 1);
        }
        let mut stages = end - first;
        if plan.abreast == 2 {
            // The first is the longer one. There may be one alone.
            (_, stages) = layout::split_steps(p.steps, splits, 0);
            if split >= splits {
                end = first;
            }
        }
        Item { row_tile: tile / token_tiles, token_tile: tile % token_tiles, first, end, stages }
    }
}
