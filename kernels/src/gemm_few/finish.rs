//! From a split's sums to the output.

use super::{Tile, item::Item};
use crate::{abi::GemmFew, ptx, silu_mul::kernel::silu};

/// The barrier of all consumers.
const CONSUMERS_BARRIER: u32 = 1;
/// Splits of `registers` sums a thread that the join has on their way at once: each time that it waits is a trip to the L2, so all eight of
/// the usual most where few tokens leave the registers, which those of many tokens need for the sums themselves.
const fn join_ahead(registers: usize) -> usize {
    match registers {
        0..=8 => MOST_AHEAD,
        9..=16 => MOST_AHEAD / 2,
        _ => 1,
    }
}
const MOST_AHEAD: usize = 8;

/// Joins the splits and stores `N` sums a thread. Blocks that aren't their tile's last just leave their sums.
///
/// # Safety
/// All consumers call it with what they computed of item `index`.
#[inline(always)]
pub(super) unsafe fn finish<const N: usize, const SCALED: bool>(
    p: &GemmFew,
    plan: Tile,
    index: u32,
    sums: &mut [f32; N],
) {
    // Found again rather than kept in registers through the products.
    let item = Item::new(p, plan, ptx::here(index));
    // SAFETY: the caller's promise.
    unsafe {
        if p.splits > 1 {
            leave(p, plan, item, sums);
            if !is_last(p, plan, item) {
                return;
            }
            join(p, plan, item, sums);
        }
        store::<N, SCALED>(p, plan, item, sums);
    }
}

/// Where four of a thread's sums of an item are in the scratch.
#[inline(always)]
fn scratch<const R: usize>(p: &GemmFew, plan: Tile, index: u32, four: usize) -> u64 {
    let thread = ptx::here(ptx::tid_x());
    let place = (u64::from(index) * (R / 4) as u64 + four as u64) * u64::from(plan.consumer_threads());
    p.partials + (place + u64::from(thread)) * 16
}

/// # Safety
/// As [`finish`].
#[inline(always)]
unsafe fn leave<const R: usize>(p: &GemmFew, plan: Tile, item: Item, sums: &[f32; R]) {
    for four in 0..R / 4 {
        let values = [0, 1, 2, 3].map(|i| sums[four * 4 + i].to_bits());
        // SAFETY: the item's own part of the scratch.
        unsafe { ptx::st_global_v4_b32(scratch::<R>(p, plan, item.index, four), values) };
    }
}

/// Whether the other splits of the tile have all been here before; the last leaves the counter as it was.
///
/// # Safety
/// As [`finish`], after [`leave`].
#[inline(always)]
unsafe fn is_last(p: &GemmFew, plan: Tile, item: Item) -> bool {
    let s_is_last = ptx::shared_base() + plan.is_last();
    let g_counter = p.counters + u64::from(item.row_tile * item.token_tiles + item.token_tile) * 4;
    // SAFETY: the first barrier lets thread 0 see what the block wrote, and its addition releases that; whoever comes last has then
    // acquired what all released, and the second barrier hands it to the block.
    unsafe {
        ptx::bar_sync_named(CONSUMERS_BARRIER, plan.consumer_threads());
        if ptx::tid_x() == 0 {
            let last = ptx::atom_add_acq_rel_gpu_u32(g_counter, 1) == p.splits - 1;
            if last {
                ptx::st_global_b32(g_counter, 0);
            }
            ptx::st_shared_b32(s_is_last, last as u32);
        }
        ptx::bar_sync_named(CONSUMERS_BARRIER, plan.consumer_threads());
        ptx::ld_shared_b32(s_is_last) != 0
    }
}

/// Adds the splits in ascending order.
///
/// # Safety
/// As [`finish`], where [`is_last`].
#[inline(always)]
unsafe fn join<const R: usize>(p: &GemmFew, plan: Tile, item: Item, sums: &mut [f32; R]) {
    let ahead = const { join_ahead(R) };
    let first_index = item.index - item.split * item.token_tiles;
    for r in 0..R {
        sums[r] = 0.0;
    }
    let mut first = 0;
    while first < p.splits {
        // What is past the splits on their way, or past the last, isn't used.
        let mut parts = [[0u32; R]; MOST_AHEAD];
        for i in 0..ahead {
            let split = first + i as u32;
            for four in 0..R / 4 {
                if split < p.splits {
                    let at = scratch::<R>(p, plan, first_index + split * item.token_tiles, four);
                    // SAFETY: written by the blocks of this tile. Not by way of the read-only cache: in this launch.
                    let values = unsafe { ptx::ld_global_v4_b32(at) };
                    for j in 0..4 {
                        parts[i][four * 4 + j] = values[j];
                    }
                }
            }
        }
        for i in 0..ahead {
            if first + (i as u32) < p.splits {
                for r in 0..R {
                    sums[r] += f32::from_bits(parts[i][r]);
                }
            }
        }
        first += ahead as u32;
    }
}

/// Scales, bias, SiLU and residual, and the store.
///
/// # Safety
/// As [`finish`].
#[inline(always)]
unsafe fn store<const N: usize, const SCALED: bool>(
    p: &GemmFew,
    plan: Tile,
    item: Item,
    sums: &mut [f32; N],
) {
    // Register `4 * j + i` is row `lane / 4 + i / 2 * 8` of the warp's, token `8 * j + 2 * (lane % 4) + i % 2`.
    let row = item.row_tile * plan.rows + ptx::here(ptx::tid_x()) / 32 * 16;
    for j in 0..N / 4 {
        let token = item.token_tile * plan.tokens + j as u32 * 8;
        let four = [sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]];
        // SAFETY: rows and tokens that aren't there are neither read nor written; warps stay whole.
        unsafe { store_sixteen::<SCALED>(p, row, token, four) };
    }
}

/// Sixteen rows of `w`, the first of them `row`, by eight tokens.
///
/// # Safety
/// As [`store`].
#[inline(always)]
unsafe fn store_sixteen<const SCALED: bool>(p: &GemmFew, row: u32, token: u32, sums: [f32; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        let [upper, lower] = [[sums[0], sums[1]], [sums[2], sums[3]]];
        let lane = ptx::here(ptx::lane());
        let upper = scale_and_bias::<SCALED>(p, row + lane / 4, token, upper);
        let lower = scale_and_bias::<SCALED>(p, row + 8 + lane / 4, token, lower);
        if p.silu != 0 {
            let values = [silu(upper[0]) * lower[0], silu(upper[1]) * lower[1]];
            store_eight(p, Eight { col: row / 2, cols: p.n / 2, token }, values);
        } else {
            store_eight(p, Eight { col: row, cols: p.n, token }, upper);
            store_eight(p, Eight { col: row + 8, cols: p.n, token }, lower);
        }
    }
}

/// Of a row and the thread's two of eight tokens.
///
/// # Safety
/// As [`store`].
#[inline(always)]
unsafe fn scale_and_bias<const SCALED: bool>(
    p: &GemmFew,
    row: u32,
    token: u32,
    mut sums: [f32; 2],
) -> [f32; 2] {
    if row >= p.n {
        return sums;
    }
    let g_row = u64::from(row) * 4;
    let token = token + ptx::here(ptx::lane()) % 4 * 2;
    // SAFETY: inside of `[n]` and `[m]`.
    unsafe {
        for i in 0..2 {
            if SCALED && token + (i as u32) < p.m {
                let w = f32::from_bits(ptx::ld_global_nc_b32(p.w_scales + g_row));
                let a = ptx::ld_global_nc_b32(p.a_scales + u64::from(token + i as u32) * 4);
                sums[i] *= f32::from_bits(a) * w;
            }
            if p.bias != 0 {
                sums[i] += f32::from_bits(ptx::ld_global_nc_b32(p.bias + g_row));
            }
        }
    }
    sums
}

/// Eight tokens by eight columns of `out`.
#[derive(Clone, Copy)]
struct Eight {
    col: u32,
    cols: u32,
    token: u32,
}

/// Stores a thread's two tokens of column `lane / 4` by way of its neighbours: two columns of token `lane / 4`.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
unsafe fn store_eight(p: &GemmFew, to: Eight, mut values: [f32; 2]) {
    let lane = ptx::here(ptx::lane());
    let (token, col) = (to.token + lane / 4, to.col + lane % 4 * 2);
    let inside = token < p.m && col < to.cols;
    let index = u64::from(token) * u64::from(to.cols) + u64::from(col);
    // SAFETY: the caller's promise; `inside` bounds the index, which is even.
    unsafe {
        if p.residual != 0 {
            let pair = if inside { ptx::ld_global_b32(p.residual + index * 2) } else { 0 };
            let pair = ptx::movmatrix_trans(pair);
            values = [values[0] + ptx::bf16_lo(pair), values[1] + ptx::bf16_hi(pair)];
        }
        if p.out_f32 != 0 {
            let (token, col) = (to.token + lane % 4 * 2, to.col + lane / 4);
            for i in 0..2 {
                if token + (i as u32) < p.m && col < to.cols {
                    let index = u64::from(token + i as u32) * u64::from(to.cols) + u64::from(col);
                    ptx::st_global_b32(p.out + index * 4, values[i].to_bits());
                }
            }
        } else {
            let pair = ptx::movmatrix_trans(ptx::pack_bf16(values[0], values[1]));
            if inside {
                ptx::st_global_b32(p.out + index * 2, pair);
            }
        }
    }
}
