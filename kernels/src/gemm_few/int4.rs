//! Products of 4-bit weights, converted in registers, a warpgroup at a time: for many tokens.

use super::{LINE_BYTES, Tile, item::Item, layout};
use crate::{
    abi::GemmFew,
    ptx::{self, Wgmma},
    tile::Ring,
};

/// A bf16 pair of 128: with a nibble in its low bits, 128 plus that.
const MAGIC: u32 = 0x4300_4300;
/// The pair of -(128 + 8).
const MINUS_ZERO: u32 = 0xc308_c308;
const ONES: u32 = 0x3f80_3f80;
/// The nibbles of a word that a step of four bits brings to the low ends of its halves.
const NIBBLES: u32 = 0x000f_000f;
/// Steps of 16 of `k` in a tile.
pub(super) const STEPS: usize = (layout::TILE_K / 16) as usize;

/// A thread's eight nibbles of a step as the product's operand, less the zero points of its two rows: integers, exact in bf16.
#[inline(always)]
pub(super) fn convert(word: u32, minus_zeros: [u32; 2]) -> [u32; 4] {
    let mut a = [0; 4];
    for i in 0..4 {
        let pair = ptx::and_or::<NIBBLES>(word >> (4 * i), MAGIC);
        a[i] = ptx::fma_bf16x2(pair, ONES, minus_zeros[i % 2]);
    }
    a
}

/// Scales and zero points of a thread's two rows.
pub(super) struct Meta {
    pub scales: [f32; 2],
    pub minus_zeros: [u32; 2],
}

/// # Safety
/// The tile at `s_w` has landed; `row` and `row + 8` are rows of it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) unsafe fn meta<const GROUPS: usize>(
    p: &GemmFew,
    plan: Tile,
    s_w: u32,
    group: u32,
    row: u32,
) -> Meta {
    let mut meta = Meta { scales: [0.0; 2], minus_zeros: [MINUS_ZERO; 2] };
    for i in 0..2 {
        let row = row + i as u32 * 8;
        // SAFETY: the caller's promise.
        unsafe {
            let bits = ptx::ld_shared_b16(s_w + layout::scale(plan.rows, group, row));
            meta.scales[i] = match p.scales_f16 {
                0 => ptx::bf16_lo(u32::from(bits)),
                _ => ptx::f16_to_f32(bits),
            };
            if p.zeros != 0 {
                let bits =
                    u32::from(ptx::ld_shared_b16(s_w + layout::zero(plan.rows, GROUPS as u32, group, row)));
                meta.minus_zeros[i] = bits | bits << 16;
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
pub(super) unsafe fn multiply<const R: usize, const GROUPS: usize>(
    p: &GemmFew,
    plan: Tile,
    item: Item,
    ring: &mut Ring,
) -> [f32; R]
where
    [f32; R]: Wgmma,
{
    let base = ptx::shared_base();
    let mut total = [0.0f32; R];
    for _ in item.first..item.end {
        let stage = ring.stage(plan.stages);
        let s_a = base + stage * plan.stage_bytes();
        let s_w = s_a + plan.a_bytes();
        // SAFETY: the whole warpgroup takes the same branches; the stage has landed, and is given back after its products.
        unsafe {
            ptx::mbarrier_wait(base + plan.full() + stage * 8, ring.parity(plan.stages));
            // A loop that isn't unrolled where there are several: addresses of all of them would take too many registers.
            let mut group = if GROUPS < 4 { 0 } else { ptx::here(0) };
            while group < GROUPS as u32 {
                // Places are found anew each time: kept for all groups, they would take more registers than there are.
                let thread = ptx::here(ptx::tid_x());
                let meta = meta::<GROUPS>(p, plan, s_w, group, thread / 32 * 16 + thread % 32 / 4);
                let place = thread / 128 * 256 + thread % 128;
                let acc = products::<R, GROUPS>(plan, s_a, s_w, group, &meta, place);
                for r in 0..R {
                    total[r] = ptx::fma(acc[r], meta.scales[r / 2 % 2], total[r]);
                }
                group += 1;
            }
            // Lanes have read their weights themselves; waiting for products orders nothing among them.
            ptx::bar_warp_sync();
            if ptx::lane() == 0 {
                ptx::mbarrier_arrive(base + plan.empty() + stage * 8);
            }
        }
        *ring = ring.next();
    }
    total
}

/// One group's products, waited for.
///
/// # Safety
/// As [`multiply`]; `place` is the thread's among the threads of the first halves of `k`.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn products<const R: usize, const GROUPS: usize>(
    plan: Tile,
    s_a: u32,
    s_w: u32,
    group: u32,
    meta: &Meta,
    place: u32,
) -> [f32; R]
where
    [f32; R]: Wgmma,
{
    let steps = STEPS / GROUPS;
    // Made anew for each group: kept, the steps' descriptors would take two registers each.
    let a = ptx::descriptor(ptx::here(s_a), 0);
    let mut acc = [0.0f32; R];
    // A word a step and thread. As many operands at a time as registers are left for.
    let at_once = if GROUPS > 1 || R == 32 { 2 } else { 4 };
    for part in 0..steps / at_once {
        let first = group * steps as u32 + (part * at_once) as u32;
        let s_words = s_w + (place + first / 4 * 128) * 16 + first % 4 * 4;
        // SAFETY: the caller's promises; the operands stay as they are until the products that read them have been waited for.
        unsafe {
            let words = match at_once {
                2 => {
                    let words = ptx::ld_shared_v2_b32(s_words);
                    [words[0], words[1], 0, 0]
                }
                _ => ptx::ld_shared_v4_b32(s_words),
            };
            let mut operands = [[0u32; 4]; 4];
            for i in 0..at_once {
                operands[i] = convert(words[i], meta.minus_zeros);
            }
            ptx::wgmma_fence();
            for i in 0..at_once {
                let step = first + i as u32;
                let along = u64::from((step / 4 * plan.tokens * LINE_BYTES + step % 4 * 32) >> 4);
                if part == 0 && i == 0 {
                    acc.rs::<false, false>(&operands[i], a + along);
                } else {
                    acc.rs::<false, true>(&operands[i], a + along);
                }
            }
            ptx::wgmma_commit();
            acc.wait::<0>();
        }
    }
    acc
}
