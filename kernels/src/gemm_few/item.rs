//! What a block works on.

use super::{Tile, layout};
use crate::{abi::GemmFew, ptx};

/// A split of a tile.
#[derive(Clone, Copy)]
pub(super) struct Item {
    pub row_tile: u32,
    pub token_tile: u32,
    pub token_tiles: u32,
    /// Its first stage of `k` and one past its last.
    pub first: u32,
    pub end: u32,
}

impl Item {
    /// The block's: blocks that read the same weights stand beside each other, then the splits of a tile.
    #[inline(always)]
    pub(super) fn of_block(p: &GemmFew, plan: Tile) -> Item {
        let token_tiles = p.m.div_ceil(plan.tokens).max(1);
        let (rest, token_tile) = (ptx::ctaid_x() / token_tiles, ptx::ctaid_x() % token_tiles);
        let splits = p.splits.max(1);
        let (first, end) = layout::split_steps(p.steps, splits, rest % splits);
        Item { row_tile: rest / splits, token_tile, token_tiles, first, end }
    }
}
