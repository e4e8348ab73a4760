//! What a block works on.

use super::{Tile, layout};
use crate::{abi::GemmFew, ptx};

/// Some of a tile's splits of `k`, which follow each other.
#[derive(Clone, Copy)]
pub(super) struct Item {
    pub tile: u32,
    /// In tiles of the block's rows.
    pub row_tile: u32,
    pub token_tile: u32,
    /// The first split.
    pub split: u32,
    /// The splits' first stage of `k` and one past their last.
    pub first: u32,
    pub end: u32,
    /// Whether the block has no split of the tile behind these.
    pub is_last: bool,
}

impl Item {
    /// Tiles of a launch.
    #[inline(always)]
    pub(super) fn tiles(p: &GemmFew, plan: Tile) -> u32 {
        p.m.div_ceil(plan.tokens) * p.n.div_ceil(plan.rows)
    }

    /// All that the block does of its `index`-th tile; of what isn't persistent that is one split of one tile.
    #[inline(always)]
    pub(super) fn whole(p: &GemmFew, plan: Tile, index: u32) -> Item {
        let (first, end) = own_splits(p, plan);
        Item::new(p, plan, ptx::ctaid_y() + index * ptx::here(ptx::nctaid_y()), first, end)
    }

    /// The `index`-th split that the block works on, of one tile after the other.
    #[inline(always)]
    pub(super) fn nth(p: &GemmFew, plan: Tile, index: u32) -> Item {
        let (first, end) = own_splits(p, plan);
        let each = (end - first).max(1);
        let (tiles, split) = (index / each, first + index % each);
        let item = Item::new(p, plan, ptx::ctaid_y() + tiles * ptx::here(ptx::nctaid_y()), split, split + 1);
        Item { is_last: split + 1 == end, ..item }
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
        let (row_tile, token_tile) = (tile / token_tiles, tile % token_tiles);
        Item { tile, row_tile, token_tile, split, first, end, is_last: true }
    }
}

/// The block's splits of each of its tiles: the first and one past the last.
#[inline(always)]
fn own_splits(p: &GemmFew, plan: Tile) -> (u32, u32) {
    let rank = ptx::ctaid_x();
    if plan.is_persistent() {
        layout::split_steps(p.splits, ptx::here(ptx::nctaid_x()), rank)
    } else {
        (rank, rank + 1)
    }
}
