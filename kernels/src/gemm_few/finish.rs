//! From a split's sums to the output.

use super::{STASHED, Tile, item::Item, layout};
use crate::{
    abi::{GemmFew, MOST_WAITING},
    element::Element,
    ptx,
    silu_mul::kernel::silu,
};

/// The barrier of all consumers.
const CONSUMERS_BARRIER: u32 = 1;
/// Sums of 16 rows by eight tokens: four a lane, and as many a unit of what splits join.
const SUMS: usize = 4;

/// Splits whose sums a join has on their way at once.
const AHEAD: u32 = 8;

/// Stores `N` sums a thread of a block that has all of `k`. Others leave them, and after their last split of the tile join all that were left; a block
/// that has no part in the join is done then.
///
/// # Safety
/// All consumers call it with what they computed of the block's `index`-th split, after those before.
#[inline(always)]
pub(super) unsafe fn finish<E: Element, const N: usize, const SCALED: bool>(
    p: &GemmFew,
    plan: Tile,
    index: u32,
    sums: &[f32; N],
) {
    // Found again rather than kept in registers through the products.
    let item = Item::nth(p, plan, ptx::here(index));
    // SAFETY: the caller's promise.
    unsafe {
        // Blocks of the tile.
        let ranks = if plan.is_persistent() { ptx::nctaid_x() } else { p.splits };
        let scratch =
            Scratch { g_sums: p.partials, plan, first: item.tile * p.splits, eights: (N / SUMS) as u32 };
        if ranks > 1 {
            scratch.leave(item.split, sums);
            if !item.is_last {
                return;
            }
            let g_counter = p.counters + u64::from(item.tile) * 4;
            if plan.joins_together() && ranks <= MOST_WAITING {
                wait_for_all(plan, g_counter, ranks);
                join_part::<E, N, SCALED>(p, item, scratch, ptx::ctaid_x(), ranks);
                has_joined(g_counter, ranks);
            } else if is_last(plan, g_counter, ranks) {
                join_part::<E, N, SCALED>(p, item, scratch, 0, 1);
            }
            return;
        }
        // A block that has all splits adds them as they come.
        let mut sums = *sums;
        if plan.is_persistent() && item.split > 0 {
            scratch.add_before(&mut sums);
        }
        if item.is_last {
            store::<E, N, SCALED>(p, plan, item, &sums);
        } else {
            scratch.leave(0, &sums);
        }
    }
}

/// What the splits of a tile leave: of each, `eights` times eight tokens, four sums a consumer.
#[derive(Clone, Copy)]
struct Scratch {
    g_sums: u64,
    plan: Tile,
    /// The place of the tile's first split.
    first: u32,
    eights: u32,
}

impl Scratch {
    /// Where a lane's four sums of a split are: of 16 rows of `warp`, of eight tokens.
    #[inline(always)]
    fn place(self, split: u32, eight: u32, warp: u32) -> u64 {
        let eight = u64::from(self.first + split) * u64::from(self.eights) + u64::from(eight);
        let thread = warp * 32 + ptx::here(ptx::lane());
        self.g_sums + (eight * u64::from(self.plan.consumer_threads()) + u64::from(thread)) * 16
    }

    /// # Safety
    /// As [`finish`].
    #[inline(always)]
    unsafe fn leave<const N: usize>(self, split: u32, sums: &[f32; N]) {
        for eight in 0..N / SUMS {
            let values = [0, 1, 2, 3].map(|i| sums[eight * SUMS + i].to_bits());
            let at = self.place(split, eight as u32, ptx::here(ptx::tid_x()) / 32);
            // SAFETY: the split's own part of the scratch.
            unsafe { ptx::st_global_v4_b32(at, values) };
        }
    }

    /// Adds the sums of the splits before, which the block has left in the place of the first: after 0, as [`join`] does.
    ///
    /// # Safety
    /// As [`finish`].
    #[inline(always)]
    unsafe fn add_before<const N: usize>(self, sums: &mut [f32; N]) {
        for eight in 0..N / SUMS {
            let at = self.place(0, eight as u32, ptx::here(ptx::tid_x()) / 32);
            // SAFETY: written by the thread itself.
            let before = unsafe { ptx::ld_global_v4_b32(at) }.map(f32::from_bits);
            for i in 0..SUMS {
                sums[eight * SUMS + i] += 0.0 + before[i];
            }
        }
    }
}

/// Whether the other `ranks` blocks of the tile have all been here before; the last leaves the counter as it was.
///
/// # Safety
/// As [`finish`], after [`Scratch::leave`].
#[inline(always)]
unsafe fn is_last(plan: Tile, g_counter: u64, ranks: u32) -> bool {
    let s_may_join = ptx::shared_base() + plan.may_join();
    // SAFETY: the first barrier lets thread 0 see what the block wrote, and its addition releases that; whoever comes last has then
    // acquired what all released, and the second barrier hands it to the block.
    unsafe {
        ptx::bar_sync_named(CONSUMERS_BARRIER, plan.consumer_threads());
        if ptx::tid_x() == 0 {
            let last = ptx::atom_add_acq_rel_gpu_u32(g_counter, 1) == ranks - 1;
            if last {
                ptx::st_global_b32(g_counter, 0);
            }
            ptx::st_shared_b32(s_may_join, last as u32);
        }
        ptx::bar_sync_named(CONSUMERS_BARRIER, plan.consumer_threads());
        ptx::ld_shared_b32(s_may_join) != 0
    }
}

/// Waits until all `ranks` blocks of the tile have left their sums.
///
/// # Safety
/// As [`is_last`]; the blocks run at the same time.
#[inline(always)]
unsafe fn wait_for_all(plan: Tile, g_counter: u64, ranks: u32) {
    // SAFETY: as in `is_last`: what thread 0 finds is what the last addition of all released.
    unsafe {
        ptx::bar_sync_named(CONSUMERS_BARRIER, plan.consumer_threads());
        if ptx::tid_x() == 0 && ptx::atom_add_acq_rel_gpu_u32(g_counter, 1) < ranks - 1 {
            while ptx::poll_acquire_gpu_u32(g_counter) < ranks {}
        }
        ptx::bar_sync_named(CONSUMERS_BARRIER, plan.consumer_threads());
    }
}

/// Counts the block once more: the last of them, which nobody waits for, leaves the counter as it was.
///
/// # Safety
/// As [`finish`], after [`wait_for_all`].
#[inline(always)]
unsafe fn has_joined(g_counter: u64, ranks: u32) {
    // SAFETY: one thread counts; the tile's counter is there.
    unsafe {
        if ptx::tid_x() == 0 && ptx::atom_add_acq_rel_gpu_u32(g_counter, 1) == 2 * ranks - 1 {
            ptx::st_global_b32(g_counter, 0);
        }
    }
}

/// Joins the `rank`-th of `ranks` parts of the tile, as many eights at a time as a thread has registers for: each time that a warp waits for sums is a trip to
/// the L2.
///
/// # Safety
/// As [`join`].
#[inline(always)]
unsafe fn join_part<E: Element, const N: usize, const SCALED: bool>(
    p: &GemmFew,
    item: Item,
    scratch: Scratch,
    rank: u32,
    ranks: u32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (N / SUMS, scratch.plan.is_persistent()) {
            (1, _) => join::<E, 1, SCALED>(p, item, scratch, rank, ranks),
            (_, false) => join::<E, 2, SCALED>(p, item, scratch, rank, ranks),
            (_, true) => join::<E, 4, SCALED>(p, item, scratch, rank, ranks),
        }
    }
}

/// Adds the splits in ascending order and stores: of the tile's eights of tokens the `rank`-th of `ranks` parts, a warp its 16 rows.
///
/// # Safety
/// As [`finish`], once all splits have left their sums.
#[inline(always)]
unsafe fn join<E: Element, const AT_ONCE: usize, const SCALED: bool>(
    p: &GemmFew,
    item: Item,
    scratch: Scratch,
    rank: u32,
    ranks: u32,
) {
    let plan = scratch.plan;
    let warp = ptx::here(ptx::tid_x()) / 32;
    let row = item.row_tile * plan.rows + warp * 16;
    let first_token = item.token_tile * plan.tokens;
    let (mut eight, end) = layout::split_steps(scratch.eights, ranks, rank);
    // What is behind the part is another's.
    let to = Output { m: p.m.min(first_token + end * 8), ..Output::of(p) };
    while first_token + eight * 8 < to.m {
        let token = first_token + eight * 8;
        let is_there = |j: usize| token + (j as u32) * 8 < to.m;
        // On its way with the sums.
        let mut residual = [[0; 2]; AT_ONCE];
        if to.residual != 0 {
            for eight in 0..AT_ONCE {
                for half in 0..2 {
                    // SAFETY: as below.
                    residual[eight][half] = unsafe { residual_of(&to, row, token + eight as u32 * 8, half) };
                }
            }
        }
        let mut sums = [[0.0; SUMS]; AT_ONCE];
        let mut first = 0;
        while first < p.splits {
            let mut of_splits = [[[0u32; SUMS]; AHEAD as usize]; AT_ONCE];
            for j in 0..AT_ONCE {
                for i in 0..AHEAD {
                    if is_there(j) && first + i < p.splits {
                        let at = scratch.place(first + i, eight + j as u32, warp);
                        // SAFETY: written by the blocks of this tile. Not by way of the read-only cache: in this launch.
                        of_splits[j][i as usize] = unsafe { ptx::ld_global_v4_b32(at) };
                    }
                }
            }
            for j in 0..AT_ONCE {
                for i in 0..AHEAD {
                    if first + i < p.splits {
                        sums[j] =
                            [0, 1, 2, 3].map(|k| sums[j][k] + f32::from_bits(of_splits[j][i as usize][k]));
                    }
                }
            }
            first += AHEAD;
        }
        // SAFETY: rows that aren't there are neither read nor written; warps stay whole.
        unsafe {
            store_eights::<E, AT_ONCE, SCALED>(&to, row, token, sums, |eight, half| residual[eight][half]);
        }
        eight += AT_ONCE as u32;
    }
}

/// Scales, bias, SiLU and residual, and the store.
///
/// # Safety
/// As [`finish`].
#[inline(always)]
unsafe fn store<E: Element, const N: usize, const SCALED: bool>(
    p: &GemmFew,
    plan: Tile,
    item: Item,
    sums: &[f32; N],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (N / SUMS, plan.is_persistent()) {
            (1, _) => store_in_turns::<E, N, 1, SCALED>(p, plan, item, sums),
            (2, _) => store_in_turns::<E, N, 2, SCALED>(p, plan, item, sums),
            (16, false) => store_in_turns::<E, N, { STASHED / 2 }, SCALED>(p, plan, item, sums),
            _ => store_in_turns::<E, N, STASHED, SCALED>(p, plan, item, sums),
        }
    }
}

/// As [`store`], so many eights a turn.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn store_in_turns<E: Element, const N: usize, const AT_ONCE: usize, const SCALED: bool>(
    p: &GemmFew,
    plan: Tile,
    item: Item,
    sums: &[f32; N],
) {
    // Register `4 * j + i` is row `lane / 4 + i / 2 * 8` of the warp's, token `8 * j + 2 * (lane % 4) + i % 2`.
    let thread = ptx::here(ptx::tid_x());
    let row = item.row_tile * plan.rows + thread / 32 * 16;
    let to = Output::of(p);
    let four = |j: usize| [sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]];
    let store = |first: u32, fours: [[f32; SUMS]; AT_ONCE]| {
        let token = item.token_tile * plan.tokens + first * 8;
        if token < p.m {
            // SAFETY: rows and tokens that aren't there are neither read nor written; warps stay whole.
            unsafe {
                store_eights::<E, AT_ONCE, SCALED>(&to, row, token, fours, |eight, half| {
                    residual_of(&to, row, token + eight as u32 * 8, half)
                });
            }
        }
    };
    if plan.stash_bytes() == 0 {
        for turn in 0..N / SUMS / AT_ONCE {
            store((turn * AT_ONCE) as u32, core::array::from_fn(|i| four(turn * AT_ONCE + i)));
        }
        return;
    }
    // Registers have no index that a loop could count, and of many tokens the instructions of one after the other have to be fetched as they
    // are executed, which takes longer than they do. By way of memory there is one loop; as many eights a turn as hide what each waits for.
    let s_stash = |i: usize| {
        let at = i as u32 * plan.consumer_threads() + thread;
        ptx::shared_base() + plan.stash() + at * (SUMS as u32 * 4)
    };
    let mut turn = ptx::here(0);
    while turn < (N / SUMS / AT_ONCE) as u32 {
        for j in 0..N / SUMS {
            if (j / AT_ONCE) as u32 == turn {
                // SAFETY: a thread's own part of the block's shared memory.
                unsafe { ptx::st_shared_v4_b32(s_stash(j % AT_ONCE), four(j).map(f32::to_bits)) };
            }
        }
        let mut fours = [[0.0; SUMS]; AT_ONCE];
        for i in 0..AT_ONCE {
            // SAFETY: written above, by the thread itself.
            fours[i] = unsafe { ptx::ld_shared_v4_b32(s_stash(i)) }.map(f32::from_bits);
        }
        store(turn * AT_ONCE as u32, fours);
        turn += 1;
    }
}

/// Where sums go and what is done to them on their way: as in [`GemmFew`].
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub bias: u64,
    pub residual: u64,
    pub out: u64,
    pub a_scales: u64,
    pub w_scales: u64,
    pub m: u32,
    pub n: u32,
    pub out_stride: u32,
    pub out_f32: bool,
    pub silu: bool,
    /// bf16 `[m, columns of out]`, optional: `out` once more, for blocks that wait for it. All bits of a word are inverted, so that none is 0: `out` has no
    /// NaN of only ones.
    pub mail: u64,
}

impl Output {
    #[inline(always)]
    fn of(p: &GemmFew) -> Output {
        let GemmFew { bias, residual, out, a_scales, w_scales, m, n, out_stride, out_f32, silu, .. } = *p;
        Output {
            bias,
            residual,
            out,
            a_scales,
            w_scales,
            m,
            n,
            out_stride,
            out_f32: out_f32 != 0,
            silu: silu != 0,
            mail: 0,
        }
    }
}

/// What is added to a thread's sums of [`store_eights`], of eight tokens and the first or the second eight columns. Read early, it hides behind products.
///
/// # Safety
/// As [`store`]; there is a residual.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn residual_of(p: &Output, row: u32, token: u32, half: usize) -> u32 {
    let to = match p.silu {
        false => Eight { col: row + half as u32 * 8, cols: p.n, token },
        true => Eight { col: row / 2, cols: p.n / 2, token },
    };
    let (index, inside) = to.place(p);
    // SAFETY: inside of `[m, columns of out]`, at an even column.
    unsafe { ptx::ld_global_b32_if(inside, p.residual + index * 2) }
}

/// Sixteen rows of `w`, the first of them `row`, by `EIGHTS` times eight tokens; `residual(eight, half)` is [`residual_of`] them, asked for where there is
/// one. All of them go through each step together: what one waits for hides behind the others.
///
/// # Safety
/// As [`store`].
#[inline(always)]
pub(crate) unsafe fn store_eights<E: Element, const EIGHTS: usize, const SCALED: bool>(
    p: &Output,
    row: u32,
    token: u32,
    mut sums: [[f32; SUMS]; EIGHTS],
    residual: impl Fn(usize, usize) -> u32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        scale_and_bias::<EIGHTS, SCALED>(p, row, token, &mut sums);
        if p.silu {
            let values = sums.map(|[a, b, c, d]| [[silu(a) * c, silu(b) * d]]);
            store_halves::<E, EIGHTS, 1>(p, Eight { col: row / 2, cols: p.n / 2, token }, values, residual);
        } else {
            let values = sums.map(|[a, b, c, d]| [[a, b], [c, d]]);
            store_halves::<E, EIGHTS, 2>(p, Eight { col: row, cols: p.n, token }, values, residual);
        }
    }
}

/// Of rows `lane / 4` and `lane / 4 + 8` behind `row`, and of each eight the thread's two tokens.
///
/// # Safety
/// As [`store`].
#[inline(always)]
unsafe fn scale_and_bias<const EIGHTS: usize, const SCALED: bool>(
    p: &Output,
    row: u32,
    token: u32,
    sums: &mut [[f32; SUMS]; EIGHTS],
) {
    let lane = ptx::here(ptx::lane());
    let rows = [row + lane / 4, row + lane / 4 + 8];
    let token = token + lane % 4 * 2;
    // SAFETY: inside of `[n]` and `[m]`.
    unsafe {
        if SCALED {
            let w = rows.map(|row| ptx::ld_global_b32_if(row < p.n, p.w_scales + u64::from(row) * 4));
            for eight in 0..EIGHTS {
                for i in 0..SUMS {
                    let token = token + (eight * 8 + i % 2) as u32;
                    let a = ptx::ld_global_b32_if(token < p.m, p.a_scales + u64::from(token) * 4);
                    sums[eight][i] *= f32::from_bits(a) * f32::from_bits(w[i / 2]);
                }
            }
        }
        if p.bias != 0 {
            let bias = rows.map(|row| ptx::ld_global_b32_if(row < p.n, p.bias + u64::from(row) * 4));
            for eight in 0..EIGHTS {
                for i in 0..SUMS {
                    sums[eight][i] += f32::from_bits(bias[i / 2]);
                }
            }
        }
    }
}

/// Eight tokens by eight columns of `out`.
#[derive(Clone, Copy)]
struct Eight {
    col: u32,
    cols: u32,
    token: u32,
}

impl Eight {
    /// Where the thread's two columns of token `lane / 4` are, and whether they are inside.
    #[inline(always)]
    fn place(self, p: &Output) -> (u64, bool) {
        let lane = ptx::here(ptx::lane());
        let (token, col) = (self.token + lane / 4, self.col + lane % 4 * 2);
        (u64::from(token) * u64::from(p.out_stride) + u64::from(col), token < p.m && col < self.cols)
    }
}

/// Stores a thread's two tokens of column `lane / 4` of each half of each eight by way of its neighbours: two columns of token `lane / 4`, to which `residual` is
/// added. `to` is the first half of the first eight.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
unsafe fn store_halves<E: Element, const EIGHTS: usize, const HALVES: usize>(
    p: &Output,
    to: Eight,
    mut values: [[[f32; 2]; HALVES]; EIGHTS],
    residual: impl Fn(usize, usize) -> u32,
) {
    let lane = ptx::here(ptx::lane());
    let at = |eight: usize, half: usize| Eight {
        col: to.col + half as u32 * 8,
        cols: to.cols,
        token: to.token + eight as u32 * 8,
    };
    // SAFETY: the caller's promise; what is inside bounds the index, which is even.
    unsafe {
        if p.residual != 0 {
            let mut words = [[0; HALVES]; EIGHTS];
            for eight in 0..EIGHTS {
                for half in 0..HALVES {
                    words[eight][half] = residual(eight, half);
                }
            }
            for eight in 0..EIGHTS {
                for half in 0..HALVES {
                    let pair = E::unpack(ptx::movmatrix_trans(words[eight][half]));
                    values[eight][half] = [0, 1].map(|i| values[eight][half][i] + pair[i]);
                }
            }
        }
        if p.out_f32 {
            for eight in 0..EIGHTS {
                for half in 0..HALVES {
                    let to = at(eight, half);
                    let (token, col) = (to.token + lane % 4 * 2, to.col + lane / 4);
                    for i in 0..2 {
                        let index = u64::from(token + i as u32) * u64::from(p.out_stride) + u64::from(col);
                        let inside = token + (i as u32) < p.m && col < to.cols;
                        ptx::st_global_b32_if(inside, p.out + index * 4, values[eight][half][i].to_bits());
                    }
                }
            }
            return;
        }
        let pairs = values.map(|halves| halves.map(|[a, b]| ptx::movmatrix_trans(E::pack(a, b))));
        for eight in 0..EIGHTS {
            for half in 0..HALVES {
                let (to, pair) = (at(eight, half), pairs[eight][half]);
                let (index, inside) = to.place(p);
                if p.mail != 0 && inside {
                    let index = u64::from(to.token + lane / 4) * u64::from(to.cols)
                        + u64::from(to.col + lane % 4 * 2);
                    ptx::st_relaxed_gpu_u32(p.mail + index * 2, !pair);
                }
                ptx::st_global_b32_if(inside, p.out + index * 2, pair);
            }
        }
    }
}
