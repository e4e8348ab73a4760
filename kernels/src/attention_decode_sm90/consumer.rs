//! The four warps that multiply: each its tiles of every item, then their parts together.

use super::{
    BOX_ROWS, Feeding, ITEM_BYTES, ITEMS, LINE_BYTES, Plan, STAGE_BYTES, TILE_BYTES,
    work::{Place, Tiles, Work},
};
use crate::{
    abi::{AttentionDecode, KV_BF16},
    attention_decode::{
        WARPS,
        item::Item,
        join::finish,
        kernel::Rows,
        products::{ReadPlan, add_values, scores, value_row},
        softmax::{Scale, Softmax, mask},
    },
    ptx,
    tile::{Ring, swizzle},
};

/// Where a lane reads in a box: lines of 8 chunks, those of the heads' second halves after all first ones.
#[derive(Clone, Copy)]
pub(super) struct ByLines {
    /// Its first chunk of key `g`.
    keys: u32,
    /// Its row of the first `ldmatrix` of values.
    values: u32,
}

impl ByLines {
    #[inline(always)]
    pub fn new() -> Self {
        let (key, chunk) = value_row::<KV_BF16>();
        Self { keys: swizzle::<8>(ptx::lane() / 4, ptx::lane() % 4), values: swizzle::<8>(key, chunk) }
    }
}

impl ReadPlan for ByLines {
    const EIGHT_KEYS_BYTES: u32 = 8 * LINE_BYTES;

    #[inline(always)]
    fn keys(&self, j: u32) -> u32 {
        j / 2 * BOX_ROWS * LINE_BYTES + (self.keys ^ (j % 2 * 64))
    }

    #[inline(always)]
    fn values(&self, pair: u32) -> u32 {
        pair / 4 * BOX_ROWS * LINE_BYTES + (self.values ^ (pair % 4 * 32))
    }
}

/// Works on items until there are no more.
///
/// # Safety
/// Warps 0 to 3 call it; the barriers are initialised.
#[inline(always)]
pub(super) unsafe fn consume<
    const HEAD_DIM: u32,
    const CHUNKS: u32,
    const STEPS: usize,
    const KEYS16: usize,
    const ROWS8: usize,
    R: ReadPlan,
>(
    p: &AttentionDecode,
    plan: Plan,
    reads: R,
) {
    let base = ptx::shared_base();
    let (mut ring, mut place) = (Ring::new(), Place(0));
    // SAFETY: the four warps take the same items in the same order.
    unsafe {
        ptx::start_after_previous();
        loop {
            let stage = ring.stage(ITEMS);
            ptx::mbarrier_wait(base + plan.item_full() + stage * 8, ring.parity(ITEMS));
            let s_item = base + plan.s_items() + stage * ITEM_BYTES;
            let Some(work) = Work::shared(s_item) else { return };
            let rows = Rows::<STEPS, ROWS8>::load::<KV_BF16, HEAD_DIM>(p, &work.item, work.rows);
            let softmax =
                attend::<CHUNKS, STEPS, KEYS16, ROWS8, _>(p, plan, &work.item, &rows, &reads, place);
            // Read again rather than kept: a walk needs its registers.
            let Some(work) = Work::shared(s_item) else { return };
            ptx::bar_warp_sync();
            if ptx::lane() == 0 {
                ptx::mbarrier_arrive(base + plan.item_empty() + stage * 8);
            }
            // Of the item before, everybody has read what the parts' place held.
            plan.merge().meet();
            finish::<KV_BF16, STEPS, ROWS8>(p, &plan.merge(), &work.item, work.rows, &softmax);
            place = Place(place.0.wrapping_add(Tiles::new(&work.item, plan).count()));
            ring = ring.next();
        }
    }
}

/// Walks a warp's tiles of an item, whose first tile is at `place`.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
unsafe fn attend<
    const CHUNKS: u32,
    const STEPS: usize,
    const KEYS16: usize,
    const ROWS8: usize,
    R: ReadPlan,
>(
    p: &AttentionDecode,
    plan: Plan,
    item: &Item,
    rows: &Rows<STEPS, ROWS8>,
    reads: &R,
    place: Place,
) -> Softmax<STEPS, ROWS8> {
    let base = ptx::shared_base();
    let scale = Scale { scale: p.scale, softcap: p.softcap };
    let factors = rows.q.units.map(|rows| rows.map(|unit| unit * scale.factor()));
    let mut softmax = Softmax::new();
    // Keys from `open` up to the drafts are visible to every row.
    let open = if p.window == 0 { 0 } else { item.kv_len.saturating_sub(p.window) };
    let drafts = item.kv_len.saturating_sub(item.queries);
    let tiles = Tiles::new(item, plan);
    let mut tile = tiles.first_of(ptx::warp());
    // SAFETY: the warp is whole and walks together. A tile is read when it has landed, and given back when every lane has read it.
    unsafe {
        while tile < tiles.end {
            let at = Place(place.0.wrapping_add(tile - tiles.first));
            let (stage, key) = (at.stage(plan), item.chunk_start + tile * plan.tile_keys());
            let s_keys = base + stage * STAGE_BYTES;
            let s_values = s_keys + TILE_BYTES;
            // Tiles land in any order, and a parity tells a phase from the next alone: before the other warp's tile that was here has landed,
            // `full` would answer for the one before that.
            ptx::mbarrier_wait(base + plan.empty() + stage * 8, at.parity(plan) ^ 1);
            ptx::mbarrier_wait(base + plan.full() + stage * 8, at.parity(plan));
            let mut s = scores::<KV_BF16, CHUNKS, STEPS, KEYS16, ROWS8, _>(&rows.q, s_keys, reads);
            scale.apply_all(&mut s, &factors);
            if key < open || key + plan.tile_keys() > drafts {
                mask(&mut s, key, item.drafts_start(), &rows.masks);
            }
            softmax.update(&mut s, &[[1.0; 2]; ROWS8]);
            let dead = key < item.begin || key + plan.tile_keys() > item.end;
            if dead && matches!(plan.feeding, Feeding::Boxes) {
                zero_dead(s_values, key, item, plan);
            }
            add_values::<KV_BF16, CHUNKS, STEPS, KEYS16, ROWS8, _>(&mut softmax.out, &s, s_values, reads);
            ptx::bar_warp_sync();
            if ptx::lane() == 0 {
                ptx::mbarrier_arrive(base + plan.empty() + stage * 8);
            }
            tile += WARPS;
        }
    }
    softmax
}

/// Zeros for the values of keys that no query sees, of the tile that begins with key `first`: what they are may be NaN.
///
/// # Safety
/// The whole warp calls it; the tile has landed, and nobody else reads it.
#[inline(always)]
unsafe fn zero_dead(s_values: u32, first: u32, item: &Item, plan: Plan) {
    let mut chunk = ptx::lane();
    // SAFETY: within the tile, whose lines are those of its rows in order, once for each half of a head; turning chunks stays within a
    // line. The copy engine writes there again when a barrier has told it that this warp is done.
    unsafe {
        while chunk < TILE_BYTES / 16 {
            let key = first + chunk / 8 % plan.tile_keys();
            if key < item.begin || key >= item.end {
                ptx::st_shared_v4_b32(s_values + chunk * 16, [0; 4]);
            }
            chunk += 32;
        }
        ptx::fence_proxy_async();
        ptx::bar_warp_sync();
    }
}
