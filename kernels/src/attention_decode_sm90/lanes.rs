//! Tiles by `cp.async` of the warp's lanes, as `attention_decode` brings them: any row from anywhere, sixteen bytes at a time.

use super::{
    Feeding, Plan,
    producer::Feed,
    work::{Tiles, Work},
};
use crate::{
    abi::{AttentionDecodeSm90, KV_BF16},
    attention_decode::ring::{Copier, Lookup, Place},
    ptx,
};

/// Tiles whose pages are looked up before they are brought.
const AHEAD: usize = 4;

/// Copies of tiles of `TILE_KEYS` rows of `CHUNKS` chunks.
#[derive(Clone, Copy)]
pub(super) struct Lanes<const CHUNKS: u32, const TILE_KEYS: u32> {
    copier: Copier,
}

impl<const CHUNKS: u32, const TILE_KEYS: u32> Lanes<CHUNKS, TILE_KEYS> {
    #[inline(always)]
    pub fn new(p: &AttentionDecodeSm90, plan: Plan) -> Self {
        Self { copier: Copier::new::<CHUNKS>(&p.shared, matches!(plan.feeding, Feeding::LanesOnce)) }
    }
}

/// The rows of an item's next tiles.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    lookup: Lookup,
    next: [Place; AHEAD],
}

impl<const CHUNKS: u32, const TILE_KEYS: u32> Feed for Lanes<CHUNKS, TILE_KEYS> {
    type Places = Rows;

    #[inline(always)]
    unsafe fn look_up(&self, p: &AttentionDecodeSm90, plan: Plan, work: &Work) -> Rows {
        let first_key = work.item.chunk_start + Tiles::new(&work.item, plan).first * TILE_KEYS;
        let mut lookup = Lookup::new(&p.shared, &work.item, first_key, TILE_KEYS, TILE_KEYS);
        // SAFETY: the caller's promise.
        unsafe {
            let mut next = [lookup.next(); AHEAD];
            for i in 1..AHEAD {
                next[i] = lookup.next();
            }
            Rows { lookup, next }
        }
    }

    #[inline(always)]
    unsafe fn bring(
        &self,
        _: &AttentionDecodeSm90,
        _: Plan,
        _: &Work,
        rows: &mut Rows,
        s_stage: u32,
        full: u32,
    ) {
        // SAFETY: the caller's promise; each lane's copies are its arrival's.
        unsafe {
            self.copier.start::<KV_BF16, CHUNKS, TILE_KEYS>(s_stage, &rows.lookup, rows.next[0]);
            ptx::mbarrier_arrive_cp_async(full);
            for i in 1..AHEAD {
                rows.next[i - 1] = rows.next[i];
            }
            rows.next[AHEAD - 1] = rows.lookup.next();
        }
    }
}
