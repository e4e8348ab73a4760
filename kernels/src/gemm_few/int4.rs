//! Products of 4-bit weights, converted in registers, a warpgroup at a time: for many tokens.
//!
//! Of up to 64 tokens four warpgroups share the tensor cores, which hides what each does beside its products. Of more there are two: while the products
//! of a part run, the next part is converted.
//!
//! ```text
//! products   | part 0 | part 1     |          | part 0 | part 1 ...        of a group of 128; all of them are waited for at its end
//! the rest      convert 1   convert 0    total    convert 1 ...
//! ```

use super::{
    LINE_BYTES, Tile,
    item::Item,
    layout,
    nibbles::{Nibbles, convert, whole},
    piece_stride,
};
use crate::{
    abi::GemmFew,
    ptx::{self, Wgmma},
    tile::Ring,
};

/// Steps of 16 of `k` in a tile.
const STEPS: usize = (layout::TILE_K / 16) as usize;

/// How scales and zero points are stored.
#[derive(Clone, Copy)]
pub(crate) struct Stored {
    /// Scales as f16 rather than bf16.
    pub scales_f16: bool,
    /// Whether there are zero points.
    pub zeros: bool,
}

/// Scales and zero points of a thread's two rows.
pub(super) struct Meta {
    pub scales: [f32; 2],
    pub minus_zeros: [u32; 2],
}

/// Those of rows `row` and `row + 8` of a piece.
///
/// # Safety
/// The piece at `s_piece` has landed.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) unsafe fn meta<E: Nibbles, const GROUPS: usize>(
    stored: Stored,
    s_piece: u32,
    group: u32,
    row: u32,
) -> Meta {
    let mut meta = Meta { scales: [0.0; 2], minus_zeros: [E::MINUS_EIGHT; 2] };
    for i in 0..2 {
        let row = row + i as u32 * 8;
        // SAFETY: the caller's promise.
        unsafe {
            let bits = ptx::ld_shared_b16(s_piece + layout::scale(group, row));
            meta.scales[i] = match stored.scales_f16 {
                false => ptx::bf16_lo(u32::from(bits)),
                true => ptx::f16_to_f32(bits),
            };
            if stored.zeros {
                let bits = ptx::ld_shared_b16(s_piece + layout::zero(GROUPS as u32, group, row));
                meta.minus_zeros[i] = E::minus_zero(bits);
            }
        }
    }
    meta
}

/// As [`super::dense::multiply`], of tiles of `GROUPS` groups.
///
/// # Safety
/// As there; threads of the block's first warpgroups.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) unsafe fn multiply<E: Nibbles, const R: usize, const GROUPS: usize>(
    p: &GemmFew,
    plan: Tile,
    item: Item,
    ring: &mut Ring,
) -> [f32; R]
where
    [f32; R]: Wgmma,
{
    let mut total = [0.0f32; R];
    // A split beside this one may be longer, by one stage, which nobody fills again.
    for _ in item.first..item.end {
        // SAFETY: the whole warpgroup takes the same branches. A stage is read once it has landed, and given back after its products. Operands
        // stay as they are until the products that read them have been waited for.
        unsafe {
            let s_stage = landed(plan, *ring);
            // A loop that isn't unrolled where there are four: addresses of all of them would take too many registers.
            let mut group = if GROUPS < 4 { 0 } else { ptx::here(0) as usize };
            while group < GROUPS {
                let meta = meta_of_group::<E, GROUPS>(p, plan, s_stage, group);
                let of_group = group * (STEPS / GROUPS);
                let mut acc = [0.0f32; R];
                let mut words: [u32; 2] = load_words::<_, GROUPS>(plan, s_stage, of_group);
                for part in 0..STEPS / GROUPS / 2 {
                    let operands = words.map(|word| convert::<E>(word, meta.minus_zeros));
                    if (part + 1) * 2 < STEPS / GROUPS {
                        words = load_words::<_, GROUPS>(plan, s_stage, of_group + (part + 1) * 2);
                    }
                    start::<E, _, _>(plan, s_stage, of_group + part * 2, part == 0, &operands, &mut acc);
                    acc.wait::<0>();
                }
                for r in 0..R {
                    total[r] = ptx::fma(acc[r], meta.scales[r / 2 % 2], total[r]);
                }
                group += 1;
            }
            give_back(plan, *ring);
        }
        *ring = ring.next();
    }
    whole::<E, R>(total)
}

/// As [`multiply`], of so many tokens that two warpgroups are all there is room for, in parts of `AT_ONCE` steps. Of at most two groups.
///
/// # Safety
/// As there.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) unsafe fn multiply_ahead<E: Nibbles, const R: usize, const GROUPS: usize, const AT_ONCE: usize>(
    p: &GemmFew,
    plan: Tile,
    item: Item,
    ring: &mut Ring,
) -> [f32; R]
where
    [f32; R]: Wgmma,
{
    let (parts, parts_of_group) = const { (STEPS / AT_ONCE, STEPS / AT_ONCE / GROUPS) };
    let mut total = [0.0f32; R];
    if item.first == item.end {
        return total;
    }
    // SAFETY: the whole warpgroup takes the same branches. A stage is read once it has landed, and given back after its products. Operands stay as
    // they are until the products that read them have been waited for.
    unsafe {
        let mut s_stage = landed(plan, *ring);
        let mut meta = meta_of_group::<E, GROUPS>(p, plan, s_stage, 0);
        let words: [u32; AT_ONCE] = load_words::<_, GROUPS>(plan, s_stage, 0);
        let mut operands = [words.map(|word| convert::<E>(word, meta.minus_zeros)), [[0; 4]; AT_ONCE]];
        let mut words: [u32; AT_ONCE] = load_words::<_, GROUPS>(plan, s_stage, AT_ONCE);
        let mut left = item.end - item.first;
        while left > 0 {
            left -= 1;
            let mut s_next = s_stage;
            for group in 0..GROUPS {
                let scales = meta.scales;
                let mut acc = [0.0f32; R];
                for position in 0..parts_of_group {
                    let part = group * parts_of_group + position;
                    start::<E, _, _>(
                        plan,
                        s_stage,
                        part * AT_ONCE,
                        position == 0,
                        &operands[part % 2],
                        &mut acc,
                    );
                    if part + 2 == parts {
                        // Behind the last stage that stage again, of which nothing is used.
                        s_next = landed(plan, if left > 0 { ring.next() } else { *ring });
                    }
                    if position > 0 {
                        ptx::wgmma_wait_older::<1>();
                    }
                    if part + 1 == parts {
                        meta = meta_of_group::<E, GROUPS>(p, plan, s_next, 0);
                    } else if position + 1 == parts_of_group {
                        meta = meta_of_group::<E, GROUPS>(p, plan, s_stage, group + 1);
                    }
                    // Here: the compiler would else convert where the operands are used, when the products have ended.
                    operands[1 - part % 2] =
                        words.map(|word| convert::<E>(word, meta.minus_zeros).map(ptx::here));
                    words = if part + 2 < parts {
                        load_words::<_, GROUPS>(plan, s_stage, (part + 2) * AT_ONCE)
                    } else {
                        load_words::<_, GROUPS>(plan, s_next, (part + 2 - parts) * AT_ONCE)
                    };
                }
                // It has landed; the loop that waits keeps what is above it from sinking below the wait for the products.
                landed(plan, if left > 0 { ring.next() } else { *ring });
                acc.wait::<0>();
                for r in 0..R {
                    total[r] = ptx::fma(acc[r], scales[r / 2 % 2], total[r]);
                }
            }
            give_back(plan, *ring);
            *ring = ring.next();
            s_stage = s_next;
        }
    }
    whole::<E, R>(total)
}

/// Waits for the stage at `ring`; its address.
///
/// # Safety
/// The barriers are initialised.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn landed(plan: Tile, ring: Ring) -> u32 {
    let (base, stage) = (ptx::shared_base(), ring.stage(plan.stages));
    // SAFETY: the caller's promise.
    unsafe { ptx::mbarrier_wait(base + plan.full() + stage * 8, ring.parity(plan.stages)) };
    base + stage * plan.stage_bytes()
}

/// Gives the stage at `ring` back.
///
/// # Safety
/// The whole warp calls it; it has read all that it reads of the stage, and waited for the products that read it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn give_back(plan: Tile, ring: Ring) {
    // SAFETY: the caller's promise. Lanes have read their weights themselves; waiting for products orders nothing among them.
    unsafe {
        ptx::bar_warp_sync();
        if ptx::lane() == 0 {
            ptx::mbarrier_arrive(ptx::shared_base() + plan.empty() + ring.stage(plan.stages) * 8);
        }
    }
}

/// [`meta`] of the thread's rows in a group of the stage.
///
/// # Safety
/// The stage has landed.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn meta_of_group<E: Nibbles, const GROUPS: usize>(
    p: &GemmFew,
    plan: Tile,
    s_stage: u32,
    group: usize,
) -> Meta {
    // Places are found anew each time: kept, they would take more registers than there are.
    let thread = ptx::here(ptx::tid_x());
    let s_piece = s_stage + plan.a_bytes() + thread / 32 * const { piece_stride(GROUPS as u32) };
    let stored = Stored { scales_f16: p.scales_f16 != 0, zeros: p.zeros != 0 };
    // SAFETY: the caller's promise.
    unsafe { meta::<E, GROUPS>(stored, s_piece, group as u32, thread % 32 / 4) }
}

/// The thread's words of `COUNT` steps, two or four, from step `first` of the stage on.
///
/// # Safety
/// The stage has landed.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn load_words<const COUNT: usize, const GROUPS: usize>(
    plan: Tile,
    s_stage: u32,
    first: usize,
) -> [u32; COUNT] {
    const { assert!(COUNT == 2 || COUNT == 4) }
    let thread = ptx::here(ptx::tid_x());
    let s_piece = s_stage + plan.a_bytes() + thread / 32 * const { piece_stride(GROUPS as u32) };
    let s_words = s_piece + first as u32 / 4 * layout::HALF_BYTES + thread % 32 * 16 + (first % 4 * 4) as u32;
    let mut words = [0; COUNT];
    // SAFETY: the caller's promise; the words are in the tile.
    unsafe {
        if COUNT == 2 {
            words.copy_from_slice(&ptx::ld_shared_v2_b32(s_words));
        } else {
            words.copy_from_slice(&ptx::ld_shared_v4_b32(s_words));
        }
    }
    words
}

/// Starts the products of `COUNT` steps from step `first` of the stage on.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn start<E: Nibbles, const R: usize, const COUNT: usize>(
    plan: Tile,
    s_stage: u32,
    first: usize,
    is_fresh: bool,
    operands: &[[u32; 4]; COUNT],
    acc: &mut [f32; R],
) where
    [f32; R]: Wgmma,
{
    // Made anew for each part: kept, the steps' descriptors would take two registers each.
    let s_a = s_stage + plan.side(ptx::here(ptx::tid_x())) * plan.split_a_bytes();
    let a = ptx::descriptor(ptx::here(s_a), 0);
    // SAFETY: the caller's promises.
    unsafe {
        ptx::wgmma_fence();
        for i in 0..COUNT {
            let step = (first + i) as u32;
            let a = ptx::along(a, step / 4 * plan.tokens * LINE_BYTES + step % 4 * 32);
            if is_fresh && i == 0 {
                E::multiply::<_, false>(acc, &operands[i], a);
            } else {
                E::multiply::<_, true>(acc, &operands[i], a);
            }
        }
        ptx::wgmma_commit();
    }
}
