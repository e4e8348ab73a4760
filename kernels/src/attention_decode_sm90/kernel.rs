//! Device code of [`super::VARIANTS`].

use super::{
    Feeding, ITEMS, Plan,
    boxes::Maps,
    consumer::{ByLines, consume},
    lanes::Lanes,
    plan,
    producer::produce,
};
use crate::{
    abi::{AttentionDecodeSm90, KV_BF16},
    attention_decode::{WARPS, products::ByRows},
    entry::kernel,
    ptx::{self, MapRef, param_address},
};

/// # Safety
/// As the entries.
#[inline(always)]
unsafe fn decode<
    const HEAD_DIM: u32,
    const CHUNKS: u32,
    const STEPS: usize,
    const TILE_KEYS: u32,
    const KEYS16: usize,
    const ROWS8: usize,
>(
    p: &AttentionDecodeSm90,
    maps: Maps,
    plan: Plan,
) {
    const {
        assert!(CHUNKS * 8 == HEAD_DIM && STEPS as u32 * 16 == HEAD_DIM && KEYS16 as u32 * 16 == TILE_KEYS);
    };
    let by_boxes = matches!(plan.feeding, Feeding::Boxes);
    // SAFETY: the whole block is here; each role is whole warps.
    unsafe {
        if ptx::tid_x() == 0 {
            init_barriers(plan);
            if by_boxes {
                ptx::prefetch_tensor_map(maps.k);
                ptx::prefetch_tensor_map(maps.v);
            }
        }
        ptx::bar_sync();
        match (ptx::warp() < WARPS, plan.feeding) {
            (true, Feeding::Boxes) => {
                consume::<HEAD_DIM, CHUNKS, STEPS, KEYS16, ROWS8, _>(&p.shared, plan, ByLines::new());
            }
            (true, Feeding::Lanes | Feeding::LanesOnce) => {
                let reads = ByRows::<CHUNKS>::new::<KV_BF16>();
                consume::<HEAD_DIM, CHUNKS, STEPS, KEYS16, ROWS8, _>(&p.shared, plan, reads);
            }
            (false, Feeding::Boxes) => produce(p, maps, plan),
            (false, Feeding::Lanes | Feeding::LanesOnce) => {
                produce(p, Lanes::<CHUNKS, TILE_KEYS>::new(p, plan), plan);
            }
        }
    }
}

/// # Safety
/// One thread calls it, before the block's first barrier.
#[inline(always)]
unsafe fn init_barriers(plan: Plan) {
    let base = ptx::shared_base();
    // SAFETY: nobody uses the barriers yet.
    unsafe {
        for stage in 0..plan.stages {
            ptx::mbarrier_init(base + plan.full() + stage * 8, plan.feeding.arrivals());
            ptx::mbarrier_init(base + plan.empty() + stage * 8, 1);
        }
        for stage in 0..ITEMS {
            ptx::mbarrier_init(base + plan.item_full() + stage * 8, 1);
            ptx::mbarrier_init(base + plan.item_empty() + stage * 8, WARPS);
        }
        ptx::fence_mbarrier_init();
    }
}

macro_rules! entries {
    ($($name:ident: $head_dim:literal, $keys16:literal, $rows8:literal, $blocks:literal, $feeding:ident;)*) => {
        $(kernel! {
            /// See [`AttentionDecodeSm90`].
            pub fn $name(p: AttentionDecodeSm90) {
                // The parameter block starts with the maps of keys and values.
                let k = MapRef::new(param_address!($name, p));
                const PLAN: Plan = plan($head_dim, $rows8 * 8, $blocks, Feeding::$feeding);
                let maps = Maps { k, v: k.at(1) };
                decode::<$head_dim, { $head_dim / 8 }, { $head_dim / 16 }, { $keys16 * 16 }, $keys16, $rows8>(&p, maps, PLAN);
            }
        })*
    };
}

// Head dim, 16 keys a tile, 8 query rows, blocks a multiprocessor, how tiles come in.
entries! {
    attention_decode_sm90_hd64_rows8: 64, 2, 1, 2, Boxes;
    attention_decode_sm90_hd64_rows16: 64, 2, 2, 2, Boxes;
    attention_decode_sm90_hd128_rows8: 128, 1, 1, 2, Boxes;
    attention_decode_sm90_hd128_rows8_by3: 128, 1, 1, 3, Boxes;
    attention_decode_sm90_hd128_rows8_lanes: 128, 1, 1, 2, Lanes;
    attention_decode_sm90_hd128_rows8_lanes_once: 128, 1, 1, 2, LanesOnce;
}
