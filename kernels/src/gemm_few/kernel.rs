//! Device code of [`super::VARIANTS`].

use super::{
    CONSUMER_THREADS, CONSUMERS, STAGES, Tile, Weights, dense,
    finish::finish,
    int4,
    item::Item,
    producer::{Source, produce},
};
use crate::{
    abi::GemmFew,
    entry::kernel,
    ptx::{self, MapRef, Wgmma, param_address},
    tile::Accumulators,
};

/// What every entry begins with: barriers, then the producer's work. The warpgroup's index and the item, for consumers.
///
/// # Safety
/// As the entries; `address` is that of their parameter block, which starts with the maps of `a` and `w`.
#[inline(always)]
unsafe fn begin(p: &GemmFew, address: u64, weights: Weights, plan: Tile) -> Option<(u32, Item)> {
    // SAFETY: the caller's promise; the whole block is here.
    unsafe {
        let a = MapRef::new(address);
        let source = Source { a, w: a.at(1), weights };
        if ptx::tid_x() == CONSUMER_THREADS {
            for stage in 0..STAGES {
                ptx::mbarrier_init(ptx::shared_base() + plan.full() + stage * 8, 1);
                // One arrival a consumer warp.
                ptx::mbarrier_init(ptx::shared_base() + plan.empty() + stage * 8, CONSUMERS * 4);
            }
            ptx::fence_mbarrier_init();
        }
        ptx::bar_sync();
        let item = Item::of_block(p, plan);
        if ptx::tid_x() < CONSUMER_THREADS {
            // What it reads beside the stages, and where it writes, may be the launch's before.
            ptx::grid_wait();
            return Some((ptx::tid_x() / 128, item));
        }
        if ptx::tid_x() == CONSUMER_THREADS {
            produce(p, source, plan, item);
        }
        None
    }
}

/// # Safety
/// As [`begin`].
#[inline(always)]
unsafe fn dense<A: Accumulators, const R: usize, const SCALED: bool>(
    p: &GemmFew,
    address: u64,
    weights: Weights,
    plan: Tile,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if let Some((warpgroup, item)) = begin(p, address, weights, plan) {
            let acc = dense::multiply::<A>(plan, item, warpgroup);
            let mut sums = [0.0f32; R];
            for r in 0..R {
                sums[r] = acc.value(r);
            }
            finish::<R, SCALED>(p, plan, item, &mut sums);
        }
    }
}

/// # Safety
/// As [`begin`].
#[inline(always)]
unsafe fn int4<const R: usize, const GROUPS: usize>(p: &GemmFew, address: u64, weights: Weights, plan: Tile)
where
    [f32; R]: Wgmma,
{
    // SAFETY: the caller's promise.
    unsafe {
        if let Some((_, item)) = begin(p, address, weights, plan) {
            let mut sums = int4::multiply::<R, GROUPS>(p, plan, item);
            finish::<R, false>(p, plan, item, &mut sums);
        }
    }
}

macro_rules! entries {
    ($($name:ident: $body:ident::<$($argument:tt),*> of $variant:literal,)*) => {
        $(kernel! {
            /// See [`GemmFew`].
            pub fn $name(p: GemmFew) {
                let (weights, plan) = const { (super::VARIANTS[$variant].weights, super::VARIANTS[$variant].tile) };
                $body::<$($argument),*>(&p, param_address!($name, p), weights, plan);
            }
        })*
    };
}

entries! {
    gemm_few_bf16_8: dense::<[f32; 4], 4, false> of 0,
    gemm_few_bf16_16: dense::<[f32; 8], 8, false> of 1,
    gemm_few_bf16_32: dense::<[f32; 16], 16, false> of 2,
    gemm_few_bf16_64: dense::<[f32; 32], 32, false> of 3,
    gemm_few_int8_8: dense::<[i32; 4], 4, true> of 4,
    gemm_few_int8_16: dense::<[i32; 8], 8, true> of 5,
    gemm_few_int8_32: dense::<[i32; 16], 16, true> of 6,
    gemm_few_int8_64: dense::<[i32; 32], 32, true> of 7,
    gemm_few_int4_g128_8: int4::<4, 1> of 8,
    gemm_few_int4_g128_16: int4::<8, 1> of 9,
    gemm_few_int4_g128_32: int4::<16, 1> of 10,
    gemm_few_int4_g128_64: int4::<32, 1> of 11,
    gemm_few_int4_g64_8: int4::<4, 2> of 12,
    gemm_few_int4_g64_16: int4::<8, 2> of 13,
    gemm_few_int4_g64_32: int4::<16, 2> of 14,
    gemm_few_int4_g64_64: int4::<32, 2> of 15,
    gemm_few_int4_g32_8: int4::<4, 4> of 16,
    gemm_few_int4_g32_16: int4::<8, 4> of 17,
    gemm_few_int4_g32_32: int4::<16, 4> of 18,
}
