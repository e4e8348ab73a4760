//! Device code of [`super::VARIANTS`].

use super::{
    STAGES, SharedPlan, WARPS,
    item::{Item, group},
    join::{is_last_block, join_chunks, merge_warps, share, warps_meet},
    products::{ReadPlan, load_queries, query_address},
    ring::{Copier, Lookup, Scales},
    row_bytes,
    rows::{Rows, Tile, masks},
    softmax::{Scale, Softmax, own_scales},
    tile_keys,
};
use crate::{
    abi::{AttentionDecode, KV_BF16, KV_FP8, KV_INT8},
    entry::kernel,
    ptx,
};

/// Tiles of the ring that stay in flight while a warp waits for the oldest.
const AHEAD: u32 = STAGES - 1;

/// The item's query rows.
///
/// # Safety
/// The item is the block's.
#[inline(always)]
unsafe fn load_rows<
    const FORMAT: u32,
    const HEAD_DIM: u32,
    const CHUNKS: u32,
    const STEPS: usize,
    const ROWS8: usize,
>(
    p: &AttentionDecode,
    item: &Item,
) -> Rows<STEPS, ROWS8> {
    let group = group(p);
    let first_row = item.row_tile * ROWS8 as u32 * 8;
    let mut g_rows = [0; ROWS8];
    for n in 0..ROWS8 {
        let row = n as u32 * 8 + ptx::lane() / 4;
        if row < item.rows {
            let (query, head) = ((first_row + row) / group, (first_row + row) % group);
            g_rows[n] = query_address(p, item.query_start + query, item.kv_head * group + head, HEAD_DIM);
        }
    }
    // SAFETY: heads of the sequence's queries; the item is the block's.
    unsafe {
        let piece = |n: usize, offset| ptx::ld_global_nc_v4_b32(g_rows[n] + u64::from(offset));
        let q = load_queries::<FORMAT, CHUNKS, STEPS, ROWS8>(g_rows.map(|row| row != 0), piece);
        Rows { q, masks: masks(p, item), open: item.open(p), drafts: item.drafts_start() }
    }
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
        let first_key = item.first_round(round) + ptx::warp() * keys;
        let tiles = if item.end > first_key { (item.end - first_key).div_ceil(round) } else { 0 };
        Walk { first_key, tiles, round }
    }
}

/// Walks a warp's tiles.
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
) -> Softmax<STEPS, ROWS8> {
    let quantised = FORMAT != KV_BF16;
    let walk = Walk::new(item, TILE_KEYS);
    let scale = Scale { scale: p.scale, softcap: p.softcap };
    let s_ring = ptx::shared_base() + ptx::warp() * plan.ring_stride();
    let stage_bytes = 2 * plan.tile_bytes();
    let copier = Copier::new::<CHUNKS>(p);
    let reads = ReadPlan::new::<FORMAT, CHUNKS, false>();
    let mut lookup = Lookup::new(p, item, walk.first_key, TILE_KEYS, walk.round);
    let mut softmax = Softmax::new();
    let mut scales = [Scales::NONE; STAGES as usize];
    // SAFETY: the warp is whole and walks together. A stage is read after every lane has waited for its copies and the warp has
    // met, and written after it has met again.
    unsafe {
        let mut places = [lookup.next(); STAGES as usize];
        for s in 1..STAGES as usize {
            places[s] = lookup.next();
        }
        for s in 0..STAGES {
            if s < walk.tiles {
                let s_stage = s_ring + s * stage_bytes;
                scales[s as usize] =
                    copier.start::<FORMAT, CHUNKS, TILE_KEYS>(s_stage, &lookup, places[s as usize]);
            }
            ptx::cp_async_commit();
        }
        let mut place = lookup.next();
        let rows = load_rows::<FORMAT, HEAD_DIM, CHUNKS, STEPS, ROWS8>(p, item);
        let (mut tile, mut key, mut stage) = (0, walk.first_key, 0);
        while tile < walk.tiles {
            ptx::cp_async_wait::<AHEAD>();
            ptx::bar_warp_sync();
            let s_stage = s_ring + stage;
            let own = if quantised { own_scales::<KEYS16>(scales[0]) } else { [[Scales::NONE; 2]; KEYS16] };
            let here = Tile { key, s_keys: s_stage, s_values: s_stage + plan.tile_bytes(), scales: own };
            rows.add_tile::<FORMAT, CHUNKS, KEYS16, false>(&mut softmax, &here, &scale, &reads);
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
        let Some(item) = Item::of_block(p, plan.rows) else { return };
        let softmax = attend::<FORMAT, HEAD_DIM, CHUNKS, STEPS, TILE_KEYS, KEYS16, ROWS8>(p, &plan, &item);
        share::<FORMAT, STEPS, ROWS8>(plan.parts(), item.rows, &softmax);
        warps_meet();
        merge_warps(p, plan.parts(), &item);
        if item.chunks > 1 && is_last_block(p, &plan, &item) {
            join_chunks(p, plan.parts(), &item);
        }
    }
}

macro_rules! entries {
    ($($name:ident: $format:ident, $head_dim:literal, $chunks:literal, $tile_keys:literal, $rows8:literal;)*) => {
        $(kernel! {
            /// See [`AttentionDecode`].
            pub fn $name(p: AttentionDecode) {
                decode::<{ $format }, $head_dim, $chunks, { $head_dim / 16 }, $tile_keys, { $tile_keys / 16 }, $rows8>(&p);
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
    attention_decode_int8_hd128_rows8: KV_INT8, 128, 8, 16, 1;
    attention_decode_int8_hd128_rows16: KV_INT8, 128, 8, 16, 2;
    attention_decode_fp8_hd64_rows8: KV_FP8, 64, 4, 32, 1;
    attention_decode_fp8_hd64_rows16: KV_FP8, 64, 4, 32, 2;
    attention_decode_fp8_hd128_rows8: KV_FP8, 128, 8, 16, 1;
    attention_decode_fp8_hd128_rows16: KV_FP8, 128, 8, 16, 2;
}
