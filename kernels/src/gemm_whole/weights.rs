//! A warp's part of a product's weights, and the ring that brings it.

use super::{PIECES, Plan, SLOTS, WARPS};
use crate::{abi::GemmWhole, gemm_few::layout, ptx};

/// What a warp works on: 16 rows, `group`, and a split of their `k`.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub group: u32,
    /// The first piece and one past the last.
    pub first: u32,
    pub end: u32,
}

impl Part {
    /// The warp's; of none, no piece.
    #[inline(always)]
    pub(super) fn new(p: &GemmWhole, warp: u32) -> Part {
        let of_block = layout::divide(warp, p.splits);
        let group = ptx::ctaid_x() * p.row_groups + of_block;
        if of_block >= p.row_groups || group * layout::PIECE_ROWS >= p.n {
            return Part { group, first: 0, end: 0 };
        }
        let (first, end) = layout::split_steps(p.steps, p.splits, warp - of_block * p.splits);
        Part { group, first, end }
    }

    /// Its pieces.
    #[inline(always)]
    pub(super) fn pieces(self) -> u32 {
        self.end - self.first
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
        let s_first = base + warp * SLOTS * plan.slot_bytes();
        Slots { plan, s_first, bars: base + plan.full() + warp * SLOTS * 8 }
    }

    /// # Safety
    /// One lane calls it, once.
    #[inline(always)]
    pub(super) unsafe fn init(self) {
        // SAFETY: the caller's promise.
        unsafe {
            for slot in 0..SLOTS {
                ptx::mbarrier_init(self.bars + slot * 8, 1);
            }
            ptx::fence_mbarrier_init();
        }
    }

    /// Waits for what was copied to a slot; its address.
    ///
    /// # Safety
    /// The barriers are initialised.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) unsafe fn landed(self, slot: u32, parity: u32) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { ptx::mbarrier_wait(self.bars + slot * 8, parity) };
        self.s_first + slot * self.plan.slot_bytes()
    }

    /// # Safety
    /// One lane calls it; the slot is free.
    #[inline(always)]
    unsafe fn load(self, slot: u32, g_run: u64, bytes: u32) {
        let bar = self.bars + slot * 8;
        // SAFETY: the caller's promise.
        unsafe {
            ptx::mbarrier_arrive_expect_tx(bar, bytes);
            ptx::bulk_load(self.s_first + slot * self.plan.slot_bytes(), g_run, bytes, bar, ptx::read_once());
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

    /// Starts the copy of the next run of pieces, of whichever phase, if there is any. `phase_of(index)` are the `count` phases.
    ///
    /// # Safety
    /// The whole warp calls it; the slot is free.
    #[inline(always)]
    pub(super) unsafe fn load(
        &mut self,
        phase_of: impl Fn(u32) -> GemmWhole,
        count: u32,
        slots: Slots,
        slot: u32,
    ) {
        while self.left == 0 && self.phase < count {
            let p = phase_of(self.phase);
            let part = Part::new(&p, ptx::here(ptx::tid_x()) / 32);
            let piece = u64::from(part.group) * u64::from(p.steps) + u64::from(part.first);
            self.left = part.pieces();
            self.g_next = p.packed + piece * u64::from(p.piece_bytes);
            self.piece_bytes = p.piece_bytes;
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
pub(super) unsafe fn next_weights(p: &GemmWhole) {
    if p.next_packed == 0 {
        return;
    }
    let splits = p.next_splits.max(1);
    let mut item = ptx::ctaid_x() * WARPS + ptx::tid_x() / 32;
    while item < p.next_items {
        let of_rows = layout::divide(item, splits);
        let (first, end) = layout::split_steps(p.next_steps, splits, item - of_rows * splits);
        let pieces = (end - first).min(p.next_ahead);
        let piece = u64::from(of_rows) * u64::from(p.next_steps) + u64::from(first);
        let g_pieces = p.next_packed + piece * u64::from(p.next_piece_bytes);
        // SAFETY: pieces of weights, which no launch writes.
        unsafe { ptx::bulk_prefetch_l2(g_pieces, pieces * p.next_piece_bytes) };
        item += WARPS * ptx::nctaid_x();
    }
}
