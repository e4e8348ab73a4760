//! The sums of a tile's splits, added in ascending order.
//!
//! ```text
//! in a cluster    each warp's sums to the block that joins its rows, into its shared memory, which counts them | add
//! else            sums to the scratch | counter | the last block of the tile reads all of them, adds
//! ```
//!
//! The same order, so the same bits either way. A block that is told so by its launch is one of a cluster, whose blocks are the splits of one
//! tile; the rows of each are then shared out among them by warps.

use super::{Tile, item::Item};
use crate::{abi::GemmFew, ptx};

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

/// Tells the cluster that this block runs: others store into its shared memory at the end.
///
/// # Safety
/// All consumers call it, after a barrier that has followed [`expect`].
#[inline(always)]
pub(super) unsafe fn announce(p: &GemmFew, plan: Tile) {
    if plan.is_clustered(p.clustered) {
        // SAFETY: whole warps.
        unsafe { ptx::cluster_arrive() };
    }
}

/// Prepares for the sums that other blocks will store into this one's shared memory.
///
/// # Safety
/// One thread calls it.
#[inline(always)]
pub(super) unsafe fn expect(p: &GemmFew, plan: Tile) {
    if plan.is_clustered(p.clustered) {
        let splits = p.splits.max(2);
        let own = ptx::ctaid_x() % splits;
        let warps = (plan.consumers() + splits - 1 - own) / splits;
        let joined = ptx::shared_base() + plan.joined();
        // SAFETY: nobody uses the barrier before the block's.
        unsafe {
            ptx::mbarrier_init(joined, 1);
            ptx::fence_mbarrier_init();
            ptx::mbarrier_arrive_expect_tx(joined, warps * (splits - 1) * plan.warp_sum_bytes());
        }
    }
}

/// Leaves the sums or adds those of all splits; whether these are the calling warp's to store.
///
/// # Safety
/// All consumers call it with what they computed of `item`, after [`announce`] where [`Tile::is_clustered`].
#[inline(always)]
pub(super) unsafe fn join<const R: usize>(p: &GemmFew, plan: Tile, item: Item, sums: &mut [f32; R]) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        if plan.is_clustered(p.clustered) {
            return join_in_cluster(p, plan, item, sums);
        }
        leave(p, plan, item, sums);
        let is_last = is_last(p, plan, item);
        if is_last {
            join_in_scratch(p, plan, item, sums);
        }
        is_last
    }
}

/// Adds `splits` splits in ascending order: `load` brings four of a split's sums.
#[inline(always)]
fn add<const R: usize>(splits: u32, sums: &mut [f32; R], load: impl Fn(u32, usize) -> [u32; 4]) {
    let ahead = const { join_ahead(R) };
    for r in 0..R {
        sums[r] = 0.0;
    }
    let mut first = 0;
    while first < splits {
        // What is past the splits on their way, or past the last, isn't used.
        let mut parts = [[0u32; R]; MOST_AHEAD];
        for i in 0..ahead {
            let split = first + i as u32;
            for four in 0..R / 4 {
                if split < splits {
                    let values = load(split, four);
                    for j in 0..4 {
                        parts[i][four * 4 + j] = values[j];
                    }
                }
            }
        }
        for i in 0..ahead {
            if first + (i as u32) < splits {
                for r in 0..R {
                    sums[r] += f32::from_bits(parts[i][r]);
                }
            }
        }
        first += ahead as u32;
    }
}

/// Four of a thread's sums.
#[inline(always)]
fn four_of<const R: usize>(sums: &[f32; R], four: usize) -> [u32; 4] {
    [0, 1, 2, 3].map(|i| sums[four * 4 + i].to_bits())
}

/// A warp's rows are joined by the block of rank `warp % splits`, in the order of its other warps of that rank; there the sums of all but that
/// block's own split lie, one split after the other.
///
/// # Safety
/// As [`join`], of a block of a cluster of the tile's splits.
#[inline(always)]
unsafe fn join_in_cluster<const R: usize>(
    p: &GemmFew,
    plan: Tile,
    item: Item,
    sums: &mut [f32; R],
) -> bool {
    let thread = ptx::here(ptx::tid_x());
    let (warp, lane) = (thread / 32, thread % 32);
    // Never 0: a division that can fail has no place in a kernel.
    let (splits, own) = (p.splits.max(2), item.split);
    let (joiner, turn) = (warp % splits, warp / splits);
    let (bytes, base) = (plan.warp_sum_bytes(), ptx::shared_base());
    let s_warp = base + plan.exchange() + turn * (splits - 1) * bytes + lane * 16;
    // The joiner's own sums have no place.
    let place = |split: u32| if split > joiner { split - 1 } else { split };
    // SAFETY: the first wait tells that the other blocks run and have made their barriers, the second that all sums for this block are there.
    // Nothing is stored into a block that has waited so, and nothing read of one that hasn't: each may end when it likes.
    unsafe {
        ptx::cluster_wait();
        if own != joiner {
            let s_place = ptx::mapa(s_warp + place(own) * bytes, joiner);
            let s_joined = ptx::mapa(base + plan.joined(), joiner);
            for four in 0..R / 4 {
                ptx::st_async_v4_b32(s_place + four as u32 * 512, four_of(sums, four), s_joined);
            }
            return false;
        }
        ptx::mbarrier_wait(base + plan.joined(), 0);
        let mine = *sums;
        add(splits, sums, |split, four| match split == own {
            true => four_of(&mine, four),
            false => ptx::ld_shared_v4_b32(s_warp + place(split) * bytes + four as u32 * 512),
        });
        true
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
/// As [`join`].
#[inline(always)]
unsafe fn leave<const R: usize>(p: &GemmFew, plan: Tile, item: Item, sums: &[f32; R]) {
    for four in 0..R / 4 {
        // SAFETY: the item's own part of the scratch.
        unsafe { ptx::st_global_v4_b32(scratch::<R>(p, plan, item.index, four), four_of(sums, four)) };
    }
}

/// Whether the other splits of the tile have all been here before; the last leaves the counter as it was.
///
/// # Safety
/// As [`join`], after [`leave`].
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

/// # Safety
/// As [`join`], where [`is_last`].
#[inline(always)]
unsafe fn join_in_scratch<const R: usize>(p: &GemmFew, plan: Tile, item: Item, sums: &mut [f32; R]) {
    let first_index = item.index - item.split * item.token_tiles;
    add(p.splits, sums, |split, four| {
        let at = scratch::<R>(p, plan, first_index + split * item.token_tiles, four);
        // SAFETY: written by the blocks of this tile. Not by way of the read-only cache: in this launch.
        unsafe { ptx::ld_global_v4_b32(at) }
    });
}
