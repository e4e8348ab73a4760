//! From a split's sums to the output.

use super::{STASHED, Tile, item::Item};
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
                join::<E, N, SCALED>(p, item, scratch, ptx::ctaid_x(), ranks);
                has_joined(g_counter, ranks);
            } else if is_last(plan, g_counter, ranks) {
                join::<E, N, SCALED>(p, item, scratch, 0, 1);
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

/// Adds the splits in ascending order and stores: of the tile's parts of 16 rows by eight tokens each `ranks`-th, from `rank` on, two of them a warp
/// at a time where there are two: each time that a warp waits for sums is a trip to the L2.
///
/// # Safety
/// As [`finish`], once all splits have left their sums.
#[inline(always)]
unsafe fn join<E: Element, const N: usize, const SCALED: bool>(
    p: &GemmFew,
    item: Item,
    scratch: Scratch,
    rank: u32,
    ranks: u32,
) {
    let at_once = const { if N > SUMS { 2 } else { 1 } };
    let (plan, warps, to) = (scratch.plan, scratch.plan.consumers(), Output::of(p));
    let mut part = rank + ranks * (ptx::here(ptx::tid_x()) / 32);
    while part < scratch.eights * warps {
        let parts = [part, part + ranks * warps];
        let token = |part: u32| item.token_tile * plan.tokens + part / warps * 8;
        let row = |part: u32| item.row_tile * plan.rows + part % warps * 16;
        let is_there = parts.map(|part| part < scratch.eights * warps && token(part) < p.m);
        let mut sums = [[0.0; SUMS]; 2];
        let mut first = 0;
        while first < p.splits {
            let mut of_splits = [[[0u32; SUMS]; AHEAD as usize]; 2];
            for j in 0..at_once {
                for i in 0..AHEAD {
                    if is_there[j] && first + i < p.splits {
                        let at = scratch.place(first + i, parts[j] / warps, parts[j] % warps);
                        // SAFETY: written by the blocks of this tile. Not by way of the read-only cache: in this launch.
                        of_splits[j][i as usize] = unsafe { ptx::ld_global_v4_b32(at) };
                    }
                }
            }
            for j in 0..at_once {
                for i in 0..AHEAD {
                    if first + i < p.splits {
                        sums[j] =
                            [0, 1, 2, 3].map(|k| sums[j][k] + f32::from_bits(of_splits[j][i as usize][k]));
                    }
                }
            }
            first += AHEAD;
        }
        // Counted where the compiler doesn't see it: instructions that are executed once take longer to fetch than to execute.
        let mut j = ptx::here(0);
        while j < at_once as u32 {
            let (part, sums) = if j == 0 { (parts[0], sums[0]) } else { (parts[1], sums[1]) };
            if part < scratch.eights * warps && token(part) < p.m {
                let (row, token) = (row(part), token(part));
                // SAFETY: rows that aren't there are neither read nor written; warps stay whole.
                unsafe {
                    store_sixteen::<E, SCALED>(&to, row, token, sums, |eight| {
                        residual_of(&to, row, token, eight)
                    });
                }
            }
            j += 1;
        }
        part += at_once as u32 * ranks * warps;
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
    // Register `4 * j + i` is row `lane / 4 + i / 2 * 8` of the warp's, token `8 * j + 2 * (lane % 4) + i % 2`.
    let thread = ptx::here(ptx::tid_x());
    let row = item.row_tile * plan.rows + thread / 32 * 16;
    let to = Output::of(p);
    let store_eight_tokens = |j: u32, four: [f32; SUMS]| {
        let token = item.token_tile * plan.tokens + j * 8;
        if token < p.m {
            // SAFETY: rows and tokens that aren't there are neither read nor written; warps stay whole.
            unsafe {
                store_sixteen::<E, SCALED>(&to, row, token, four, |eight| {
                    residual_of(&to, row, token, eight)
                });
            }
        }
    };
    let four = |j: usize| [sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]];
    if plan.stash_bytes() == 0 {
        for j in 0..N / SUMS {
            store_eight_tokens(j as u32, four(j));
        }
        return;
    }
    // Registers have no index that a loop could count, and of many tokens the instructions of one after the other have to be fetched as they
    // are executed, which takes longer than they do. By way of memory there is one loop.
    let s_stash = |i: u32| {
        ptx::shared_base() + plan.stash() + (i * plan.consumer_threads() + thread) * (SUMS as u32 * 4)
    };
    let mut batch = ptx::here(0);
    while batch < (N / SUMS) as u32 / STASHED {
        for j in 0..N / SUMS {
            if j as u32 / STASHED == batch {
                // SAFETY: a thread's own part of the block's shared memory.
                unsafe { ptx::st_shared_v4_b32(s_stash(j as u32 % STASHED), four(j).map(f32::to_bits)) };
            }
        }
        let mut i = ptx::here(0);
        while i < STASHED {
            // SAFETY: written above, by the thread itself.
            let four = unsafe { ptx::ld_shared_v4_b32(s_stash(i)) };
            store_eight_tokens(batch * STASHED + i, four.map(f32::from_bits));
            i += 1;
        }
        batch += 1;
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

/// What is added to a thread's sums of [`store_sixteen`], of the first or the second eight columns. Read early, it hides behind products.
///
/// # Safety
/// As [`store`]; there is a residual.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn residual_of(p: &Output, row: u32, token: u32, eight: usize) -> u32 {
    let to = match p.silu {
        false => Eight { col: row + eight as u32 * 8, cols: p.n, token },
        true => Eight { col: row / 2, cols: p.n / 2, token },
    };
    let (index, inside) = to.place(p);
    // SAFETY: inside of `[m, columns of out]`, at an even column.
    if inside { unsafe { ptx::ld_global_b32(p.residual + index * 2) } } else { 0 }
}

/// Sixteen rows of `w`, the first of them `row`, by eight tokens; `residual(eight)` is [`residual_of`] them, asked for where there is one.
///
/// # Safety
/// As [`store`].
#[inline(always)]
pub(crate) unsafe fn store_sixteen<E: Element, const SCALED: bool>(
    p: &Output,
    row: u32,
    token: u32,
    sums: [f32; 4],
    residual: impl Fn(usize) -> u32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let [upper, lower] = [[sums[0], sums[1]], [sums[2], sums[3]]];
        let lane = ptx::here(ptx::lane());
        let upper = scale_and_bias::<SCALED>(p, row + lane / 4, token, upper);
        let lower = scale_and_bias::<SCALED>(p, row + 8 + lane / 4, token, lower);
        if p.silu {
            let values = [silu(upper[0]) * lower[0], silu(upper[1]) * lower[1]];
            store_eight::<E>(p, Eight { col: row / 2, cols: p.n / 2, token }, values, || residual(0));
        } else {
            store_eight::<E>(p, Eight { col: row, cols: p.n, token }, upper, || residual(0));
            store_eight::<E>(p, Eight { col: row + 8, cols: p.n, token }, lower, || residual(1));
        }
    }
}

/// Of a row and the thread's two of eight tokens.
///
/// # Safety
/// As [`store`].
#[inline(always)]
unsafe fn scale_and_bias<const SCALED: bool>(
    p: &Output,
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

impl Eight {
    /// Where the thread's two columns of token `lane / 4` are, and whether they are inside.
    #[inline(always)]
    fn place(self, p: &Output) -> (u64, bool) {
        let lane = ptx::here(ptx::lane());
        let (token, col) = (self.token + lane / 4, self.col + lane % 4 * 2);
        (u64::from(token) * u64::from(p.out_stride) + u64::from(col), token < p.m && col < self.cols)
    }
}

/// Stores a thread's two tokens of column `lane / 4` by way of its neighbours: two columns of token `lane / 4`, to which `residual` is added.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
unsafe fn store_eight<E: Element>(p: &Output, to: Eight, mut values: [f32; 2], residual: impl Fn() -> u32) {
    let lane = ptx::here(ptx::lane());
    let (index, inside) = to.place(p);
    // SAFETY: the caller's promise; `inside` bounds the index, which is even.
    unsafe {
        if p.residual != 0 {
            // Asked for in here: tested for apart, the compiler would have lanes with and without an element go separate ways to what the whole warp must do together.
            let pair = E::unpack(ptx::movmatrix_trans(residual()));
            values = [values[0] + pair[0], values[1] + pair[1]];
        }
        if p.out_f32 {
            let (token, col) = (to.token + lane % 4 * 2, to.col + lane / 4);
            for i in 0..2 {
                if token + (i as u32) < p.m && col < to.cols {
                    let index = u64::from(token + i as u32) * u64::from(p.out_stride) + u64::from(col);
                    ptx::st_global_b32(p.out + index * 4, values[i].to_bits());
                }
            }
        } else {
            let pair = ptx::movmatrix_trans(E::pack(values[0], values[1]));
            if inside {
                if p.mail != 0 {
                    let index = u64::from(to.token + lane / 4) * u64::from(to.cols)
                        + u64::from(to.col + lane % 4 * 2);
                    ptx::st_relaxed_gpu_u32(p.mail + index * 2, !pair);
                }
                ptx::st_global_b32(p.out + index * 2, pair);
            }
        }
    }
}
