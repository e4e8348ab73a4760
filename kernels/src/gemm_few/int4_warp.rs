//! Products of 4-bit weights, converted in registers, a warp at a time: for few tokens.

use super::{
    LINE_BYTES, Tile,
    int4::{convert, meta},
    item::Item,
};
use crate::{abi::GemmFew, ptx, tile::Ring};

/// Pairs of steps of 16 of `k` in a stage: what one load of matrices brings.
const PAIRS: usize = 4;

/// The warp's 16 rows of `w` times the tokens, over the item's stages. `N` sums, which lie as those of [`super::int4::multiply`].
///
/// # Safety
/// All consumers call it; the barriers are initialised.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) unsafe fn multiply<const N: usize, const GROUPS: usize>(
    p: &GemmFew,
    plan: Tile,
    item: Item,
) -> [f32; N] {
    let base = ptx::shared_base();
    let thread = ptx::here(ptx::tid_x());
    let (warp, lane) = (thread / 32, thread % 32);
    // The thread's words of the first half of `k`, and its place in the matrices that are loaded together.
    let words_at = (warp / 4 * 256 + warp % 4 * 32 + lane) * 16;
    let (token, chunk) = (lane % 8, lane / 8);
    let row = warp * 16 + lane / 4;
    let mut ring = Ring::new();
    let mut total = [0.0f32; N];
    for _ in item.first..item.end {
        let stage = ring.stage(plan.stages);
        let s_a = base + stage * plan.stage_bytes();
        let s_w = s_a + plan.a_bytes();
        // SAFETY: the whole warp takes the same branches; the stage has landed, and is given back once it has been read.
        unsafe {
            ptx::mbarrier_wait(base + plan.full() + stage * 8, ring.parity(plan.stages));
            let mut acc = [0.0f32; N];
            let mut meta_of_group = meta::<GROUPS>(p, plan, s_w, 0, row);
            let mut words = [0u32; 4];
            for pair in 0..PAIRS {
                if pair % 2 == 0 {
                    words = ptx::ld_shared_v4_b32(s_w + words_at + pair as u32 / 2 * 2048);
                }
                let at = pair % 2 * 2;
                let a = [0, 1].map(|step: usize| convert(words[at + step], meta_of_group.minus_zeros));
                for eight in 0..N / 4 {
                    let line = pair as u32 / 2 * plan.tokens + eight as u32 * 8 + token;
                    let b =
                        ptx::ldmatrix_x4(s_a + line * LINE_BYTES + ((at as u32 * 2 + chunk) ^ token) * 16);
                    let at = eight * 4;
                    let mut c = [acc[at], acc[at + 1], acc[at + 2], acc[at + 3]];
                    c = ptx::mma_m16n8k16_bf16(a[0], [b[0], b[1]], c);
                    c = ptx::mma_m16n8k16_bf16(a[1], [b[2], b[3]], c);
                    [acc[at], acc[at + 1], acc[at + 2], acc[at + 3]] = c;
                }
                if (pair + 1) % (PAIRS / GROUPS) == 0 {
                    for r in 0..N {
                        total[r] = ptx::fma(acc[r], meta_of_group.scales[r / 2 % 2], total[r]);
                        acc[r] = 0.0;
                    }
                    let group = ((pair + 1) * GROUPS / PAIRS) as u32;
                    if group < GROUPS as u32 {
                        meta_of_group = meta::<GROUPS>(p, plan, s_w, group, row);
                    }
                }
            }
            ptx::bar_warp_sync();
            if lane == 0 {
                ptx::mbarrier_arrive(base + plan.empty() + stage * 8);
            }
        }
        ring = ring.next();
    }
    total
}
