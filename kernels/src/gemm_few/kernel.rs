//! Device code of [`super::VARIANTS`].

use super::{
    Tile, Weights, dense,
    exchange::add_abreast,
    finish::{finish, finish_pair},
    int4, int4_warp,
    item::{Item, Place},
    nibbles::Nibbles,
    producer::{Source, produce},
};
use crate::{
    abi::GemmFew,
    element::{Bf16, F16},
    entry::kernel,
    ptx::{self, MapRef, Wgmma, param_address},
    tile::{Accumulators, Ring},
};

/// A producing warpgroup's registers a thread, where consumers get its others.
const PRODUCER_REGISTERS: u32 = 40;

/// What every entry begins with: barriers. Whether the thread is a consumer's, and where copies come from.
///
/// # Safety
/// As the entries; `address` is that of their parameter block, which starts with the maps of `a` and `w`.
#[inline(always)]
unsafe fn begin(address: u64, weights: Weights, plan: Tile) -> (bool, Source) {
    // SAFETY: the caller's promise; the whole block is here.
    unsafe {
        let a = MapRef::new(address);
        if ptx::tid_x() == plan.consumer_threads() {
            for stage in 0..plan.stages {
                ptx::mbarrier_init(ptx::shared_base() + plan.full() + stage * 8, plan.producing_lanes());
                // One arrival a consumer warp.
                ptx::mbarrier_init(ptx::shared_base() + plan.empty() + stage * 8, plan.consumers());
            }
            ptx::fence_mbarrier_init();
        }
        ptx::bar_sync();
        (ptx::tid_x() < plan.consumer_threads(), Source { a, w: a.at(1), weights })
    }
}

/// What threads do that aren't consumers.
///
/// # Safety
/// As [`begin`], which has been.
#[inline(always)]
unsafe fn lead(p: &GemmFew, source: Source, plan: Tile) {
    if ptx::lane() == 0 {
        // SAFETY: one lane of each warp calls it.
        unsafe { produce(p, source, plan) };
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
    // SAFETY: the caller's promise. All consumers take the same items.
    unsafe {
        let (is_consumer, source) = begin(address, weights, plan);
        if is_consumer {
            // What it reads beside the stages, and where it writes, may be the launch's before.
            ptx::grid_wait();
            let place = Place::first(p, plan, 0);
            let item = Item::of(p, plan, place);
            let acc = dense::multiply::<A>(plan, item, &mut Ring::new(), ptx::tid_x() / 128);
            let mut sums = [0.0f32; R];
            for r in 0..R {
                sums[r] = acc.value(r);
            }
            finish::<Bf16, R, SCALED>(p, plan, place, &sums);
        } else {
            lead(p, source, plan);
        }
    }
}

/// Few tokens, a warp at a time: `N` sums a thread.
///
/// # Safety
/// As [`begin`].
#[inline(always)]
unsafe fn int4_warp<E: Nibbles, const N: usize, const GROUPS: usize>(
    p: &GemmFew,
    address: u64,
    weights: Weights,
    plan: Tile,
) {
    // SAFETY: the caller's promise. Blocks of few tokens have one item.
    unsafe {
        let (is_consumer, source) = begin(address, weights, plan);
        if is_consumer {
            ptx::grid_wait();
            let place = Place::first(p, plan, 0);
            let sums = int4_warp::multiply::<E, N, GROUPS>(p, plan, Item::of(p, plan, place));
            finish::<E, N, false>(p, plan, place, &sums);
        } else {
            lead(p, source, plan);
        }
    }
}

/// Many tokens, a warpgroup at a time, each thread with `REGISTERS`: the producer's warpgroup leaves it some.
///
/// # Safety
/// As [`begin`].
#[inline(always)]
unsafe fn int4<E: Nibbles, const R: usize, const GROUPS: usize, const REGISTERS: u32>(
    p: &GemmFew,
    address: u64,
    weights: Weights,
    plan: Tile,
) where
    [f32; R]: Wgmma,
{
    // SAFETY: the caller's promise. All consumers take the same items.
    unsafe {
        let (is_consumer, source) = begin(address, weights, plan);
        if is_consumer {
            ptx::setmaxnreg::<REGISTERS, true>();
            ptx::grid_wait();
            let mut ring = Ring::new();
            // All that an item is is found anew from its place, before the products and behind them: they need the registers.
            let mut place = Place::first(p, plan, 0);
            while place.is_inside(p, plan) {
                let item = Item::of(p, plan, place);
                let sums = match (plan.tokens > 64, GROUPS) {
                    (true, 1) => int4::multiply_ahead::<E, R, GROUPS, 4>(p, plan, item, &mut ring),
                    (true, 2) => int4::multiply_ahead::<E, R, GROUPS, 2>(p, plan, item, &mut ring),
                    _ => int4::multiply::<E, R, GROUPS>(p, plan, item, &mut ring),
                };
                finish::<E, R, false>(p, plan, place, &sums);
                if !plan.is_persistent() {
                    break;
                }
                place = place.next(p, plan);
            }
        } else {
            ptx::setmaxnreg::<PRODUCER_REGISTERS, false>();
            lead(p, source, plan);
        }
    }
}

/// As [`int4`], two splits side by side: `R` sums a thread, of which each adds half.
///
/// # Safety
/// As [`begin`].
#[inline(always)]
unsafe fn int4_pair<
    E: Nibbles,
    const R: usize,
    const HALF: usize,
    const GROUPS: usize,
    const REGISTERS: u32,
>(
    p: &GemmFew,
    address: u64,
    weights: Weights,
    plan: Tile,
) where
    [f32; R]: Wgmma,
{
    // SAFETY: the caller's promise. All consumers of a split take the same item, and all are there when they are added.
    unsafe {
        let (is_consumer, source) = begin(address, weights, plan);
        if is_consumer {
            ptx::setmaxnreg::<REGISTERS, true>();
            ptx::grid_wait();
            let place = Place::first(p, plan, plan.side(ptx::tid_x()));
            let sums = int4::multiply::<E, R, GROUPS>(p, plan, Item::of(p, plan, place), &mut Ring::new());
            let half = add_abreast::<R, HALF>(plan, place.split < p.splits, &sums);
            finish_pair::<E, HALF>(p, plan, place, &half);
        } else {
            ptx::setmaxnreg::<PRODUCER_REGISTERS, false>();
            lead(p, source, plan);
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
    gemm_few_int4_g128_8: int4_warp::<Bf16, 4, 1> of 8,
    gemm_few_int4_g128_16: int4_warp::<Bf16, 8, 1> of 9,
    gemm_few_int4_g128_32: int4_warp::<Bf16, 16, 1> of 10,
    gemm_few_int4_g128_64: int4::<Bf16, 32, 1, 104> of 11,
    gemm_few_int4_g128_128: int4::<Bf16, 64, 1, 232> of 12,
    gemm_few_int4_g64_8: int4_warp::<Bf16, 4, 2> of 13,
    gemm_few_int4_g64_16: int4_warp::<Bf16, 8, 2> of 14,
    gemm_few_int4_g64_128: int4::<Bf16, 64, 2, 232> of 15,
    gemm_few_int4_g32_8: int4_warp::<Bf16, 4, 4> of 16,
    gemm_few_int4_g32_16: int4_warp::<Bf16, 8, 4> of 17,
    gemm_few_int4_g32_128: int4::<Bf16, 64, 4, 232> of 18,
    gemm_few_bf16_128: dense::<[f32; 64], 64, false> of 19,
    gemm_few_int4_g128_8_f16: int4_warp::<F16, 4, 1> of 20,
    gemm_few_int4_g128_16_f16: int4_warp::<F16, 8, 1> of 21,
    gemm_few_int4_g128_32_f16: int4_warp::<F16, 16, 1> of 22,
    gemm_few_int4_g128_64_f16: int4::<F16, 32, 1, 104> of 23,
    gemm_few_int4_g128_128_f16: int4::<F16, 64, 1, 232> of 24,
    gemm_few_int4_g64_8_f16: int4_warp::<F16, 4, 2> of 25,
    gemm_few_int4_g64_16_f16: int4_warp::<F16, 8, 2> of 26,
    gemm_few_int4_g64_128_f16: int4::<F16, 64, 2, 232> of 27,
    gemm_few_int4_g32_8_f16: int4_warp::<F16, 4, 4> of 28,
    gemm_few_int4_g32_16_f16: int4_warp::<F16, 8, 4> of 29,
    gemm_few_int4_g32_128_f16: int4::<F16, 64, 4, 232> of 30,
    gemm_few_int4_g128_64_pair: int4_pair::<Bf16, 32, 16, 1, 104> of 31,
    gemm_few_int4_g128_64_pair_f16: int4_pair::<F16, 32, 16, 1, 104> of 32,
}
