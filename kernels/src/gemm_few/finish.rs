//! From a split's sums to the output.

use super::{
    STASHED, Tile,
    exchange::{NOTHING, SUMS, Scratch, collect, four, has_joined, load, meet, stashed, wait_for_all},
    item::{Item, Place, Splits},
    layout,
};
use crate::{abi::GemmFew, element::Element, ptx, silu_mul::kernel::silu};

/// Blocks of a tile that join what has come by mail, the first ones: others are gone, and the next launch's begin. H200, 2026-12-01, 8 and 16 rows: where `k` has eight
/// splits four are up to 8% faster than two or eight, and 5% to 20% than one.
const JOINERS: u32 = 4;

/// Stores `N` sums a thread of a block that has all of `k`. Others leave them, and after their last split of the tile join a part of all that were left.
///
/// # Safety
/// All consumers call it with what they computed at `place`, after the block's places before.
#[inline(always)]
pub(super) unsafe fn finish<E: Element, const N: usize, const SCALED: bool>(
    p: &GemmFew,
    plan: Tile,
    place: Place,
    sums: &[f32; N],
) {
    // Found again rather than kept in registers through the products.
    let Place { tile, split } = Place { tile: ptx::here(place.tile), split: ptx::here(place.split) };
    let item = Item::of(p, plan, Place { tile, split });
    let own = Splits::own(p, plan);
    let mut sums = *sums;
    // SAFETY: the caller's promise.
    unsafe {
        let tokens = p.m - item.token_tile * plan.tokens;
        let scratch = Scratch {
            g_sums: p.partials,
            plan,
            first: tile * p.splits,
            count: p.splits.div_ceil(own.together),
            all: (N / SUMS) as u32,
            eights: tokens.min(plan.tokens).div_ceil(8),
        };
        if plan.is_persistent() && own.together == 2 {
            if !split.is_multiple_of(2) {
                scratch.add_kept(split / 2, &mut sums);
            } else if split + 1 < p.splits {
                scratch.keep(split / 2, &sums);
                return;
            }
        }
        if scratch.count == 1 {
            store::<E, N, SCALED>(p, plan, item, &sums);
            return;
        }
        scratch.leave(split / own.together, &sums);
        if split + 1 < own.end {
            return;
        }
        // As much at a time as a thread has registers for: each time that a warp waits for sums is a trip to the L2.
        if plan.is_mailed() {
            join::<E, 1, 8, true, SCALED>(p, item, scratch, 1);
            return;
        }
        let g_counter = p.counters + u64::from(tile) * 4;
        wait_for_all(plan, g_counter);
        match (N / SUMS, plan.is_persistent()) {
            (_, true) => join::<E, 4, 4, false, SCALED>(p, item, scratch, own.together),
            _ if p.splits == 2 => join::<E, 4, 2, false, SCALED>(p, item, scratch, 1),
            (16, _) => join::<E, 2, 8, false, SCALED>(p, item, scratch, 1),
            _ => join::<E, 1, 8, false, SCALED>(p, item, scratch, 1),
        }
        has_joined(g_counter);
    }
}

/// Adds what blocks left, splits in pairs and pairs in ascending order, and stores: the block's part of the tile, `EIGHTS` eights of tokens by a warp's 16 rows at a time, of
/// which it has so many splits or pairs on their way at once.
///
/// # Safety
/// As [`finish`], once the block has left its own sums and all blocks of the tile run, or have left theirs, too.
#[inline(always)]
pub(super) unsafe fn join<
    E: Element,
    const EIGHTS: usize,
    const AHEAD: usize,
    const MAIL: bool,
    const SCALED: bool,
>(
    p: &GemmFew,
    item: Item,
    scratch: Scratch,
    together: u32,
) {
    let plan = scratch.plan;
    let to = Output::of(p);
    // Of all rows of the block the first eights of tokens, then the next.
    let parts = scratch.eights.div_ceil(EIGHTS as u32) * plan.consumers();
    let joiners = if MAIL { ptx::nctaid_x().min(JOINERS) } else { ptx::nctaid_x() };
    if ptx::ctaid_x() >= joiners {
        return;
    }
    let (first, end) = layout::split_steps(parts, joiners, ptx::ctaid_x());
    let mut part = first + ptx::here(ptx::tid_x()) / 32;
    while part < end {
        let (warp, eight) = (part % plan.consumers(), part / plan.consumers() * EIGHTS as u32);
        let (row, token) = (item.row_tile * plan.rows + warp * 16, item.token_tile * plan.tokens + eight * 8);
        // On its way with the sums.
        let mut residual = [[0; 2]; EIGHTS];
        if to.residual != 0 {
            for eight in 0..EIGHTS {
                for half in 0..2 {
                    // SAFETY: as below.
                    residual[eight][half] = unsafe { residual_of(&to, row, token + eight as u32 * 8, half) };
                }
            }
        }
        let mut sums = [[NOTHING; SUMS]; EIGHTS];
        let mut index = 0;
        while index < scratch.count {
            let mut words = [[[0; SUMS]; AHEAD]; EIGHTS];
            // SAFETY: places of this tile; those of mail blocks write by relaxed stores, this thread last.
            unsafe {
                if MAIL {
                    collect(scratch, index, eight, warp, &mut words);
                } else {
                    load(scratch, index, eight, warp, &mut words);
                }
            }
            for j in 0..EIGHTS {
                for i in 0..AHEAD / 2 {
                    let [a, b] = [2 * i, 2 * i + 1].map(|i| words[j][i].map(f32::from_bits));
                    sums[j] = match together {
                        1 => [0, 1, 2, 3].map(|k| sums[j][k] + (a[k] + b[k])),
                        _ => [0, 1, 2, 3].map(|k| sums[j][k] + a[k] + b[k]),
                    };
                }
            }
            index += AHEAD as u32;
        }
        // SAFETY: rows that aren't there are neither read nor written; warps stay whole.
        unsafe {
            store_eights::<E, EIGHTS, SCALED>(&to, row, token, sums, |eight, half| residual[eight][half]);
        }
        part += plan.consumers();
    }
}

/// The eight of the tile's tokens that a thread's `i`th four sums are of.
#[inline(always)]
fn eight_of(plan: Tile, i: u32) -> u32 {
    i * plan.abreast + plan.side(ptx::here(ptx::tid_x()))
}

/// As [`finish`], of a block that has both splits of a tile, `N` sums of them a thread: of every other eight of tokens.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn finish_pair<E: Element, const N: usize>(
    p: &GemmFew,
    plan: Tile,
    place: Place,
    sums: &[f32; N],
) {
    let item = Item::of(p, plan, Place { tile: ptx::here(place.tile), split: ptx::here(place.split) });
    // SAFETY: the caller's promise.
    unsafe {
        match is_in_chunks(p) {
            true => store_staged::<E, N>(p, plan, item, sums),
            false => store_in_turns::<E, N, 1, false>(p, plan, item, sums),
        }
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
        if plan.is_staged() && is_in_chunks(p) {
            store_staged::<E, N>(p, plan, item, sums);
            return;
        }
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
    let row = item.row_tile * plan.rows + ptx::here(ptx::tid_x()) / 32 % plan.row_warps() * 16;
    let to = Output::of(p);
    let first_token = item.token_tile * plan.tokens;
    let store = |token: u32, fours: [[f32; SUMS]; AT_ONCE]| {
        if token < p.m {
            // SAFETY: rows and tokens that aren't there are neither read nor written; warps stay whole.
            unsafe {
                store_eights::<E, AT_ONCE, SCALED>(&to, row, token, fours, |eight, half| {
                    residual_of(&to, row, token + eight as u32 * 8, half)
                });
            }
        }
    };
    if plan.stashed() == 0 || plan.abreast == 2 {
        for turn in 0..N / SUMS / AT_ONCE {
            let token = first_token + eight_of(plan, (turn * AT_ONCE) as u32) * 8;
            store(token, core::array::from_fn(|i| four(sums, turn * AT_ONCE + i)));
        }
        return;
    }
    // Registers have no index that a loop could count, and of many tokens the instructions of one after the other have to be fetched as they
    // are executed, which takes longer than they do. By way of memory there is one loop; as many eights a turn as hide what each waits for.
    let mut turn = ptx::here(0);
    while turn < (N / SUMS / AT_ONCE) as u32 {
        for j in 0..N / SUMS {
            if (j / AT_ONCE) as u32 == turn {
                // SAFETY: a thread's own part of the block's shared memory.
                unsafe { ptx::st_shared_v4_b32(stashed(plan, j % AT_ONCE), four(sums, j).map(f32::to_bits)) };
            }
        }
        let mut fours = [[0.0; SUMS]; AT_ONCE];
        for i in 0..AT_ONCE {
            // SAFETY: written above, by the thread itself.
            fours[i] = unsafe { ptx::ld_shared_v4_b32(stashed(plan, i)) }.map(f32::from_bits);
        }
        store(first_token + turn * AT_ONCE as u32 * 8, fours);
        turn += 1;
    }
}

/// Whether the output is made of chunks of 16 bytes to which nothing is added: [`store_staged`]'s.
#[inline(always)]
fn is_in_chunks(p: &GemmFew) -> bool {
    p.residual == 0 && p.out_f32 == 0 && p.out.is_multiple_of(16)
}

/// Eights of a turn of [`store_staged`].
const STAGED: usize = 4;

/// As [`store`], 16 bytes of a token's row of the output a thread: a warpgroup's 64 rows of `w` are a line of it, or with SiLU half a line. They are made in
/// shared memory, a chunk of 16 bytes by the lanes that have its rows of `w`. Without a residual, which is added in f32.
///
/// # Safety
/// As there; no sums of bytes. All consumers call it.
#[inline(always)]
unsafe fn store_staged<E: Element, const N: usize>(p: &GemmFew, plan: Tile, item: Item, sums: &[f32; N]) {
    let thread = ptx::here(ptx::tid_x());
    let (warp, lane) = (thread / 32, thread % 32);
    let row = item.row_tile * plan.rows + warp % plan.row_warps() * 16;
    let s_group = ptx::shared_base() + plan.stash() + warp / 4 * const { 64 * (N / SUMS) as u32 * 16 };
    // Chunks of a token's row are turned, so that those of eight tokens that lanes write together, and those of a row, fall on different banks.
    let silu_mul = ptx::here(p.silu) != 0;
    let place = |token: u32, chunk: u32| match silu_mul {
        false => s_group + (token * 8 + (chunk ^ (token % 8))) * 16,
        true => s_group + (token * 4 + (chunk ^ (token / 2 % 4))) * 16,
    };
    // SAFETY: barriers stand between what the stash held and this, between these writes and their readers, and between those and what is kept there next. Rows
    // and tokens that aren't there are neither read nor written; chunks are whole: columns of the output are a multiple of eight.
    unsafe {
        let mut bias = [0; 2];
        if p.bias != 0 {
            bias = [0, 8].map(|i| {
                let row = row + lane / 4 + i;
                ptx::ld_global_b32_if(row < p.n, p.bias + u64::from(row) * 4)
            });
        }
        meet(plan);
        for turn in 0..N / SUMS / STAGED {
            let mut fours: [[f32; SUMS]; STAGED] = core::array::from_fn(|i| four(sums, turn * STAGED + i));
            if p.bias != 0 {
                for i in 0..STAGED * SUMS {
                    fours[i / SUMS][i % SUMS] += f32::from_bits(bias[i % SUMS / 2]);
                }
            }
            let eight = (turn * STAGED) as u32;
            if !silu_mul {
                for pair in 0..STAGED / 2 {
                    let [[a, b, c, d], [e, f, g, h]] = [fours[2 * pair], fours[2 * pair + 1]];
                    let words = [E::pack(a, b), E::pack(c, d), E::pack(e, f), E::pack(g, h)];
                    let token = (eight + 2 * pair as u32 + lane / 16) * 8 + lane % 8;
                    ptx::stmatrix_x4_trans(place(token, warp % 4 * 2 + lane / 8 % 2), words);
                }
            } else {
                let words = fours.map(|[a, b, c, d]| E::pack(silu(a) * c, silu(b) * d));
                ptx::stmatrix_x4_trans(place((eight + lane / 8) * 8 + lane % 8, warp % 4), words);
            }
        }
        meet(plan);
        let of_group = thread % 128;
        let (chunks, cols, col) = match silu_mul {
            false => (8, p.n, row / 64 * 64),
            true => (4, p.n / 2, row / 64 * 32),
        };
        let col = col + of_group % chunks * 8;
        let mut of_token = of_group / chunks;
        while of_token < const { (N / SUMS * 8) as u32 } {
            // All that a thread has at once, or half of it.
            let mut words = [[0; 4]; STAGED];
            for i in 0..STAGED {
                let token = of_token + i as u32 * (128 / chunks);
                if token < const { (N / SUMS * 8) as u32 } {
                    words[i] = ptx::ld_shared_v4_b32(place(token, of_group % chunks));
                }
            }
            for i in 0..STAGED {
                let of_thread = of_token + i as u32 * (128 / chunks);
                let of_tile = eight_of(plan, of_thread / 8) * 8 + of_thread % 8;
                let token = item.token_tile * plan.tokens + of_tile;
                if of_thread < const { (N / SUMS * 8) as u32 } && token < p.m && col < cols {
                    let index = u64::from(token) * u64::from(p.out_stride) + u64::from(col);
                    ptx::st_global_v4_b32(p.out + index * 2, words[i]);
                }
            }
            of_token += STAGED as u32 * (128 / chunks);
        }
        if plan.is_persistent() {
            meet(plan);
        }
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
