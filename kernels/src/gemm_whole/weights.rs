//! A warp's part of a product's weights, and the ring that brings it.

use super::{PART_BYTES, PIECES, Plan};
use crate::{
    abi::GemmWhole,
    gemm_few::layout,
    ptx::{self, MapRef},
    tile::Ring,
};

/// What a warp works on in a phase: 16 rows, `group`, and a split of their `k`. Found once, before the launch waits for anything: it takes divisions, for
/// which everyone would wait each time.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// Where its pieces are.
    g_first: u64,
    piece_bytes: u32,
    /// How many: of none, 0.
    pub pieces: u32,
    /// The first one's place along `k`.
    pub first: u32,
    pub group: u32,
}

impl Part {
    /// `warp`'s.
    #[inline(always)]
    pub(super) fn new(p: &GemmWhole, warp: u32) -> Part {
        let of_block = layout::divide(warp, p.splits);
        let group = ptx::ctaid_x() * p.row_groups + of_block;
        let (mut first, mut end) = (0, 0);
        if of_block < p.row_groups && group * layout::PIECE_ROWS < p.n {
            (first, end) = layout::split_steps(p.steps, p.splits, warp - of_block * p.splits);
        }
        let piece = u64::from(group) * u64::from(p.steps) + u64::from(first);
        let g_first = p.packed + piece * u64::from(p.piece_bytes);
        Part { g_first, piece_bytes: p.piece_bytes, pieces: end - first, first, group }
    }

    #[inline(always)]
    fn place(plan: Plan, index: u32, warp: u32) -> u32 {
        ptx::shared_base() + plan.parts() + (index * plan.warps + warp) * PART_BYTES
    }

    /// Notes those of all warps in all phases, `phase_of(index)` of `count`.
    ///
    /// # Safety
    /// All threads call it; a barrier stands before [`Part::of`].
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) unsafe fn note_all(plan: Plan, phase_of: impl Fn(u32) -> GemmWhole, count: u32) {
        let (index, warp) = (ptx::tid_x() / plan.warps, ptx::tid_x() % plan.warps);
        if index < count {
            let part = Part::new(&phase_of(index), warp);
            let s_part = Part::place(plan, index, warp);
            // SAFETY: the caller's promise; the thread's own place.
            unsafe {
                let address = [part.g_first as u32, (part.g_first >> 32) as u32];
                ptx::st_shared_v4_b32(s_part, [address[0], address[1], part.piece_bytes, part.pieces]);
                ptx::st_shared_v2_b32(s_part + 16, [part.first, part.group]);
            }
        }
    }

    /// `warp`'s part of phase `index`.
    ///
    /// # Safety
    /// After [`Part::note_all`] of at least as many phases, and a barrier.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) unsafe fn of(plan: Plan, index: u32, warp: u32) -> Part {
        let s_part = Part::place(plan, index, warp);
        // SAFETY: the caller's promise.
        let ([low, high, piece_bytes, pieces], [first, group]) =
            unsafe { (ptx::ld_shared_v4_b32(s_part), ptx::ld_shared_v2_b32(s_part + 16)) };
        let g_first = u64::from(low) | u64::from(high) << 32;
        Part { g_first, piece_bytes, pieces, first, group }
    }
}

/// A warp's slots and their barriers.
#[derive(Clone, Copy)]
pub(super) struct Slots {
    plan: Plan,
    s_first: u32,
    bars: u32,
}

impl Slots {
    #[inline(always)]
    pub(super) fn new(plan: Plan, warp: u32) -> Slots {
        let base = ptx::shared_base();
        let s_first = base + warp * plan.slots * plan.slot_bytes;
        Slots { plan, s_first, bars: base + plan.full() + warp * plan.slots * 8 }
    }

    /// # Safety
    /// One lane calls it, once.
    #[inline(always)]
    pub(super) unsafe fn init(self) {
        // SAFETY: the caller's promise.
        unsafe {
            for slot in 0..self.plan.slots {
                ptx::mbarrier_init(self.bars + slot * 8, 1);
            }
            ptx::fence_mbarrier_init();
        }
    }

    /// Waits for what was copied to the slot of this place; which slot it is, and its address.
    ///
    /// # Safety
    /// The barriers are initialised.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) unsafe fn landed(self, ring: Ring) -> (u32, u32) {
        let slot = ring.stage(self.plan.slots);
        // SAFETY: the caller's promise.
        unsafe { ptx::mbarrier_wait(self.bars + slot * 8, ring.parity(self.plan.slots)) };
        (slot, self.s_first + slot * self.plan.slot_bytes)
    }

    /// # Safety
    /// One lane calls it; the slot is free.
    #[inline(always)]
    unsafe fn load(self, slot: u32, g_run: u64, bytes: u32) {
        let bar = self.bars + slot * 8;
        // SAFETY: the caller's promise.
        unsafe {
            ptx::mbarrier_arrive_expect_tx(bar, bytes);
            ptx::bulk_load(self.s_first + slot * self.plan.slot_bytes, g_run, bytes, bar, ptx::read_once());
        }
    }

    /// Starts the copy of a box that fills the slot.
    ///
    /// # Safety
    /// As [`Slots::load`].
    #[inline(always)]
    pub(super) unsafe fn load_box(self, slot: u32, map: MapRef, coords: [i32; 2]) {
        let (bar, bytes) = (self.bars + slot * 8, self.plan.slot_bytes);
        // SAFETY: the caller's promise.
        unsafe {
            ptx::mbarrier_arrive_expect_tx(bar, bytes);
            ptx::bulk_tensor_load_2d_by(self.s_first + slot * bytes, map, coords, bar, ptx::read_once());
        }
    }
}

/// What is copied next: the rest of a warp's part of a phase.
#[derive(Clone, Copy)]
pub(super) struct Cursor {
    /// The phase after it.
    phase: u32,
    g_next: u64,
    /// Pieces.
    left: u32,
    piece_bytes: u32,
}

impl Cursor {
    #[inline(always)]
    pub(super) fn new() -> Cursor {
        Cursor { phase: 0, g_next: 0, left: 0, piece_bytes: 0 }
    }

    /// Whether nothing is left of the last phase.
    #[inline(always)]
    pub(super) fn is_at_end(&self, count: u32) -> bool {
        self.left == 0 && self.phase == count
    }

    /// Asks for the `pieces` that come next, of the phase that they are of, into the L2.
    ///
    /// # Safety
    /// The parts are noted.
    #[inline(always)]
    pub(super) unsafe fn ask(&self, pieces: u32) {
        let pieces = self.left.min(pieces);
        if pieces > 0 && ptx::lane() == 0 {
            // SAFETY: pieces of weights, which no launch writes.
            unsafe { ptx::bulk_prefetch_l2(self.g_next, pieces * self.piece_bytes) };
        }
    }

    /// Starts the copy of the next run of pieces, of whichever of `count` phases, if there is any.
    ///
    /// # Safety
    /// The whole warp calls it; the slot is free, the parts are noted.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) unsafe fn load(&mut self, count: u32, slots: Slots, slot: u32) {
        while self.left == 0 && self.phase < count {
            // SAFETY: the caller's promise.
            let part = unsafe { Part::of(slots.plan, self.phase, ptx::here(ptx::tid_x()) / 32) };
            (self.left, self.g_next, self.piece_bytes) = (part.pieces, part.g_first, part.piece_bytes);
            self.phase += 1;
        }
        let pieces = self.left.min(PIECES);
        if pieces == 0 {
            return;
        }
        let bytes = pieces * self.piece_bytes;
        if ptx::lane() == 0 {
            // SAFETY: the caller's promise; the pieces lie one behind the other.
            unsafe { slots.load(slot, self.g_next, bytes) };
        }
        self.g_next += u64::from(bytes);
        self.left -= pieces;
    }
}

/// Asks for the first weights of the launch that follows, the warp's part of them ([`crate::gemm_few`]).
///
/// # Safety
/// One lane of each warp calls it.
#[inline(always)]
pub(super) unsafe fn next_weights(p: &GemmWhole, plan: Plan) {
    if p.next_packed == 0 {
        return;
    }
    let splits = p.next_splits.max(1);
    let mut item = ptx::ctaid_x() * plan.warps + ptx::tid_x() / 32;
    while item < p.next_items {
        let of_rows = layout::divide(item, splits);
        let (first, end) = layout::split_steps(p.next_steps, splits, item - of_rows * splits);
        let pieces = (end - first).min(p.next_ahead);
        let piece = u64::from(of_rows) * u64::from(p.next_steps) + u64::from(first);
        let g_pieces = p.next_packed + piece * u64::from(p.next_piece_bytes);
        // SAFETY: pieces of weights, which no launch writes.
        unsafe { ptx::bulk_prefetch_l2(g_pieces, pieces * p.next_piece_bytes) };
        item += plan.warps * ptx::nctaid_x();
    }
}
