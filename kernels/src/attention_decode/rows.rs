//! The query rows of a block and what a tile of keys and values does to them.

use super::{
    item::{Item, RowMask, group},
    products::{Queries, ReadPlan, add_values, scores},
    ring::Scales,
    softmax::{Scale, Softmax, mask, scale_keys, scale_values},
};
use crate::{
    abi::{AttentionDecode, KV_BF16},
    ptx,
};

/// The query rows of a block.
pub(crate) struct Rows<const STEPS: usize, const ROWS8: usize> {
    pub q: Queries<STEPS, ROWS8>,
    /// Of a lane's two rows of each 8.
    pub masks: [[RowMask; 2]; ROWS8],
    /// Keys from here up to the drafts are visible to every row.
    pub open: u32,
    /// The first draft's key; negative if the sequence holds fewer keys than queries.
    pub drafts: i32,
}

/// A tile of a warp, landed.
pub(crate) struct Tile<const KEYS16: usize> {
    /// Its first key.
    pub key: u32,
    pub s_keys: u32,
    pub s_values: u32,
    /// Of a lane's own keys, where the cache is quantised.
    pub scales: [[Scales; 2]; KEYS16],
}

/// The masks of a lane's rows of the item.
///
/// # Safety
/// The item is one of the launch.
#[inline(always)]
pub(crate) unsafe fn masks<const ROWS8: usize>(p: &AttentionDecode, item: &Item) -> [[RowMask; 2]; ROWS8] {
    let group = group(p);
    let first_row = item.row_tile * ROWS8 as u32 * 8;
    let mut masks = [[RowMask::of_padding(); 2]; ROWS8];
    for n in 0..ROWS8 {
        for e in 0..2 {
            let row = n as u32 * 8 + ptx::lane() % 4 * 2 + e as u32;
            if row < item.rows {
                // SAFETY: one of the sequence's queries.
                masks[n][e] = unsafe { RowMask::of(p, item, (first_row + row) / group) };
            }
        }
    }
    masks
}

impl<const STEPS: usize, const ROWS8: usize> Rows<STEPS, ROWS8> {
    /// Attends to a tile.
    ///
    /// # Safety
    /// The whole warp calls it; the tile's keys that no row sees have finite values.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub unsafe fn add_tile<const FORMAT: u32, const CHUNKS: u32, const KEYS16: usize, const LINES: bool>(
        &self,
        softmax: &mut Softmax<STEPS, ROWS8>,
        tile: &Tile<KEYS16>,
        scale: &Scale,
        reads: &ReadPlan,
    ) {
        let quantised = FORMAT != KV_BF16;
        let end = (tile.key + KEYS16 as u32 * 16) as i32;
        // SAFETY: the caller's promise.
        unsafe {
            let mut s = scores::<FORMAT, CHUNKS, STEPS, KEYS16, ROWS8, LINES>(&self.q, tile.s_keys, reads);
            if quantised {
                scale_keys(&mut s, &tile.scales);
            }
            scale.apply_all(&mut s);
            if tile.key < self.open || end > self.drafts {
                mask(&mut s, tile.key, self.drafts, &self.masks);
            }
            softmax.update(&mut s);
            if quantised {
                scale_values(&mut s, &tile.scales);
            }
            add_values::<FORMAT, CHUNKS, STEPS, KEYS16, ROWS8, LINES>(
                &mut softmax.out,
                &s,
                tile.s_values,
                reads,
            );
        }
    }
}
