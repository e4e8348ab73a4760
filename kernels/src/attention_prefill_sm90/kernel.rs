//! Device code of [`super::HD64`] and [`super::HD128`].

use super::{
    Q_STAGES, TILE_HD64, TILE_HD64_SHORT, TILE_HD128, Tile,
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
        for stage in 0..Q_STAGES {
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

kernel! {
    /// See [`AttentionPrefillSm90`].
    pub fn attention_prefill_sm90_hd64(p: AttentionPrefillSm90) {
        let maps = maps(param_address!(attention_prefill_sm90_hd64, p));
        prefill::<false, 64, 8, 32, 0, 32, 160>(&p, maps, TILE_HD64);
    }
}

kernel! {
    /// See [`AttentionPrefillSm90`].
    pub fn attention_prefill_sm90_hd64_f16(p: AttentionPrefillSm90) {
        let maps = maps(param_address!(attention_prefill_sm90_hd64_f16, p));
        prefill::<true, 64, 8, 32, 0, 32, 160>(&p, maps, TILE_HD64);
    }
}

kernel! {
    /// See [`AttentionPrefillSm90`].
    pub fn attention_prefill_sm90_hd64_short(p: AttentionPrefillSm90) {
        let maps = maps(param_address!(attention_prefill_sm90_hd64_short, p));
        prefill::<false, 64, 8, 32, 4, 40, 232>(&p, maps, TILE_HD64_SHORT);
    }
}

kernel! {
    /// See [`AttentionPrefillSm90`].
    pub fn attention_prefill_sm90_hd64_short_f16(p: AttentionPrefillSm90) {
        let maps = maps(param_address!(attention_prefill_sm90_hd64_short_f16, p));
        prefill::<true, 64, 8, 32, 4, 40, 232>(&p, maps, TILE_HD64_SHORT);
    }
}

kernel! {
    /// See [`AttentionPrefillSm90`].
    pub fn attention_prefill_sm90_hd128(p: AttentionPrefillSm90) {
        let maps = maps(param_address!(attention_prefill_sm90_hd128, p));
        prefill::<false, 64, 8, 64, 8, 40, 232>(&p, maps, TILE_HD128);
    }
}

kernel! {
    /// See [`AttentionPrefillSm90`].
    pub fn attention_prefill_sm90_hd128_f16(p: AttentionPrefillSm90) {
        let maps = maps(param_address!(attention_prefill_sm90_hd128_f16, p));
        prefill::<true, 64, 8, 64, 8, 40, 232>(&p, maps, TILE_HD128);
    }
}
