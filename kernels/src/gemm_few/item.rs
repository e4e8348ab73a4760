//! What a block works on.

use super::{ROWS, Tile, layout};
use crate::abi::GemmFew;

/// A portion of the steps of all tiles of rows, for one tile of tokens: parts of one or several tiles.
#[derive(Clone, Copy)]
pub(super) struct Item {
    /// Its place in the launch: those of a portion are beside each other.
    pub index: u32,
    /// Which rows of the 256 are the block's.
    pub half: u32,
    pub token_tile: u32,
    pub token_tiles: u32,
    /// Its first step and one past its last, counted through all tiles of 256 rows.
    pub first: u32,
    pub end: u32,
}

/// Blocks' rows in the 256 that lie together.
#[inline(always)]
const fn halves(plan: Tile) -> u32 {
    ROWS / plan.rows
}

/// Steps of all tiles of 256 rows.
#[inline(always)]
fn all_steps(p: &GemmFew) -> u32 {
    p.n.div_ceil(ROWS) * p.steps
}

impl Item {
    /// Items of a launch.
    #[inline(always)]
    pub(super) fn count(p: &GemmFew, plan: Tile) -> u32 {
        p.m.div_ceil(plan.tokens) * halves(plan) * p.portions
    }

    /// Item `index`: those that read the same weights stand beside each other.
    #[inline(always)]
    pub(super) fn new(p: &GemmFew, plan: Tile, index: u32) -> Item {
        let token_tiles = p.m.div_ceil(plan.tokens);
        let rest = layout::divide(index, token_tiles);
        let token_tile = index - rest * token_tiles;
        let (portion, half) = (rest / halves(plan), rest % halves(plan));
        let first = layout::portion_start(all_steps(p), p.portions, portion);
        let end = layout::portion_start(all_steps(p), p.portions, portion + 1);
        Item { index, half, token_tile, token_tiles, first, end }
    }

    /// One past the last step of the part that begins at `step`: its tile's end or the item's.
    #[inline(always)]
    pub(super) fn part_end(self, p: &GemmFew, step: u32) -> u32 {
        ((Item::row_tile(p, step) + 1) * p.steps).min(self.end)
    }

    /// Tile of 256 rows of a step.
    #[inline(always)]
    pub(super) fn row_tile(p: &GemmFew, step: u32) -> u32 {
        layout::divide(step, p.steps)
    }

    /// First of the block's rows in the tile of a step.
    #[inline(always)]
    pub(super) fn row(self, p: &GemmFew, plan: Tile, step: u32) -> u32 {
        Item::row_tile(p, step) * ROWS + self.half * plan.rows
    }

    /// The portions that share the tile of `step`.
    #[inline(always)]
    pub(super) fn sharers(self, p: &GemmFew, plan: Tile, step: u32) -> Sharers {
        let tile = Item::row_tile(p, step);
        let apart = halves(plan) * self.token_tiles;
        if p.portions == p.n.div_ceil(ROWS) {
            return Sharers { first_index: self.index, count: 1, apart, tile: self.index };
        }
        let of = |step| layout::portion_of(all_steps(p), p.portions, step);
        let (first, last) = (of(tile * p.steps), of((tile + 1) * p.steps - 1));
        let within = self.half * self.token_tiles + self.token_tile;
        Sharers {
            first_index: first * apart + within,
            count: last - first + 1,
            apart,
            tile: tile * apart + within,
        }
    }
}

/// The items whose sums of a tile are added.
#[derive(Clone, Copy)]
pub(super) struct Sharers {
    /// The first one's index, ...
    pub first_index: u32,
    /// ... how many there are, ...
    pub count: u32,
    /// ... and how far apart their indices are.
    pub apart: u32,
    /// The tile's place among all tiles of rows and tokens.
    pub tile: u32,
}

impl Sharers {
    /// Where the sums of item `index` are, in parts of the scratch. Two an item: one of a tile that it begins, one of a tile that an
    /// item before it has begun. It ends any other tile that it has part in.
    #[inline(always)]
    pub(super) fn place(self, index: u32) -> u32 {
        index * 2 + if index == self.first_index { 1 } else { 0 }
    }
}

/// Runs `body` for each part of the block's items, with the item's index, the part's number of steps and one past its last. No function: one
/// that takes a closure isn't inlined, and then the plan is no constant.
macro_rules! for_each_part {
    ($p:ident, $plan:ident, |$index:ident, $steps:ident, $end:ident| $body:block) => {
        let mut $index = ptx::ctaid_x();
        while $index < Item::count($p, $plan) {
            let mut $end = Item::new($p, $plan, $index).first;
            loop {
                // Found again rather than kept in registers through the products.
                let item = Item::new($p, $plan, ptx::here($index));
                if $end >= item.end {
                    break;
                }
                let $steps = item.part_end($p, $end) - $end;
                $end += $steps;
                $body
            }
            $index += ptx::nctaid_x();
            if !$plan.is_persistent() {
                break;
            }
        }
    };
}
pub(super) use for_each_part;
