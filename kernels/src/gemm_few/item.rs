//! What a block works on.

use super::{Tile, layout};
use crate::{abi::GemmFew, ptx};

/// A split of a tile.
#[derive(Clone, Copy)]
pub(super) struct Item {
    /// In tiles of the block's rows.
    pub row_tile: u32,
    pub token_tile: u32,
    /// The split's first stage of `k` and one past its last.
    pub first: u32,
    pub end: u32,
}

impl Item {
    /// Tiles of a launch.
    #[inline(always)]
    pub(super) fn tiles(p: &GemmFew, plan: Tile) -> u32 {
        p.m.div_ceil(plan.tokens) * p.n.div_ceil(plan.rows)
    }

    /// The block's split of a tile. Tiles that read the same weights stand beside each other.
    #[inline(always)]
    pub(super) fn new(p: &GemmFew, plan: Tile, tile: u32) -> Item {
        let token_tiles = p.m.div_ceil(plan.tokens).max(1);
        let (first, end) = layout::split_steps(p.steps, p.splits, ptx::ctaid_x());
        Item { row_tile: tile / token_tiles, token_tile: tile % token_tiles, first, end }
    }
}
