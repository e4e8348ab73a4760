//! The warpgroups that multiply and store.

use super::{
    BLOCK_M, CONSUMERS, LINE_BYTES, STAGES, STORE_BOX_BYTES, STORE_BYTES, STORE_COLS, Tile,
    producer::{Maps, place, tiles},
};
use crate::{
    abi::GemmSm90,
    element::Element,
    ptx,
    tile::{Accumulators, Ring},
};

/// Bytes of `k` that one product takes.
const STEP_BYTES: u32 = 32;
/// Barrier ids of the warpgroups' stores.
const FIRST_STORE: u32 = 1;
/// Groups of eight columns that are stored at a time.
const STORE_GROUPS: usize = STORE_COLS as usize / 8;

/// Multiplies and stores the block's tiles.
///
/// # Safety
/// One consumer warpgroup calls it, the `index`-th; the barriers are initialised.
#[inline(always)]
pub(super) unsafe fn consume<A: Accumulators>(p: &GemmSm90, maps: Maps, plan: Tile, index: u32) {
    let base = ptx::shared_base();
    let lines = (p.k * A::ELEMENT_BYTES).div_ceil(LINE_BYTES);
    let mut ring = Ring::new();
    let mut tile = ptx::ctaid_x();
    while tile < tiles(p, plan) {
        let mut acc = A::zeros();
        for line in 0..lines {
            let stage = ring.stage(STAGES);
            let s_a = base + stage * plan.stage_bytes();
            let a = ptx::descriptor(s_a + index * 64 * LINE_BYTES, 0);
            let w = ptx::descriptor(s_a + BLOCK_M * LINE_BYTES, 0);
            // SAFETY: the whole warpgroup takes the same branches; the stage has landed; one given back has been waited for.
            unsafe {
                ptx::mbarrier_wait(base + plan.full() + stage * 8, ring.parity(STAGES));
                ptx::wgmma_fence();
                for step in 0..LINE_BYTES / STEP_BYTES {
                    let along = u64::from((step * STEP_BYTES) >> 4);
                    acc.add(a + along, w + along);
                }
                ptx::wgmma_commit();
                ptx::wgmma_wait_older::<1>();
                if line > 0 {
                    release(base + plan.empty() + (stage + STAGES - 1) % STAGES * 8);
                }
            }
            ring = ring.next();
        }
        // SAFETY: as above; the last stage is the one before the ring's place.
        unsafe {
            acc.wait::<0>();
            release(base + plan.empty() + (ring.stage(STAGES) + STAGES - 1) % STAGES * 8);
            let (row, col) = place(p, plan, tile);
            let to = Place { row: row + index * 64, col, index };
            if p.out_f32 != 0 { store_f32(p, to, &mut acc) } else { store(p, maps, plan, to, &mut acc) }
        }
        tile += ptx::nctaid_x();
    }
    // SAFETY: the thread that issued the stores waits for them.
    unsafe {
        if ptx::tid_x().is_multiple_of(128) {
            ptx::bulk_wait();
        }
    }
}

/// One arrival a warp.
///
/// # Safety
/// The whole warp calls it, done with what the barrier guards.
#[inline(always)]
unsafe fn release(bar: u32) {
    if ptx::lane() == 0 {
        // SAFETY: the caller's promise.
        unsafe { ptx::mbarrier_arrive(bar) };
    }
}

/// Where a warpgroup's part of a tile goes.
#[derive(Clone, Copy)]
struct Place {
    row: u32,
    col: u32,
    /// Of the warpgroup.
    index: u32,
}

/// Scales, bias and residual of two neighbouring columns.
///
/// # Safety
/// `row < m`, `col + 1 < n`; the parameters are those of the launch.
#[inline(always)]
unsafe fn finish<A: Accumulators>(p: &GemmSm90, row: u32, col: u32, mut values: [f32; 2]) -> [f32; 2] {
    // SAFETY: the caller's promise bounds every index; `n` and `col` are even.
    unsafe {
        if A::SCALED {
            let a = f32::from_bits(ptx::ld_global_nc_b32(p.a_scales + u64::from(row) * 4));
            let w = ptx::ld_global_nc_v2_b32(p.w_scales + u64::from(col) * 4);
            values = [values[0] * (a * f32::from_bits(w[0])), values[1] * (a * f32::from_bits(w[1]))];
        }
        if p.bias != 0 {
            let bias = ptx::ld_global_nc_v2_b32(p.bias + u64::from(col) * 4);
            values = [values[0] + f32::from_bits(bias[0]), values[1] + f32::from_bits(bias[1])];
        }
        if p.residual != 0 {
            let index = u64::from(row) * u64::from(p.out_stride) + u64::from(col);
            let residual = A::Out::unpack(ptx::ld_global_b32(p.residual + index * 2));
            values = [values[0] + residual[0], values[1] + residual[1]];
        }
    }
    values
}

/// Stores through shared memory, [`STORE_COLS`] columns at a time.
///
/// # Safety
/// The whole warpgroup calls it with what it computed.
#[inline(always)]
unsafe fn store<A: Accumulators>(p: &GemmSm90, maps: Maps, plan: Tile, to: Place, acc: &mut A) {
    let thread = ptx::here(ptx::tid_x()) % 128;
    let s_store = ptx::shared_base() + plan.s_store() + to.index * STORE_BYTES;
    let (line, quad) = (thread / 32 * 16 + thread % 32 / 4, thread % 4);
    for part in 0..(A::COLS / STORE_COLS) as usize {
        let part_col = to.col + part as u32 * STORE_COLS;
        // SAFETY: the place is written once the store before has read it, and read once all have written.
        unsafe {
            if thread == 0 {
                ptx::bulk_wait_read();
            }
            ptx::bar_sync_named(FIRST_STORE + to.index, 128);
            for group in 0..STORE_GROUPS {
                let s_box = s_store + group as u32 / 8 * STORE_BOX_BYTES;
                let col = part_col + group as u32 * 8 + quad * 2;
                for half in 0..2 {
                    let (line, register) =
                        (line + half as u32 * 8, (part * STORE_GROUPS + group) * 4 + half * 2);
                    let mut values = [acc.value(register), acc.value(register + 1)];
                    if to.row + line < p.m && col < p.n {
                        values = finish::<A>(p, to.row + line, col, values);
                    }
                    let chunk = (group as u32 % 8) ^ (line % 8);
                    let at = s_box + line * LINE_BYTES + chunk * 16 + quad * 4;
                    ptx::st_shared_b32(at, A::Out::pack(values[0], values[1]));
                }
            }
            ptx::fence_proxy_async();
            ptx::bar_sync_named(FIRST_STORE + to.index, 128);
            if thread == 0 {
                for side in 0..STORE_COLS * 2 / LINE_BYTES {
                    let col = part_col + side * (LINE_BYTES / 2);
                    if col < p.n && to.row < p.m {
                        let s_box = s_store + side * STORE_BOX_BYTES;
                        ptx::bulk_tensor_store_2d(maps.out, [col as i32, to.row as i32], s_box);
                    }
                }
                ptx::bulk_commit();
            }
        }
    }
}

/// Stores f32 straight from registers.
///
/// # Safety
/// As [`store`].
#[inline(always)]
unsafe fn store_f32<A: Accumulators>(p: &GemmSm90, to: Place, acc: &mut A) {
    let thread = ptx::here(ptx::tid_x()) % 128;
    let (line, quad) = (thread / 32 * 16 + thread % 32 / 4, thread % 4);
    for group in 0..A::COLS as usize / 8 {
        for half in 0..2 {
            let (row, col) = (to.row + line + half as u32 * 8, to.col + group as u32 * 8 + quad * 2);
            if row < p.m && col < p.n {
                let values = [acc.value(group * 4 + half * 2), acc.value(group * 4 + half * 2 + 1)];
                // SAFETY: inside of `out`, `n` and `col` even.
                unsafe {
                    let values = finish::<A>(p, row, col, values);
                    let index = u64::from(row) * u64::from(p.out_stride) + u64::from(col);
                    ptx::st_global_v2_b32(p.out_f32 + index * 4, [values[0].to_bits(), values[1].to_bits()]);
                }
            }
        }
    }
}

const _: () = assert!(CONSUMERS * 64 == BLOCK_M);
