//! The warp that brings the tiles.

use super::{BLOCK_M, LINE_BYTES, STAGES, Tile};
use crate::{
    abi::GemmSm90,
    ptx::{self, MapRef},
    tile::Ring,
};

/// Where the matrices' maps are.
#[derive(Clone, Copy)]
pub(super) struct Maps {
    pub a: MapRef,
    pub w: MapRef,
    pub out: MapRef,
}

/// The first row and column of tile `index`: bands of tile rows, in each down the rows first.
#[inline(always)]
pub(super) fn place(p: &GemmSm90, tile: Tile, index: u32) -> (u32, u32) {
    let (rows, cols) = (p.m.div_ceil(BLOCK_M), p.n.div_ceil(tile.block_n));
    // Never 0; a division that can fail has no place in a kernel.
    let band_tiles = (p.band * cols).max(1);
    let (band, within) = (index / band_tiles, index % band_tiles);
    let height = (rows - band * p.band).min(p.band).max(1);
    ((band * p.band + within % height) * BLOCK_M, within / height * tile.block_n)
}

/// Tiles of the product.
#[inline(always)]
pub(super) fn tiles(p: &GemmSm90, tile: Tile) -> u32 {
    p.m.div_ceil(BLOCK_M) * p.n.div_ceil(tile.block_n)
}

/// Brings every line of `k` of the block's tiles, in the order in which the consumers take them.
///
/// # Safety
/// One lane calls it; the barriers are initialised.
#[inline(always)]
pub(super) unsafe fn produce<const ELEMENT_BYTES: u32>(p: &GemmSm90, maps: Maps, plan: Tile) {
    let base = ptx::shared_base();
    let lines = (p.k * ELEMENT_BYTES).div_ceil(LINE_BYTES);
    let mut ring = Ring::new();
    let mut index = ptx::ctaid_x();
    while index < tiles(p, plan) {
        let (row, col) = place(p, plan, index);
        for line in 0..lines {
            let stage = ring.stage(STAGES);
            let (s_a, bar) = (base + stage * plan.stage_bytes(), base + plan.full() + stage * 8);
            let k = (line * (LINE_BYTES / ELEMENT_BYTES)) as i32;
            // SAFETY: the stage is free once the phase of its `empty` barrier before this one has completed; the boxes fill it.
            unsafe {
                ptx::mbarrier_wait(base + plan.empty() + stage * 8, ring.parity(STAGES) ^ 1);
                ptx::mbarrier_arrive_expect_tx(bar, plan.stage_bytes());
                ptx::bulk_tensor_load_2d(s_a, maps.a, [k, row as i32], bar);
                ptx::bulk_tensor_load_2d(s_a + BLOCK_M * LINE_BYTES, maps.w, [k, col as i32], bar);
            }
            ring = ring.next();
        }
        index += ptx::nctaid_x();
    }
}
