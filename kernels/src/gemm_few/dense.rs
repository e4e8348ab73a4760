//! Products of weights that are operands as they are.

use super::{LINE_BYTES, Tile, item::Item};
use crate::{
    ptx,
    tile::{Accumulators, Ring},
};

/// Bytes of `k` that one product takes.
const STEP_BYTES: u32 = 32;

/// The warpgroup's 64 rows of `w` times the tokens, over the item's stages.
///
/// # Safety
/// One consumer warpgroup calls it, the `index`-th; the barriers are initialised.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) unsafe fn multiply<A: Accumulators>(plan: Tile, item: Item, ring: &mut Ring, index: u32) -> A {
    let base = ptx::shared_base();
    let mut acc = A::zeros();
    for _ in item.first..item.end {
        let stage = ring.stage(plan.stages);
        let s_a = base + stage * plan.stage_bytes();
        let a = ptx::descriptor(s_a, 0);
        let w = ptx::descriptor(s_a + plan.a_bytes() + index * 64 * LINE_BYTES, 0);
        // SAFETY: the whole warpgroup takes the same branches; the stage has landed, and is given back after its products.
        unsafe {
            ptx::mbarrier_wait(base + plan.full() + stage * 8, ring.parity(plan.stages));
            ptx::wgmma_fence();
            for along in 0..LINE_BYTES / STEP_BYTES {
                let along = u64::from((along * STEP_BYTES) >> 4);
                acc.add(w + along, a + along);
            }
            ptx::wgmma_commit();
            // The other warpgroups' products keep the tensor cores busy meanwhile.
            acc.wait::<0>();
            if ptx::lane() == 0 {
                ptx::mbarrier_arrive(base + plan.empty() + stage * 8);
            }
        }
        *ring = ring.next();
    }
    acc
}
