//! Items of a launch that its blocks take one after another: a block's first is its own index, the others are counted out.
//!
//! Two u32, zeros before the launch and after it: items taken beside the first ones, and blocks that take no more. Launches that may
//! overlap need counters of their own.

use crate::ptx;

/// An item asked for, of which lane 0 alone has heard.
#[derive(Clone, Copy)]
pub(crate) struct Asked(u32);

/// Asks for the next item that no block has taken.
///
/// # Safety
/// The whole warp calls it; `counters` is the launch's.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn ask(counters: u64) -> Asked {
    // SAFETY: the caller's promise.
    Asked(if ptx::lane() == 0 { unsafe { ptx::atom_count_global_u32(counters) } } else { 0 })
}

impl Asked {
    /// Its index, which may be past the last item's.
    ///
    /// # Safety
    /// The whole warp calls it.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(crate) unsafe fn index(self) -> u32 {
        // SAFETY: the caller's promise.
        ptx::nctaid_x() + unsafe { ptx::shfl_idx(self.0, 0) }
    }
}

/// Leaves the counters at zero for the next launch: the last block to come knows that no other takes items any more.
///
/// # Safety
/// The whole warp calls it, once and after its last [`ask`]; `counters` is the launch's.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) unsafe fn leave(counters: u64) {
    if ptx::lane() != 0 {
        return;
    }
    let blocks = ptx::nctaid_x();
    // SAFETY: the caller's promise.
    unsafe {
        ptx::fence_acq_rel_gpu();
        if ptx::atom_add_global_u32(counters + 4, 1) == blocks - 1 {
            let taken = ptx::atom_add_global_u32(counters, 0);
            ptx::atom_add_global_u32(counters, 0u32.wrapping_sub(taken));
            ptx::atom_add_global_u32(counters + 4, 0u32.wrapping_sub(blocks));
        }
    }
}
