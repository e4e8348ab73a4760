//! The warps that multiply, and the one that counts for them.

use super::{HEAD_DIM, ITEM_BYTES, ITEMS, Plan, TILE_KEYS, WARPS, producer::Place};
use crate::{
    abi::{AttentionDecode, KV_BF16},
    attention_decode::{
        item::Item,
        join::{count, join_chunks, merge_warps, share, warps_meet},
        products::{ReadPlan, load_queries},
        ring::Scales,
        rows::{Rows, Tile, masks},
        softmax::{Scale, Softmax},
    },
    ptx,
};

/// One arrival of the warp at the barrier at `bar`.
///
/// # Safety
/// The whole warp calls it, done with what the barrier guards.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn arrive(bar: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        ptx::bar_warp_sync();
        if ptx::lane() == 0 {
            ptx::mbarrier_arrive(bar);
        }
    }
}

/// The next item of the block, which is number `items`. Its place is the caller's to give back.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
unsafe fn take(plan: Plan, items: u32) -> (Item, Place) {
    let place = Place::after(items, ITEMS);
    let base = ptx::shared_base();
    // SAFETY: the producer arrives in the end, with the item or with none.
    unsafe {
        ptx::mbarrier_wait(base + plan.item_full() + place.stage * 8, place.parity);
        (Item::shared(base + plan.s_items() + place.stage * ITEM_BYTES), place)
    }
}

/// Works on every item of the block.
///
/// # Safety
/// The first [`WARPS`] warps call it; the barriers are initialised.
#[inline(always)]
pub(super) unsafe fn consume<
    const FORMAT: u32,
    const CHUNKS: u32,
    const STEPS: usize,
    const KEYS16: usize,
    const ROWS8: usize,
>(
    p: &AttentionDecode,
    plan: Plan,
) {
    let base = ptx::shared_base();
    let (mut items, mut tiles, mut waiting) = (0, 0, Waiting::new());
    // SAFETY: all warps take the same branches: items come in the producer's order. A warp writes its part when the warps have met
    // since the parts were read.
    unsafe {
        loop {
            let (item, place) = take(plan, items);
            if item.rows == 0 {
                return waiting.finish(p, plan);
            }
            let rows = load_rows::<FORMAT, CHUNKS, STEPS, ROWS8>(
                p,
                &item,
                base + plan.s_q() + place.stage * plan.q_bytes(),
            );
            arrive(base + plan.item_empty() + place.stage * 8);
            items += 1;
            let softmax = attend::<FORMAT, CHUNKS, STEPS, KEYS16, ROWS8>(p, plan, &item, &rows, &mut tiles);
            // The chunk before this one has been counted by now.
            waiting.finish(p, plan);
            share::<FORMAT, STEPS, ROWS8>(plan.parts(), item.rows, &softmax);
            warps_meet();
            merge_warps(p, plan.parts(), &item);
            if item.chunks > 1 {
                arrive(base + plan.written());
                waiting.item = item;
            }
            warps_meet();
        }
    }
}

/// A chunk that is being counted.
struct Waiting {
    /// Without rows if none is.
    item: Item,
    counted: u32,
}

impl Waiting {
    #[inline(always)]
    fn new() -> Waiting {
        Waiting { item: Item::NONE, counted: 0 }
    }

    /// Waits until the chunk, if there is one, has been counted, and joins the chunks of its rows if it was their last.
    ///
    /// # Safety
    /// The warps that multiply call it, when nobody uses the parts.
    #[inline(always)]
    unsafe fn finish(&mut self, p: &AttentionDecode, plan: Plan) {
        if self.item.rows == 0 {
            return;
        }
        let base = ptx::shared_base();
        // SAFETY: the counting warp arrives once for each chunk, and writes `is_last` again only after all warps have left another
        // chunk in the scratch. It has acquired what the other chunks' blocks released.
        unsafe {
            ptx::mbarrier_wait(base + plan.counted(), self.counted % 2);
            self.counted += 1;
            if ptx::ld_shared_b32(base + plan.is_last()) != 0 {
                join_chunks(p, plan.parts(), &self.item);
                warps_meet();
            }
        }
        self.item.rows = 0;
    }
}

/// The item's query rows, from `s_q`.
///
/// # Safety
/// The whole warp calls it; they have landed.
#[inline(always)]
unsafe fn load_rows<const FORMAT: u32, const CHUNKS: u32, const STEPS: usize, const ROWS8: usize>(
    p: &AttentionDecode,
    item: &Item,
    s_q: u32,
) -> Rows<STEPS, ROWS8> {
    let row = ptx::lane() / 4;
    let mut is_there = [false; ROWS8];
    for n in 0..ROWS8 {
        is_there[n] = n as u32 * 8 + row < item.rows;
    }
    // SAFETY: the caller's promise.
    unsafe {
        let piece =
            |n: usize, offset| ptx::ld_shared_v4_b32(s_q + (n as u32 * 8 + row) * HEAD_DIM * 2 + offset);
        let q = load_queries::<FORMAT, CHUNKS, STEPS, ROWS8>(is_there, piece);
        Rows { q, masks: masks(p, item), open: item.open(p), drafts: item.drafts_start() }
    }
}

/// Attends to the warp's tiles of the item; `used` counts those of all warps.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
unsafe fn attend<
    const FORMAT: u32,
    const CHUNKS: u32,
    const STEPS: usize,
    const KEYS16: usize,
    const ROWS8: usize,
>(
    p: &AttentionDecode,
    plan: Plan,
    item: &Item,
    rows: &Rows<STEPS, ROWS8>,
    used: &mut u32,
) -> Softmax<STEPS, ROWS8> {
    let base = ptx::shared_base();
    let scale = Scale { scale: p.scale, softcap: p.softcap };
    let reads = ReadPlan::new::<FORMAT, CHUNKS, true>();
    let mut softmax = Softmax::new();
    let first = item.first_round(WARPS * TILE_KEYS);
    let mut key = first + ptx::warp() * TILE_KEYS;
    let mut number = *used + ptx::warp();
    // SAFETY: the warp is whole. A stage is read after its `full` barrier, by this warp alone, and given back after that.
    unsafe {
        while key < item.end {
            let place = Place::after(number, plan.stages());
            ptx::mbarrier_wait(base + plan.full() + place.stage * 8, place.parity);
            let s_keys = base + place.stage * plan.stage_bytes();
            let s_values = s_keys + plan.tile_bytes();
            let is_cut = key < item.begin || key + TILE_KEYS > item.end;
            if is_cut {
                zero_unseen::<CHUNKS>(item, key, s_values);
                ptx::bar_warp_sync();
            }
            let s_scales = base + plan.s_scales() + place.stage * plan.scales_bytes();
            let scales = own_scales::<FORMAT, KEYS16>(item, key, s_scales);
            let tile = Tile { key, s_keys, s_values, scales };
            rows.add_tile::<FORMAT, CHUNKS, KEYS16, true>(&mut softmax, &tile, &scale, &reads);
            if is_cut {
                // The copy engine writes the zeros' place next.
                ptx::fence_proxy_async();
            }
            arrive(base + plan.empty() + place.stage * 8);
            key += WARPS * TILE_KEYS;
            number += WARPS;
        }
    }
    *used += item.end.saturating_sub(first).div_ceil(TILE_KEYS);
    softmax
}

/// Zeros the values of the tile's keys that no query sees, which may be anything.
///
/// # Safety
/// The whole warp calls it; the tile of values at `s_values` has landed and begins at key `first`.
#[inline(always)]
unsafe fn zero_unseen<const CHUNKS: u32>(item: &Item, first: u32, s_values: u32) {
    for step in 0..TILE_KEYS * CHUNKS / 32 {
        let index = step * 32 + ptx::lane();
        // Lines of the tile one after the other: whole ones are zeroed, so how their chunks are swizzled doesn't matter.
        let key = first + index / 8 % TILE_KEYS;
        if key < item.begin || key >= item.end {
            // SAFETY: within the tile.
            unsafe { ptx::st_shared_v4_b32(s_values + index * 16, [0; 4]) };
        }
    }
}

/// The scales of a lane's own keys, `g` and `g + 8` of each 16; zeros for keys that no query sees, whose scales may be anything.
///
/// # Safety
/// The tile's scales have landed at `s_scales`; it begins at key `first`.
#[inline(always)]
unsafe fn own_scales<const FORMAT: u32, const KEYS16: usize>(
    item: &Item,
    first: u32,
    s_scales: u32,
) -> [[Scales; 2]; KEYS16] {
    let mut own = [[Scales::NONE; 2]; KEYS16];
    if FORMAT == KV_BF16 {
        return own;
    }
    for m in 0..KEYS16 {
        for i in 0..2 {
            let index = m as u32 * 16 + i as u32 * 8 + ptx::lane() / 4;
            if first + index >= item.begin && first + index < item.end {
                let at = s_scales + index * 4;
                // SAFETY: the caller's promise.
                own[m][i] = unsafe {
                    Scales {
                        k: f32::from_bits(ptx::ld_shared_b32(at)),
                        v: f32::from_bits(ptx::ld_shared_b32(at + TILE_KEYS * 4)),
                    }
                };
            }
        }
    }
    own
}

/// Counts the chunks that the warps leave in the scratch: the wait for what they wrote to be everybody's is this warp's alone.
///
/// # Safety
/// One whole warp calls it; the barriers are initialised.
#[inline(always)]
pub(super) unsafe fn count_chunks(p: &AttentionDecode, plan: Plan) {
    let base = ptx::shared_base();
    let (mut items, mut chunks) = (0, 0u32);
    // SAFETY: items come in the producer's order. All warps have arrived after what they wrote, and wait for the answer before they
    // write another chunk.
    unsafe {
        loop {
            let (item, place) = take(plan, items);
            if item.rows == 0 {
                return;
            }
            arrive(base + plan.item_empty() + place.stage * 8);
            items += 1;
            if item.chunks > 1 {
                ptx::mbarrier_wait(base + plan.written(), chunks % 2);
                chunks += 1;
                if ptx::lane() == 0 {
                    ptx::st_shared_b32(base + plan.is_last(), count(p, &item) as u32);
                    ptx::mbarrier_arrive(base + plan.counted());
                }
                ptx::bar_warp_sync();
            }
        }
    }
}
