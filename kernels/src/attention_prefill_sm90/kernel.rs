//! Device code of [`super::HD64`] and its siblings.

use super::{
    TILE_HD64, TILE_HD64_SHORT, TILE_HD96, TILE_HD128, TILE_HD192, TILE_HD256, Tile,
    consumer::consume,
    producer::{Maps, produce, produce_values},
};
use crate::{
    abi::AttentionPrefillSm90,
    entry::kernel,
    ptx::{self, MapRef, Wgmma, param_address},
};

/// # Safety
/// As the entries.
#[inline(always)]
unsafe fn prefill<
    const F16: bool,
    const S: usize,
    const P: usize,
    const O: usize,
    const K: usize,
    const PRODUCER_REGISTERS: u32,
    const CONSUMER_REGISTERS: u32,
>(
    p: &AttentionPrefillSm90,
    maps: Maps,
    plan: Tile,
) where
    [f32; S]: Wgmma,
    [f32; O]: Wgmma,
{
    const { assert!(S == 8 * P) };
    // SAFETY: the whole block is here; each role is one branch, whole warpgroups.
    unsafe {
        if ptx::tid_x() == 0 {
            init_barriers(plan);
            ptx::prefetch_tensor_map(maps.q);
            ptx::prefetch_tensor_map(maps.k);
            ptx::prefetch_tensor_map(maps.v);
        }
        ptx::bar_sync();
        let warpgroup = ptx::tid_x() / 128;
        if warpgroup == 0 {
            ptx::setmaxnreg::<PRODUCER_REGISTERS, false>();
            match ptx::warp() {
                0 => produce(p, maps, plan),
                1 => produce_values(p, maps, plan),
                _ => {}
            }
        } else {
            ptx::setmaxnreg::<CONSUMER_REGISTERS, true>();
            consume::<F16, S, P, O, K>(p, plan, warpgroup - 1);
        }
    }
}

/// # Safety
/// One thread calls it, before the block's first barrier.
#[inline(always)]
unsafe fn init_barriers(plan: Tile) {
    let base = ptx::shared_base();
    // One arrival a consumer warp.
    let warps = plan.consumers * 4;
    // SAFETY: nobody uses the barriers yet.
    unsafe {
        for stage in 0..plan.q_stages {
            ptx::mbarrier_init(base + plan.q_full() + stage * 8, 1);
            // And one of the warp that brings values, which reads the item.
            ptx::mbarrier_init(base + plan.q_empty() + stage * 8, warps + 1);
        }
        for stage in 0..plan.stages {
            ptx::mbarrier_init(base + plan.k_full() + stage * 8, 1);
            ptx::mbarrier_init(base + plan.v_full() + stage * 8, 1);
            ptx::mbarrier_init(base + plan.k_empty() + stage * 8, warps);
            ptx::mbarrier_init(base + plan.v_empty() + stage * 8, warps);
        }
        ptx::mbarrier_init(base + plan.tail_full(), 1);
        ptx::fence_mbarrier_init();
    }
}

/// # Safety
/// `address` is that of the entry's parameter block, which starts with the maps of query, key and value.
#[inline(always)]
unsafe fn maps(address: u64) -> Maps {
    // SAFETY: the caller's promise.
    let q = unsafe { MapRef::new(address) };
    Maps { q, k: q.at(1), v: q.at(2) }
}

macro_rules! entries {
    ($($name:ident: $f16:literal, $s:literal, $o:literal, $k:literal, [$producer:literal, $consumer:literal], $tile:ident;)*) => {
        $(kernel! {
            /// See [`AttentionPrefillSm90`].
            pub fn $name(p: AttentionPrefillSm90) {
                let maps = maps(param_address!($name, p));
                prefill::<$f16, $s, { $s / 8 }, $o, $k, $producer, $consumer>(&p, maps, $tile);
            }
        })*
    };
}

// Whether f16, accumulators of scores and of output a thread, steps of queries in registers (0: they are read from shared memory),
// registers of producers and consumers.
entries! {
    attention_prefill_sm90_hd64: false, 64, 32, 0, [32, 160], TILE_HD64;
    attention_prefill_sm90_hd64_f16: true, 64, 32, 0, [32, 160], TILE_HD64;
    attention_prefill_sm90_hd64_short: false, 64, 32, 4, [40, 232], TILE_HD64_SHORT;
    attention_prefill_sm90_hd64_short_f16: true, 64, 32, 4, [40, 232], TILE_HD64_SHORT;
    attention_prefill_sm90_hd96: false, 64, 48, 6, [40, 232], TILE_HD96;
    attention_prefill_sm90_hd96_f16: true, 64, 48, 6, [40, 232], TILE_HD96;
    attention_prefill_sm90_hd128: false, 64, 64, 8, [40, 232], TILE_HD128;
    attention_prefill_sm90_hd128_f16: true, 64, 64, 8, [40, 232], TILE_HD128;
    attention_prefill_sm90_hd192: false, 48, 96, 0, [40, 232], TILE_HD192;
    attention_prefill_sm90_hd192_f16: true, 48, 96, 0, [40, 232], TILE_HD192;
    attention_prefill_sm90_hd256: false, 40, 128, 0, [40, 232], TILE_HD256;
    attention_prefill_sm90_hd256_f16: true, 40, 128, 0, [40, 232], TILE_HD256;
}
