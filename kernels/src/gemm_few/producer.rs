//! The lanes that bring the stages: the first also the rows of `a`, 4-bit weights in equal parts.

use super::{
    LINE_BYTES, Tile, Weights,
    item::{Item, Place},
    layout, piece_stride,
};
use crate::{
    abi::GemmFew,
    ptx::{self, MapRef},
    tile::Ring,
};

/// Where copies come from.
#[derive(Clone, Copy)]
pub(super) struct Source {
    pub a: MapRef,
    pub w: MapRef,
    pub weights: Weights,
}

/// What the copies need.
struct Producer<'p> {
    p: &'p GemmFew,
    source: Source,
    plan: Tile,
    base: u32,
    /// Which of the producing lanes, and which of those of its split.
    index: u32,
    index_of_split: u32,
}

impl Producer<'_> {
    /// Elements of a line.
    #[inline(always)]
    fn line(&self) -> u32 {
        match self.source.weights {
            Weights::Int8 => LINE_BYTES,
            Weights::Bf16 | Weights::Int4 { .. } => LINE_BYTES / 2,
        }
    }

    /// Announces the lane's part of a stage and starts the copy of its weights.
    ///
    /// # Safety
    /// Each producing lane calls it; the stage is free.
    #[inline(always)]
    unsafe fn weights(&self, item: Item, stage: u32, step: u32) {
        let (p, plan) = (self.p, self.plan);
        let bar = self.base + plan.full() + stage * 8;
        let s_w = self.base + stage * plan.stage_bytes() + plan.a_bytes();
        // SAFETY: the caller's promise; the copies fit the stage.
        unsafe {
            match self.source.weights {
                Weights::Int4 { groups, .. } => {
                    if plan.abreast > 1 && step >= item.end {
                        ptx::mbarrier_arrive(bar);
                        return;
                    }
                    let pieces = plan.consumers() / plan.producing_lanes();
                    let a_bytes = if self.index_of_split == 0 { plan.split_a_bytes() } else { 0 };
                    ptx::mbarrier_arrive_expect_tx(bar, a_bytes + pieces * p.piece_bytes);
                    let run = u64::from(p.steps) * u64::from(p.piece_bytes);
                    let first = item.row_tile * plan.row_warps() + self.index_of_split * pieces;
                    let mut g_piece =
                        p.packed + u64::from(first) * run + u64::from(step) * u64::from(p.piece_bytes);
                    let mut s_piece = s_w + self.index * pieces * piece_stride(groups);
                    for _ in 0..pieces {
                        ptx::bulk_load(s_piece, g_piece, p.piece_bytes, bar, ptx::read_once());
                        g_piece += run;
                        s_piece += piece_stride(groups);
                    }
                }
                Weights::Bf16 | Weights::Int8 => {
                    ptx::mbarrier_arrive_expect_tx(bar, plan.a_bytes() + plan.w_bytes);
                    let coords = [(step * self.line()) as i32, (item.row_tile * plan.rows) as i32];
                    ptx::bulk_tensor_load_2d_by(s_w, self.source.w, coords, bar, ptx::read_once());
                }
            }
        }
    }

    /// Asks for the first weights of the launch that follows, of the blocks of this one's own place in it: the memory has nothing to do while
    /// this launch's last sums are on their way and the next one starts. Before this launch's rows of `a` it would keep those waiting: copies
    /// of a multiprocessor are made in order.
    ///
    /// # Safety
    /// One lane calls it, having asked for all of its own.
    #[inline(always)]
    unsafe fn next_weights(&self) {
        let p = self.p;
        if !matches!(self.source.weights, Weights::Int4 { .. }) || p.next_packed == 0 {
            return;
        }
        let splits = p.next_splits.max(1);
        let mut index = ptx::ctaid_y() * ptx::nctaid_x() + ptx::ctaid_x();
        while index < p.next_items {
            let (first, end) = layout::split_steps(p.next_steps, splits, index % splits);
            let steps = (end - first).min(p.next_ahead);
            let tile = u64::from(index / splits) * u64::from(p.next_steps) + u64::from(first);
            let bytes = u64::from(p.next_piece_bytes);
            // SAFETY: tiles of weights, which no launch writes.
            unsafe { ptx::bulk_prefetch_l2(p.next_packed + tile * bytes, steps * p.next_piece_bytes) };
            index += ptx::nctaid_x() * ptx::nctaid_y();
        }
    }

    /// Starts the copy of a stage's rows of `a`.
    ///
    /// # Safety
    /// As [`Producer::weights`], after it and after [`ptx::grid_wait`].
    #[inline(always)]
    unsafe fn activations(&self, item: Item, stage: u32, step: u32) {
        let plan = self.plan;
        if self.index_of_split != 0 || plan.abreast > 1 && step >= item.end {
            return;
        }
        // The first lane of a split behind another's.
        let s_split = self.base
            + stage * plan.stage_bytes()
            + if plan.abreast > 1 && self.index > 0 { plan.split_a_bytes() } else { 0 };
        for line in 0..plan.lines {
            let s_a = s_split + line * plan.tokens * LINE_BYTES;
            let k = (step * plan.lines + line) * self.line();
            let coords = [k as i32, (item.token_tile * plan.tokens) as i32];
            // SAFETY: the caller's promise.
            unsafe {
                ptx::bulk_tensor_load_2d(s_a, self.source.a, coords, self.base + plan.full() + stage * 8)
            };
        }
    }
}

/// Brings the stages of the block's items, a lane its part. The first weights don't wait for the launch before, nor does the map of `a`.
///
/// # Safety
/// Each producing lane calls it; the barriers are initialised.
#[inline(always)]
pub(super) unsafe fn produce(p: &GemmFew, source: Source, plan: Tile) {
    let lane = if plan.producing_lanes() == 1 { 0 } else { (ptx::tid_x() - plan.consumer_threads()) / 32 };
    let of_split = plan.producing_lanes() / plan.abreast;
    let side = if plan.abreast == 1 { 0 } else { lane / of_split };
    let index_of_split = lane - side * of_split;
    let producer = Producer { p, source, plan, base: ptx::shared_base(), index: lane, index_of_split };
    let mut place = Place::first(p, plan, side);
    let mut item = Item::whole(p, plan, place);
    let early = item.stages.min(plan.stages);
    // SAFETY: stages are free before their first use, and later once the phase of `empty` before has completed.
    unsafe {
        // The copies behind the wait would else fetch it from memory first: half a microsecond that nothing hides.
        ptx::prefetch_tensor_map(source.a);
        // Of persistent blocks, which have few registers, loops that aren't unrolled.
        let first = || if plan.is_persistent() { ptx::here(0) } else { 0 };
        let mut stage = first();
        while stage < early.min(plan.stages_ahead()) {
            producer.weights(item, stage, item.first + stage);
            stage += 1;
        }
        ptx::grid_launch_dependents();
        ptx::grid_wait();
        let mut ring = Ring::new();
        stage = first();
        while stage < early {
            if stage >= plan.stages_ahead() {
                producer.weights(item, stage, item.first + stage);
            }
            producer.activations(item, stage, item.first + stage);
            ring = ring.next();
            stage += 1;
        }
        let mut index = early;
        loop {
            while index < item.stages {
                let (stage, step) = (ring.stage(plan.stages), item.first + index);
                ptx::mbarrier_wait(producer.base + plan.empty() + stage * 8, ring.parity(plan.stages) ^ 1);
                producer.weights(item, stage, step);
                producer.activations(item, stage, step);
                ring = ring.next();
                index += 1;
            }
            if !plan.is_persistent() {
                break;
            }
            place.tile += ptx::nctaid_y();
            if !place.is_inside(p, plan) {
                break;
            }
            item = Item::whole(p, plan, place);
            index = 0;
        }
        if lane == 0 {
            producer.next_weights();
        }
    }
}
