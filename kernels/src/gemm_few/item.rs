//! What a block works on.

use super::{Tile, layout};
use crate::abi::GemmFew;

/// A split of a tile.
#[derive(Clone, Copy)]
pub(super) struct Item {
    /// Its place in the launch: of its tile's splits, those `token_tiles` apart.
    pub index: u32,
    /// In tiles of the block's rows.
    pub row_tile: u32,
    pub token_tile: u32,
    pub token_tiles: u32,
    /// The split.
    pub split: u32,
    /// Its first stage of `k` and one past its last.
    pub first: u32,
    pub end: u32,
}

impl Item {
    /// Parts of tiles of a launch.
    #[inline(always)]
    pub(super) fn count(p: &GemmFew, plan: Tile) -> u32 {
        p.m.div_ceil(plan.tokens) * p.n.div_ceil(plan.rows) * p.splits
    }

    /// Item `index`: those that read the same weights stand beside each other, then the splits of a tile.
    #[inline(always)]
    pub(super) fn new(p: &GemmFew, plan: Tile, index: u32) -> Item {
        let token_tiles = p.m.div_ceil(plan.tokens).max(1);
        let (rest, token_tile) = (index / token_tiles, index % token_tiles);
        let splits = p.splits.max(1);
        let split = rest % splits;
        let (first, end) = layout::split_steps(p.steps, splits, split);
        Item { index, row_tile: rest / splits, token_tile, token_tiles, split, first, end }
    }
}
