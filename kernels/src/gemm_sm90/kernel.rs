//! Device code of [`super::BF16_WIDE`] and its siblings.

use super::{
    CONSUMERS, NARROW, STAGES, Tile, WIDE,
    consumer::consume,
    producer::{Maps, produce},
};
use crate::{
    abi::GemmSm90,
    entry::kernel,
    ptx::{self, MapRef, param_address},
    tile::{Accumulators, OfF16},
};

/// # Safety
/// As the entries; `address` is that of their parameter block.
#[inline(always)]
unsafe fn gemm<A: Accumulators, const ELEMENT_BYTES: u32>(p: &GemmSm90, address: u64, plan: Tile) {
    const { assert!(A::ELEMENT_BYTES == ELEMENT_BYTES) }
    // SAFETY: the block starts with the maps of `a`, `w` and `out`; the whole block is here, each role one branch of whole warpgroups.
    unsafe {
        let a = MapRef::new(address);
        let maps = Maps { a, w: a.at(1), out: a.at(2) };
        if ptx::tid_x() == 0 {
            for stage in 0..STAGES {
                ptx::mbarrier_init(ptx::shared_base() + plan.full() + stage * 8, 1);
                // One arrival a consumer warp.
                ptx::mbarrier_init(ptx::shared_base() + plan.empty() + stage * 8, CONSUMERS * 4);
            }
            ptx::fence_mbarrier_init();
            ptx::prefetch_tensor_map(maps.a);
            ptx::prefetch_tensor_map(maps.w);
        }
        ptx::bar_sync();
        let warpgroup = ptx::tid_x() / 128;
        if warpgroup == 0 {
            ptx::setmaxnreg::<40, false>();
            if ptx::tid_x() == 0 {
                produce::<ELEMENT_BYTES>(p, maps, plan);
            }
        } else {
            ptx::setmaxnreg::<232, true>();
            consume::<A>(p, maps, plan, warpgroup - 1);
        }
    }
}

kernel! {
    /// See [`GemmSm90`].
    pub fn gemm_sm90_bf16_128x256(p: GemmSm90) {
        gemm::<[f32; 128], 2>(&p, param_address!(gemm_sm90_bf16_128x256, p), WIDE);
    }
}

kernel! {
    /// See [`GemmSm90`].
    pub fn gemm_sm90_bf16_128x128(p: GemmSm90) {
        gemm::<[f32; 64], 2>(&p, param_address!(gemm_sm90_bf16_128x128, p), NARROW);
    }
}

kernel! {
    /// See [`GemmSm90`].
    pub fn gemm_sm90_f16_128x256(p: GemmSm90) {
        gemm::<OfF16<[f32; 128]>, 2>(&p, param_address!(gemm_sm90_f16_128x256, p), WIDE);
    }
}

kernel! {
    /// See [`GemmSm90`].
    pub fn gemm_sm90_f16_128x128(p: GemmSm90) {
        gemm::<OfF16<[f32; 64]>, 2>(&p, param_address!(gemm_sm90_f16_128x128, p), NARROW);
    }
}

kernel! {
    /// See [`GemmSm90`].
    pub fn gemm_sm90_int8_128x256(p: GemmSm90) {
        gemm::<[i32; 128], 1>(&p, param_address!(gemm_sm90_int8_128x256, p), WIDE);
    }
}

kernel! {
    /// See [`GemmSm90`].
    pub fn gemm_sm90_int8_128x128(p: GemmSm90) {
        gemm::<[i32; 64], 1>(&p, param_address!(gemm_sm90_int8_128x128, p), NARROW);
    }
}
