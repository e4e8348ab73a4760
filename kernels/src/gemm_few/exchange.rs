//! What the blocks of a tile leave for each other: by mail, or by way of a counter.

use super::Tile;
use crate::ptx;

/// The barrier of all consumers.
const CONSUMERS_BARRIER: u32 = 1;
/// Sums of 16 rows by eight tokens: four a lane, and as many a unit of what splits join.
pub(super) const SUMS: usize = 4;

/// `-0`, to which anything is added without a change.
pub(crate) const NOTHING: f32 = -0.0;

/// Waits until all blocks of the tile have left their sums.
///
/// # Safety
/// As [`finish`](super::finish::finish), after [`Scratch::leave`]; the blocks run at the same time.
#[inline(always)]
pub(super) unsafe fn wait_for_all(plan: Tile, g_counter: u64) {
    // SAFETY: the first barrier lets thread 0 see what the block wrote, and its addition releases that; what it finds is what the last addition of all released, and the
    // second barrier hands that to the block.
    unsafe {
        meet(plan);
        let ranks = ptx::nctaid_x();
        if ptx::tid_x() == 0 && ptx::atom_add_acq_rel_gpu_u32(g_counter, 1) < ranks - 1 {
            while ptx::poll_acquire_gpu_u32(g_counter) < ranks {}
        }
        meet(plan);
    }
}

/// Counts the block once more: the last of them, which nobody waits for, leaves the counter as it was.
///
/// # Safety
/// As [`finish`](super::finish::finish), after [`wait_for_all`].
#[inline(always)]
pub(super) unsafe fn has_joined(g_counter: u64) {
    // SAFETY: one thread counts; the tile's counter is there.
    unsafe {
        if ptx::tid_x() == 0 && ptx::atom_add_acq_rel_gpu_u32(g_counter, 1) == 2 * ptx::nctaid_x() - 1 {
            ptx::st_global_b32(g_counter, 0);
        }
    }
}

/// Waits for all consumers.
///
/// # Safety
/// All of them call it.
#[inline(always)]
pub(super) unsafe fn meet(plan: Tile) {
    // SAFETY: the caller's promise.
    unsafe { ptx::bar_sync_named(CONSUMERS_BARRIER, plan.consumer_threads()) };
}

/// Where a consumer's four sums of an eight are kept, or stashed.
#[inline(always)]
pub(super) fn stashed(plan: Tile, eight: usize) -> u32 {
    stash_of(plan, eight, ptx::here(ptx::tid_x()))
}

#[inline(always)]
fn stash_of(plan: Tile, eight: usize, thread: u32) -> u32 {
    let at = eight as u32 * plan.consumer_threads() + thread;
    ptx::shared_base() + plan.stash() + at * (SUMS as u32 * 4)
}

/// Adds the two splits side by side: threads of the first get every other eight from the first on, those of the second the others.
///
/// # Safety
/// All consumers call it, with all products of the block behind them; `is_there` is whether the thread's split is.
#[inline(always)]
pub(super) unsafe fn add_abreast<const N: usize, const HALF: usize>(
    plan: Tile,
    is_there: bool,
    sums: &[f32; N],
) -> [f32; HALF] {
    const { assert!(HALF * 2 == N) }
    let thread = ptx::here(ptx::tid_x());
    let is_first = plan.side(thread) == 0;
    let mut own = [0.0; HALF];
    // SAFETY: the stash takes the ring's place, which all have read. Places are written by one thread, and read by another behind a barrier.
    unsafe {
        meet(plan);
        for j in 0..HALF / SUMS {
            let halves = [four(sums, 2 * j), four(sums, 2 * j + 1)];
            let (kept, given) = if is_first { (halves[0], halves[1]) } else { (halves[1], halves[0]) };
            own[j * SUMS..][..SUMS].copy_from_slice(&if is_there { kept } else { [NOTHING; SUMS] });
            let given = if is_there { given } else { [NOTHING; SUMS] };
            ptx::st_shared_v4_b32(stashed(plan, j), given.map(f32::to_bits));
        }
        meet(plan);
        for j in 0..HALF / SUMS {
            let other = ptx::ld_shared_v4_b32(stash_of(plan, j, thread ^ plan.split_threads()));
            for i in 0..SUMS {
                own[j * SUMS + i] += f32::from_bits(other[i]);
            }
        }
    }
    own
}

/// A thread's sums of an eight. Register `4 * j + i` is row `lane / 4 + i / 2 * 8` of the warp's, token `8 * j + 2 * (lane % 4) + i % 2`.
#[inline(always)]
pub(super) fn four<const N: usize>(sums: &[f32; N], j: usize) -> [f32; SUMS] {
    [sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]]
}

/// What the blocks of a tile leave for each other: of each split or pair, `all` times eight tokens, four sums a consumer; of these the first `eights`, whose tokens
/// are there.
#[derive(Clone, Copy)]
pub(super) struct Scratch {
    pub g_sums: u64,
    pub plan: Tile,
    /// The place of the tile's first split.
    pub first: u32,
    /// Splits, or pairs.
    pub count: u32,
    pub all: u32,
    pub eights: u32,
}

impl Scratch {
    /// Where a lane's four sums of a split or pair are: of 16 rows of `warp`, of eight tokens.
    #[inline(always)]
    fn place(self, index: u32, eight: u32, warp: u32) -> u64 {
        let eight = u64::from(self.first + index) * u64::from(self.all) + u64::from(eight);
        let thread = warp * 32 + ptx::here(ptx::lane());
        self.g_sums + (eight * u64::from(self.plan.consumer_threads()) + u64::from(thread)) * 16
    }

    /// Whether blocks leave sums of that split or pair, and eight.
    #[inline(always)]
    fn is_left(self, index: u32, eight: u32) -> bool {
        index < self.count && eight < self.eights
    }

    /// Keeps the sums of the first of pair `index`: in shared memory, and what that has no room for in the place of a split, of which pairs take half.
    ///
    /// # Safety
    /// As [`finish`](super::finish::finish).
    #[inline(always)]
    pub unsafe fn keep<const N: usize>(self, index: u32, sums: &[f32; N]) {
        let warp = ptx::here(ptx::tid_x()) / 32;
        for eight in 0..N / SUMS {
            let words = four(sums, eight).map(f32::to_bits);
            // SAFETY: the thread's own place.
            unsafe {
                if (eight as u32) < self.plan.stashed() {
                    ptx::st_shared_v4_b32(stashed(self.plan, eight), words);
                } else {
                    ptx::st_global_v4_b32(self.place(self.count + index, eight as u32, warp), words);
                }
            }
        }
    }

    /// Adds what was kept.
    ///
    /// # Safety
    /// As [`Scratch::keep`], after it.
    #[inline(always)]
    pub unsafe fn add_kept<const N: usize>(self, index: u32, sums: &mut [f32; N]) {
        let warp = ptx::here(ptx::tid_x()) / 32;
        let mut kept = [0; N];
        // What is far is asked for first.
        for is_far in [true, false] {
            for eight in 0..N / SUMS {
                if is_far != (eight as u32 >= self.plan.stashed()) {
                    continue;
                }
                // SAFETY: written by the thread itself.
                let words = unsafe {
                    match is_far {
                        true => ptx::ld_global_v4_b32(self.place(self.count + index, eight as u32, warp)),
                        false => ptx::ld_shared_v4_b32(stashed(self.plan, eight)),
                    }
                };
                kept[eight * SUMS..][..SUMS].copy_from_slice(&words);
            }
        }
        for i in 0..N {
            sums[i] += f32::from_bits(kept[i]);
        }
    }

    /// # Safety
    /// As [`finish`](super::finish::finish).
    #[inline(always)]
    pub unsafe fn leave<const N: usize>(self, index: u32, sums: &[f32; N]) {
        for eight in 0..N / SUMS {
            // Mail that nobody takes would stay.
            if !self.plan.is_mailed() || (eight as u32) < self.eights {
                let words = four(sums, eight).map(f32::to_bits);
                let at = self.place(index, eight as u32, ptx::here(ptx::tid_x()) / 32);
                // SAFETY: the place is the thread's; of mail it is zeros.
                unsafe {
                    if self.plan.is_mailed() {
                        // Of NaNs the one of only ones becomes another: no word is zero.
                        ptx::st_relaxed_gpu_v4_u32(at, words.map(|word| !word.min(u32::MAX - 1)));
                    } else {
                        ptx::st_global_v4_b32(at, words);
                    }
                }
            }
        }
    }
}

/// The words of splits or pairs from `index` and of eights from `eight` on; those that nobody leaves are [`NOTHING`]'s.
///
/// # Safety
/// As [`join`](super::finish::join), when all have been left.
#[inline(always)]
pub(super) unsafe fn load<const EIGHTS: usize, const AHEAD: usize>(
    scratch: Scratch,
    index: u32,
    eight: u32,
    warp: u32,
    words: &mut [[[u32; SUMS]; AHEAD]; EIGHTS],
) {
    for j in 0..EIGHTS {
        for i in 0..AHEAD {
            words[j][i] = [NOTHING.to_bits(); SUMS];
            if scratch.is_left(index + i as u32, eight + j as u32) {
                let at = scratch.place(index + i as u32, eight + j as u32, warp);
                // SAFETY: written by the blocks of this tile. Not by way of the read-only cache: in this launch.
                words[j][i] = unsafe { ptx::ld_global_v4_b32(at) };
            }
        }
    }
}

/// As [`load`], of mail: waits for it. Each place is read by one thread, which leaves zeros.
///
/// # Safety
/// As [`join`](super::finish::join).
#[inline(always)]
pub(super) unsafe fn collect<const EIGHTS: usize, const AHEAD: usize>(
    scratch: Scratch,
    index: u32,
    eight: u32,
    warp: u32,
    words: &mut [[[u32; SUMS]; AHEAD]; EIGHTS],
) {
    let g_first = scratch.place(index, eight, warp);
    // Found anew each time: addresses would take twice the registers that the words do.
    let place = |j: usize, i: usize| {
        let eights = (i as u32 * scratch.all + j as u32) * scratch.plan.consumer_threads();
        ptx::address_here(g_first) + u64::from(eights) * 16
    };
    let is_left = |j: usize, i: usize| scratch.is_left(index + i as u32, eight + j as u32);
    for j in 0..EIGHTS {
        for i in 0..AHEAD {
            words[j][i] = [if is_left(j, i) { 0 } else { !NOTHING.to_bits() }; SUMS];
        }
    }
    // SAFETY: the caller's promise.
    unsafe {
        // All that hasn't come is asked for together: each time is a trip to the L2.
        let mut is_missing = true;
        while is_missing {
            is_missing = false;
            for j in 0..EIGHTS {
                for i in 0..AHEAD {
                    if has_hole(words[j][i]) {
                        words[j][i] = ptx::poll_relaxed_gpu_v4_u32(place(j, i));
                    }
                }
            }
            for j in 0..EIGHTS {
                for i in 0..AHEAD {
                    is_missing |= has_hole(words[j][i]);
                }
            }
        }
        for j in 0..EIGHTS {
            for i in 0..AHEAD {
                if is_left(j, i) {
                    ptx::st_relaxed_gpu_v4_u32(place(j, i), [0; SUMS]);
                }
                words[j][i] = words[j][i].map(|word| !word);
            }
        }
    }
}

/// Whether one of the words is zero: mail that hasn't come.
#[inline(always)]
pub(crate) fn has_hole(words: [u32; 4]) -> bool {
    words[0] == 0 || words[1] == 0 || words[2] == 0 || words[3] == 0
}
