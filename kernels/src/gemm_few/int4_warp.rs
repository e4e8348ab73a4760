//! Products of 4-bit weights, converted in registers, a warp at a time: for few tokens.

use super::{
    LINE_BYTES, STAGES, Tile,
    int4::{STEPS, convert, meta},
    item::Item,
};
use crate::{abi::GemmFew, ptx, tile::Ring};

/// As [`super::int4::multiply`].
///
/// # Safety
/// As there.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) unsafe fn multiply<const R: usize, const GROUPS: usize>(
    p: &GemmFew,
    plan: Tile,
    item: Item,
    ring: &mut Ring,
) -> [f32; R] {
    let base = ptx::shared_base();
    let mut total = [0.0f32; R];
    for _ in item.first..item.end {
        let stage = ring.stage(STAGES);
        let s_a = base + stage * plan.stage_bytes();
        let s_w = s_a + plan.a_bytes();
        // Found anew each time: kept, they would take registers that few blocks leave.
        let thread = ptx::here(ptx::tid_x());
        let lane = thread % 32;
        // The thread's words of the first half of `k`, and its address in the first of the matrices that are loaded together.
        let words_at = (thread / 128 * 256 + thread % 128) * 16;
        let (token, chunk) = (lane % 8, lane / 8);
        // SAFETY: the whole warp takes the same branches; the stage has landed, and is given back once it has been read.
        unsafe {
            ptx::mbarrier_wait(base + plan.full() + stage * 8, ring.parity(STAGES));
            // As there.
            let mut group = if GROUPS == 1 { 0 } else { ptx::here(0) };
            while group < GROUPS as u32 {
                let meta = meta::<GROUPS>(p, plan, s_w, group, thread / 32 * 16 + lane / 4);
                let mut acc = [0.0f32; R];
                // Two steps of 16 of `k` at a time.
                for pair in 0..STEPS / GROUPS / 2 {
                    let step = group * (STEPS / GROUPS) as u32 + pair as u32 * 2;
                    let words =
                        ptx::ld_shared_v2_b32(s_w + words_at + step / 4 * 2048 + step % 4 * 4);
                    let a = [convert(words[0], meta.minus_zeros), convert(words[1], meta.minus_zeros)];
                    for eight in 0..R / 4 {
                        let s_line = s_a + (step / 4 * plan.tokens + eight as u32 * 8 + token) * LINE_BYTES;
                        let b = ptx::ldmatrix_x4(s_line + ((step % 4 * 2 + chunk) ^ token) * 16);
                        let at = eight * 4;
                        let mut c = [acc[at], acc[at + 1], acc[at + 2], acc[at + 3]];
                        c = ptx::mma_m16n8k16_bf16(a[0], [b[0], b[1]], c);
                        c = ptx::mma_m16n8k16_bf16(a[1], [b[2], b[3]], c);
                        for i in 0..4 {
                            acc[at + i] = c[i];
                        }
                    }
                }
                for r in 0..R {
                    total[r] = ptx::fma(acc[r], meta.scales[r / 2 % 2], total[r]);
                }
                group += 1;
            }
            ptx::bar_warp_sync();
            if lane == 0 {
                ptx::mbarrier_arrive(base + plan.empty() + stage * 8);
            }
        }
        *ring = ring.next();
    }
    total
}
