//! Device code of [`super::VARIANTS`].

use super::{
    HEAD_DIM, ITEMS, Plan, ROWS, TILE_KEYS, WARPS,
    consumer::{consume, count_chunks},
    producer::{Maps, produce},
};
use crate::{
    abi::{AttentionDecodeSm90, KV_BF16, KV_FP8, KV_INT8},
    attention_decode::row_bytes,
    entry::kernel,
    ptx::{self, MapRef, param_address},
};

/// # Safety
/// As the entries; `address` is that of the parameter block, which starts with the maps of key and value.
#[inline(always)]
unsafe fn decode<const FORMAT: u32, const CHUNKS: u32>(p: &AttentionDecodeSm90, address: u64) {
    const { assert!(CHUNKS * 16 == row_bytes(FORMAT, HEAD_DIM)) };
    let plan = Plan { format: FORMAT, rows: ROWS };
    // SAFETY: the whole block is here; each role is whole warps, and its warps take the same way.
    unsafe {
        if ptx::tid_x() == 0 {
            init_barriers(plan);
        }
        ptx::bar_sync();
        let warp = ptx::warp();
        if warp < WARPS {
            consume::<
                FORMAT,
                CHUNKS,
                { HEAD_DIM as usize / 16 },
                { TILE_KEYS as usize / 16 },
                { ROWS as usize / 8 },
            >(&p.shared, plan);
        } else if warp == WARPS {
            let k = MapRef::new(address);
            produce(&p.shared, Maps { k, v: k.at(1) }, plan);
        } else {
            count_chunks(&p.shared, plan);
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
        for stage in 0..plan.stages() {
            ptx::mbarrier_init(base + plan.full() + stage * 8, 1);
            ptx::mbarrier_init(base + plan.empty() + stage * 8, 1);
        }
        for item in 0..ITEMS {
            ptx::mbarrier_init(base + plan.item_full() + item * 8, 1);
            // The warps that multiply and the one that counts.
            ptx::mbarrier_init(base + plan.item_empty() + item * 8, WARPS + 1);
        }
        ptx::mbarrier_init(base + plan.written(), WARPS);
        ptx::mbarrier_init(base + plan.counted(), 1);
        ptx::fence_mbarrier_init();
    }
}

macro_rules! entries {
    ($($name:ident: $format:ident, $chunks:literal;)*) => {
        $(kernel! {
            /// See [`AttentionDecodeSm90`].
            pub fn $name(p: AttentionDecodeSm90) {
                decode::<{ $format }, $chunks>(&p, param_address!($name, p));
            }
        })*
    };
}

entries! {
    attention_decode_sm90_bf16: KV_BF16, 16;
    attention_decode_sm90_int8: KV_INT8, 8;
    attention_decode_sm90_fp8: KV_FP8, 8;
}
