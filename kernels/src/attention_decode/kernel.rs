//! Device code of [`super::VARIANTS`].

use super::{
    STAGES, SharedPlan, WARPS,
    convert::unit,
    item::{Item, RowMask, group},
    join::{is_last_block, join_chunks, merge_warps, share},
    newest::Newest,
    products::{Queries, ReadPlan, add_values, load_queries, query_address, scores},
    ring::{Copier, Lookup, Scales},
    row_bytes,
    softmax::{Scale, Softmax, ValueUnits, mask, own_scales, scale_keys, scale_values},
    tile_keys,
};
use crate::{
    abi::{AttentionDecode, AttentionDecodeAppend, KV_BF16, KV_FP8, KV_INT8},
    entry::kernel,
    ptx,
};

/// Tiles of the ring that stay in flight while a warp waits for the oldest.
const AHEAD: u32 = STAGES - 1;

/// The query rows of a block as operands, `count` of which, from its row tile on, are there.
///
/// # Safety
/// The whole warp calls it. The item is the block's.
#[inline(always)]
unsafe fn queries<const FORMAT: u32, const HEAD_DIM: u32, const STEPS: usize, const ROWS8: usize>(
    p: &AttentionDecode,
    item: &Item,
    count: u32,
) -> Queries<STEPS, ROWS8> {
    let group = group(p);
    let first_row = item.row_tile * ROWS8 as u32 * 8;
    let mut g_rows = [0; ROWS8];
    for n in 0..ROWS8 {
        let row = n as u32 * 8 + ptx::lane() / 4;
        if row < count {
            let (query, head) = ((first_row + row) / group, (first_row + row) % group);
            g_rows[n] = query_address(p, item.query_start + query, item.kv_head * group + head, HEAD_DIM);
        }
    }
    // SAFETY: heads of the sequence's queries, and the warp is whole.
    unsafe { load_queries::<FORMAT, STEPS, ROWS8>(g_rows) }
}

/// What a lane's two rows of each 8 see.
///
/// # Safety
/// As [`queries`].
#[inline(always)]
unsafe fn masks<const ROWS8: usize>(p: &AttentionDecode, item: &Item, count: u32) -> [[RowMask; 2]; ROWS8] {
    let group = group(p);
    let first_row = item.row_tile * ROWS8 as u32 * 8;
    let mut masks = [[RowMask::of_padding(); 2]; ROWS8];
    for n in 0..ROWS8 {
        for e in 0..2 {
            let row = n as u32 * 8 + ptx::lane() % 4 * 2 + e as u32;
            if row < count {
                // SAFETY: one of the sequence's queries.
                masks[n][e] = unsafe { RowMask::of(p, item, (first_row + row) / group) };
            }
        }
    }
    masks
}

/// A warp's share of the item: its tile of each round of the block.
#[derive(Clone, Copy)]
struct Walk {
    /// The first key of its first tile.
    first_key: u32,
    tiles: u32,
    round: u32,
}

impl Walk {
    #[inline(always)]
    fn new(item: &Item, keys: u32) -> Walk {
        let round = WARPS * keys;
        // Rounds count from the chunk's start, wherever a window begins: which warp has a key is the sequence's affair alone.
        let skipped = (item.begin - item.chunk_start) / round * round;
        let first_key = item.chunk_start + skipped + ptx::warp() * keys;
        let tiles = if item.end > first_key { (item.end - first_key).div_ceil(round) } else { 0 };
        Walk { first_key, tiles, round }
    }

    /// Whether the sequence's last key is in the warp's last tile; of no keys at all that is said to warp 0.
    #[inline(always)]
    fn has_newest(&self, item: &Item) -> bool {
        let warp = (item.kv_len.saturating_sub(1) - item.chunk_start) / (self.round / WARPS) % WARPS;
        item.end == item.kv_len && warp == ptx::warp()
    }
}

/// Walks a warp's tiles, behind the wait for the launch before. With `appends`, tiles of earlier steps' keys are asked for before it, and the
/// one that holds the newest key once that has been appended.
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
>(
    p: &AttentionDecode,
    plan: &SharedPlan,
    item: &Item,
    rows: u32,
    appends: Option<&AttentionDecodeAppend>,
) -> Softmax<STEPS, ROWS8> {
    let quantised = FORMAT != KV_BF16;
    let walk = Walk::new(item, TILE_KEYS);
    let scale = Scale { scale: p.scale, softcap: p.softcap };
    let s_ring = ptx::shared_base() + ptx::warp() * plan.ring_stride();
    let stage_bytes = 2 * plan.tile_bytes();
    let copier = Copier::new::<CHUNKS>(p);
    let reads = ReadPlan::new::<FORMAT, CHUNKS>();
    let mut lookup = Lookup::new(p, item, walk.first_key, TILE_KEYS, walk.round);
    let mut softmax = Softmax::new();
    let mut scales = [Scales::NONE; STAGES as usize];
    let has_newest = appends.is_some() && walk.has_newest(item);
    // Tiles that nothing since the step before has written.
    let old = if appends.is_some() { walk.tiles.saturating_sub(has_newest as u32) } else { 0 };
    // SAFETY: the warp is whole and walks together. A stage is read after every lane has waited for its copies and the warp has
    // met, and written after it has met again.
    unsafe {
        let mut places = [lookup.next(); STAGES as usize];
        for s in 1..STAGES as usize {
            places[s] = lookup.next();
        }
        let mut place = lookup.next();
        let mut fill = |s: u32| {
            if s < walk.tiles {
                let s_stage = s_ring + s * stage_bytes;
                scales[s as usize] =
                    copier.start::<FORMAT, CHUNKS, TILE_KEYS>(s_stage, &lookup, places[s as usize]);
            }
            ptx::cp_async_commit();
        };
        let newest = appends.map(|appends| Newest::look_up::<STEPS>(appends, item));
        for s in 0..STAGES {
            if s < old {
                fill(s);
            }
        }
        ptx::wait_for_previous();
        let raw = newest.as_ref().map(|newest| newest.load_queries::<STEPS, ROWS8>(item, rows));
        if let Some(newest) = &newest
            && has_newest
        {
            newest.append::<STEPS>(item);
        }
        for s in 0..STAGES {
            if s >= old {
                fill(s);
            }
        }
        let q = match newest.as_ref().zip(raw.as_ref()) {
            Some((newest, raw)) => newest.queries(item, rows, raw, has_newest),
            None => queries::<FORMAT, HEAD_DIM, STEPS, ROWS8>(p, item, rows),
        };
        let masks = masks::<ROWS8>(p, item, rows);
        let factors = q.units.map(|rows| rows.map(|unit| unit * scale.factor()));
        let mut value_units = ValueUnits::new();
        // Keys from `open` up to the drafts are visible to every row.
        let open = if p.window == 0 { 0 } else { item.kv_len.saturating_sub(p.window) };
        let drafts = item.kv_len.saturating_sub(item.queries);
        let (mut tile, mut key, mut stage) = (0, walk.first_key, 0);
        while tile < walk.tiles {
            ptx::cp_async_wait::<AHEAD>();
            ptx::bar_warp_sync();
            let s_stage = s_ring + stage;
            let mut s = scores::<FORMAT, CHUNKS, STEPS, KEYS16, ROWS8>(&q, s_stage, &reads);
            let mut own = [[Scales::NONE; 2]; KEYS16];
            let mut rescale_out = [[1.0; 2]; ROWS8];
            if quantised {
                scales[0].k *= unit::<FORMAT>();
                own = own_scales::<KEYS16>(scales[0]);
                scale_keys(&mut s, &own);
            }
            scale.apply_all(&mut s, &factors);
            if key < open || key + TILE_KEYS > drafts {
                mask(&mut s, key, item.drafts_start(), &masks);
            }
            if quantised {
                rescale_out = value_units.take(&s, &own);
            }
            softmax.update(&mut s, &rescale_out);
            if quantised {
                scale_values(&mut s, &own, &value_units);
            }
            add_values::<FORMAT, CHUNKS, STEPS, KEYS16, ROWS8>(
                &mut softmax.out,
                &s,
                s_stage + plan.tile_bytes(),
                &reads,
            );
            ptx::bar_warp_sync();
            for s in 1..STAGES as usize {
                scales[s - 1] = scales[s];
            }
            if tile + STAGES < walk.tiles {
                scales[AHEAD as usize] = copier.start::<FORMAT, CHUNKS, TILE_KEYS>(s_stage, &lookup, place);
            }
            ptx::cp_async_commit();
            place = lookup.next();
            stage = if stage + stage_bytes == plan.ring_bytes() { 0 } else { stage + stage_bytes };
            tile += 1;
            key += walk.round;
        }
        if quantised {
            softmax.scale_out(&value_units.units());
            softmax.scale_out(&[[unit::<FORMAT>(); 2]; ROWS8]);
        }
    }
    softmax
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
>(
    p: &AttentionDecode,
    appends: Option<&AttentionDecodeAppend>,
) {
    const {
        assert!(CHUNKS * 16 == row_bytes(FORMAT, HEAD_DIM) && STEPS as u32 * 16 == HEAD_DIM);
        assert!(TILE_KEYS == tile_keys(FORMAT, HEAD_DIM) && KEYS16 as u32 * 16 == TILE_KEYS);
    }
    let plan = SharedPlan {
        tile_keys: TILE_KEYS,
        rows: ROWS8 as u32 * 8,
        row_bytes: CHUNKS * 16,
        head_dim: HEAD_DIM,
    };
    // SAFETY: every warp is whole here, and all take the same way: the item is the block's. Each warp's part of the merge is in
    // its own ring, whose copies it has waited for and whose tiles it has read.
    unsafe {
        ptx::start_next();
        // A step's metadata is no launch's work. Blocks that touch nothing else leave without waiting for the launch before: others wait.
        let Some(item) = Item::of_block(p) else { return };
        let all_rows = item.queries * group(p);
        let rows = all_rows.saturating_sub(item.row_tile * plan.rows).min(plan.rows);
        if rows == 0 {
            return;
        }
        let softmax = attend::<FORMAT, HEAD_DIM, CHUNKS, STEPS, TILE_KEYS, KEYS16, ROWS8>(
            p, &plan, &item, rows, appends,
        );
        share::<FORMAT, STEPS, ROWS8>(&plan, rows, &softmax);
        ptx::bar_sync();
        merge_warps(p, &plan, &item, rows);
        if item.chunks > 1 && is_last_block(p, &plan, &item) {
            join_chunks(p, &plan, &item, rows);
        }
    }
}

macro_rules! entries {
    ($($name:ident: $format:ident, $head_dim:literal, $chunks:literal, $tile_keys:literal, $rows8:literal;)*) => {
        $(kernel! {
            /// See [`AttentionDecode`].
            pub fn $name(p: AttentionDecode) {
                decode::<{ $format }, $head_dim, $chunks, { $head_dim / 16 }, $tile_keys, { $tile_keys / 16 }, $rows8>(&p, None);
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

kernel! {
    /// See [`AttentionDecodeAppend`].
    pub fn attention_decode_append_hd64(p: AttentionDecodeAppend) {
        decode::<{ KV_BF16 }, 64, 8, 4, 32, 2, 1>(&p.attention, Some(&p));
    }
}

kernel! {
    /// See [`AttentionDecodeAppend`].
    pub fn attention_decode_append_hd128(p: AttentionDecodeAppend) {
        decode::<{ KV_BF16 }, 128, 16, 8, 16, 1, 1>(&p.attention, Some(&p));
    }
}
