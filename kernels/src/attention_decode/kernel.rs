//! Device code of [`super::VARIANTS`].

use super::{
    STAGES, SharedPlan, WARPS,
    item::{Item, LateItems, RowMask, group},
    join::{join_chunks, merge_warps, share},
    products::{Queries, ReadPlan, add_values, load_queries, scores},
    ring::{LOOKUPS_AHEAD, Producer, Scales, Walk},
    row_bytes,
    softmax::{Scale, Softmax, mask, own_scales, scale_keys, scale_values},
    tile_keys,
};
use crate::{
    abi::{AttentionDecode, KV_BF16, KV_FP8, KV_INT8},
    entry::kernel,
    ptx,
};

/// Tiles of the ring that stay in flight while a warp waits for the oldest.
const AHEAD: u32 = STAGES - 1;

/// The query rows of an item.
struct Rows<const STEPS: usize, const ROWS8: usize> {
    q: Queries<STEPS, ROWS8>,
    /// Of a lane's two rows of each 8.
    masks: [[RowMask; 2]; ROWS8],
}

impl<const STEPS: usize, const ROWS8: usize> Rows<STEPS, ROWS8> {
    const PADDING: Self = Self { q: [[[0; 2]; STEPS]; ROWS8], masks: [[RowMask::OF_PADDING; 2]; ROWS8] };

    /// # Safety
    /// The item's queries are there.
    #[inline(always)]
    unsafe fn load<const FORMAT: u32, const HEAD_DIM: u32>(p: &AttentionDecode, item: &Item) -> Self {
        let lane = ptx::tid_x_anew() % 32;
        let mut g_rows = [0; ROWS8];
        let mut masks = Self::PADDING.masks;
        for n in 0..ROWS8 {
            let row = n as u32 * 8 + lane / 4;
            if row < item.rows {
                g_rows[n] = p.q + item.head(p, row) * u64::from(HEAD_DIM) * 2;
            }
            for e in 0..2 {
                let row = n as u32 * 8 + lane % 4 * 2 + e as u32;
                if row < item.rows {
                    // SAFETY: one of the sequence's queries.
                    masks[n][e] = unsafe { RowMask::of(p, item, (item.first_row + row) / group(p)) };
                }
            }
        }
        // SAFETY: heads of the sequence's queries.
        Self { q: unsafe { load_queries::<FORMAT, STEPS, ROWS8>(g_rows) }, masks }
    }
}

/// A warp's ring and how far it has come.
struct Ring {
    producer: Producer,
    s_ring: u32,
    /// Offset of the oldest tile.
    stage: u32,
    /// Steps of the producer, and tiles consumed.
    steps: u32,
    consumed: u32,
    /// Of the tiles in the ring, the oldest first.
    scales: [Scales; STAGES as usize],
}

/// Attends to a warp's tiles of an item.
///
/// # Safety
/// The whole warp calls it; nobody else uses its ring.
#[inline(always)]
unsafe fn attend<
    const FORMAT: u32,
    const HEAD_DIM: u32,
    const CHUNKS: u32,
    const STEPS: usize,
    const TILE_KEYS: u32,
    const KEYS16: usize,
    const ROWS8: usize,
    const ROWS: u32,
>(
    p: &AttentionDecode,
    plan: &SharedPlan,
    item: &Item,
    ring: &mut Ring,
) -> Softmax<STEPS, ROWS8> {
    let quantised = FORMAT != KV_BF16;
    let walk = Walk::new::<TILE_KEYS>(item);
    let scale = Scale { scale: p.scale, softcap: p.softcap };
    let reads = ReadPlan::new::<FORMAT, CHUNKS>();
    // Keys from `open` up to the drafts are visible to every row.
    let open = if p.window == 0 { 0 } else { item.kv_len.saturating_sub(p.window) };
    let drafts_start = item.drafts_start();
    let mut softmax = Softmax::new();
    let mut rows = Rows::PADDING;
    let (mut tile, mut key) = (0, walk.first_key);
    while tile < walk.tiles {
        // SAFETY: the warp is whole and walks together. A stage is read after every lane has waited for its copies and the warp
        // has met, and is free after it has met again.
        unsafe {
            // As often as the ring is deep at first, then once a tile.
            while ring.steps < ring.consumed + STAGES + LOOKUPS_AHEAD {
                let scales = ring.producer.step::<FORMAT, CHUNKS, TILE_KEYS, ROWS>(p, ring.s_ring);
                for i in 1..STAGES as usize {
                    ring.scales[i - 1] = ring.scales[i];
                }
                ring.scales[AHEAD as usize] = scales;
                ring.steps += 1;
            }
            if tile == 0 {
                rows = Rows::load::<FORMAT, HEAD_DIM>(p, item);
            }
            ptx::cp_async_wait::<AHEAD>();
            ptx::bar_warp_sync();
            let s_stage = ring.s_ring + ring.stage;
            let mut s = scores::<FORMAT, CHUNKS, STEPS, KEYS16, ROWS8>(&rows.q, s_stage, &reads);
            let own = if quantised { own_scales(ring.scales[0]) } else { [[Scales::NONE; 2]; KEYS16] };
            if quantised {
                scale_keys(&mut s, &own);
            }
            scale.apply(&mut s);
            if key < open || (key + TILE_KEYS) as i32 > drafts_start {
                mask(&mut s, key, drafts_start, &rows.masks);
            }
            softmax.update(&mut s);
            if quantised {
                scale_values(&mut s, &own);
            }
            let s_values = s_stage + plan.tile_bytes();
            add_values::<FORMAT, CHUNKS, STEPS, KEYS16, ROWS8>(&mut softmax.out, &s, s_values, &reads);
            ptx::bar_warp_sync();
        }
        let next = ring.stage + plan.stage_bytes();
        ring.stage = if next == plan.ring_bytes() { 0 } else { next };
        ring.consumed += 1;
        tile += 1;
        key += WARPS * TILE_KEYS;
    }
    softmax
}

/// A unit whose chunk is in the scratch, and what its counter said.
#[derive(Clone, Copy)]
struct Pending {
    /// [`Pending::NOTHING`] if there is none.
    unit: u32,
    /// Thread 0's: the chunks that were there before, and those that there are besides this one.
    before: u32,
    others: u32,
}

impl Pending {
    const NOTHING: Pending = Pending { unit: u32::MAX, before: 0, others: 0 };

    /// Counts the block's chunk of a unit. The answer is asked for a unit later, when it has long come.
    ///
    /// # Safety
    /// The whole block calls it, after a barrier that follows its writing of the scratch.
    #[inline(always)]
    unsafe fn count(p: &AttentionDecode, unit: u32, item: &Item) -> Pending {
        let mut pending = Pending { unit, before: 0, others: item.chunks - 1 };
        if ptx::tid_x() == 0 {
            // SAFETY: the unit's own counter. The barrier lets this thread see what the block wrote, and the addition releases
            // that; whoever comes last has then acquired what all released.
            pending.before = unsafe { ptx::atom_add_acq_rel_gpu_u32(p.counters + item.slot(0) * 4, 1) };
        }
        pending
    }

    /// Tells the block, by the next barrier, whether it has to join the unit's chunks.
    ///
    /// # Safety
    /// The whole block calls it; nobody reads what it told before.
    #[inline(always)]
    unsafe fn tell(&self, plan: &SharedPlan) {
        if self.unit != Self::NOTHING.unit && ptx::tid_x() == 0 {
            let joins = (self.before == self.others) as u32;
            // SAFETY: the plan's own word.
            unsafe { ptx::st_shared_b32(ptx::shared_base() + plan.joins(), joins) };
        }
    }

    /// Joins the unit's chunks if this block is the last that counted one, and leaves the counter as it was.
    ///
    /// # Safety
    /// The whole block calls it, after [`Pending::tell`] and a barrier.
    #[inline(always)]
    unsafe fn settle<const DIMS: usize, const ROWS: u32>(&self, p: &AttentionDecode, plan: &SharedPlan) {
        if self.unit == Self::NOTHING.unit {
            return;
        }
        // SAFETY: told before the barrier; thread 0 has acquired the other blocks' chunks, and the barrier hands them on.
        unsafe {
            if ptx::ld_shared_b32(ptx::shared_base() + plan.joins()) == 0 {
                return;
            }
            if let Some(item) = LateItems::again::<ROWS>(p, self.unit) {
                join_chunks::<DIMS>(p, plan, &item);
                if ptx::tid_x() == 0 {
                    ptx::st_global_b32(p.counters + item.slot(0) * 4, 0);
                }
            }
        }
    }
}

/// # Safety
/// As the entries.
#[inline(always)]
unsafe fn decode<
    const FORMAT: u32,
    const HEAD_DIM: u32,
    const CHUNKS: u32,
    const STEPS: usize,
    const TILE_KEYS: u32,
    const KEYS16: usize,
    const ROWS8: usize,
    const ROWS: u32,
    const DIMS: usize,
>(
    p: &AttentionDecode,
) {
    const {
        assert!(CHUNKS * 16 == row_bytes(FORMAT, HEAD_DIM) && STEPS as u32 * 16 == HEAD_DIM);
        assert!(TILE_KEYS == tile_keys(FORMAT, HEAD_DIM) && KEYS16 as u32 * 16 == TILE_KEYS);
        assert!(ROWS == ROWS8 as u32 * 8 && DIMS as u32 * 32 == HEAD_DIM);
    }
    let plan = SharedPlan { tile_keys: TILE_KEYS, rows: ROWS, row_bytes: CHUNKS * 16, head_dim: HEAD_DIM };
    let mut items = LateItems::new();
    let mut ring = Ring {
        producer: Producer::new::<CHUNKS, TILE_KEYS>(p),
        s_ring: ptx::shared_base() + ptx::warp() * plan.ring_bytes(),
        stage: 0,
        steps: 0,
        consumed: 0,
        scales: [Scales::NONE; STAGES as usize],
    };
    let mut pending = Pending::NOTHING;
    while let Some((unit, item)) = items.next::<ROWS>(p) {
        // SAFETY: every warp is whole here, and all take the same way: the items are the block's. A warp shares its part in the
        // free stage of its own ring; the barriers stand between that and the merge, and between the merge and the next copy
        // into the stage, the next sums, and the counting.
        unsafe {
            let softmax = attend::<FORMAT, HEAD_DIM, CHUNKS, STEPS, TILE_KEYS, KEYS16, ROWS8, ROWS>(
                p, &plan, &item, &mut ring,
            );
            share::<FORMAT, STEPS, ROWS8>(&plan, ring.producer.free_stage, item.rows, &softmax);
            pending.tell(&plan);
            ptx::bar_sync();
            merge_warps(p, &plan, &item);
            pending.settle::<DIMS, ROWS>(p, &plan);
            ptx::bar_sync();
            pending = if item.chunks > 1 { Pending::count(p, unit, &item) } else { Pending::NOTHING };
        }
    }
    // SAFETY: as above.
    unsafe {
        pending.tell(&plan);
        ptx::bar_sync();
        pending.settle::<DIMS, ROWS>(p, &plan);
    }
}

macro_rules! entries {
    ($($name:ident: $format:ident, $head_dim:literal, $chunks:literal, $tile_keys:literal, $rows8:literal;)*) => {
        $(kernel! {
            /// See [`AttentionDecode`].
            pub fn $name(p: AttentionDecode) {
                decode::<{ $format }, $head_dim, $chunks, { $head_dim / 16 }, $tile_keys, { $tile_keys / 16 }, $rows8, { $rows8 * 8 }, { $head_dim / 32 }>(&p);
            }
        })*
    };
}

entries! {
    attention_decode_bf16_hd64_rows8: KV_BF16, 64, 8, 32, 1;
    attention_decode_bf16_hd64_rows16: KV_BF16, 64, 8, 32, 2;
    attention_decode_bf16_hd128_rows8: KV_BF16, 128, 16, 16, 1;
    attention_decode_bf16_hd128_rows16: KV_BF16, 128, 16, 16, 2;
    attention_decode_int8_hd64_rows8: KV_INT8, 64, 4, 32, 1;
    attention_decode_int8_hd64_rows16: KV_INT8, 64, 4, 32, 2;
    attention_decode_int8_hd128_rows8: KV_INT8, 128, 8, 32, 1;
    attention_decode_int8_hd128_rows16: KV_INT8, 128, 8, 32, 2;
    attention_decode_fp8_hd64_rows8: KV_FP8, 64, 4, 32, 1;
    attention_decode_fp8_hd64_rows16: KV_FP8, 64, 4, 32, 2;
    attention_decode_fp8_hd128_rows8: KV_FP8, 128, 8, 32, 1;
    attention_decode_fp8_hd128_rows16: KV_FP8, 128, 8, 32, 2;
}
