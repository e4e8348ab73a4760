//! The lane that brings the stages.

use super::{LINE_BYTES, ROWS, STAGES, Tile, Weights, item::Item};
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

/// What the copies of an item need.
struct Producer<'p> {
    p: &'p GemmFew,
    source: Source,
    plan: Tile,
    item: Item,
    base: u32,
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

    /// Announces all of a stage and starts the copy of its weights.
    ///
    /// # Safety
    /// One lane calls it; the stage is free.
    #[inline(always)]
    unsafe fn weights(&self, stage: u32, step: u32) {
        let (p, plan) = (self.p, self.plan);
        let bar = self.base + plan.full() + stage * 8;
        let s_w = self.base + stage * plan.stage_bytes() + plan.a_bytes();
        // SAFETY: the caller's promise; the copy fits the stage.
        unsafe {
            match self.source.weights {
                Weights::Int4 { .. } => {
                    ptx::mbarrier_arrive_expect_tx(bar, plan.a_bytes() + p.tile_bytes);
                    let tile = u64::from(self.item.row_tile) * u64::from(p.steps) + u64::from(step);
                    ptx::bulk_load(s_w, p.packed + tile * u64::from(p.tile_bytes), p.tile_bytes, bar);
                }
                Weights::Bf16 | Weights::Int8 => {
                    ptx::mbarrier_arrive_expect_tx(bar, plan.a_bytes() + plan.w_bytes);
                    let coords = [(step * self.line()) as i32, (self.item.row_tile * ROWS) as i32];
                    ptx::bulk_tensor_load_2d(s_w, self.source.w, coords, bar);
                }
            }
        }
    }

    /// Starts the copy of a stage's rows of `a`.
    ///
    /// # Safety
    /// As [`Producer::weights`], after it and after [`ptx::grid_wait`].
    #[inline(always)]
    unsafe fn activations(&self, stage: u32, step: u32) {
        let plan = self.plan;
        for line in 0..plan.lines {
            let s_a = self.base + stage * plan.stage_bytes() + line * plan.tokens * LINE_BYTES;
            let k = (step * plan.lines + line) * self.line();
            let coords = [k as i32, (self.item.token_tile * plan.tokens) as i32];
            // SAFETY: the caller's promise.
            unsafe { ptx::bulk_tensor_load_2d(s_a, self.source.a, coords, self.base + plan.full() + stage * 8) };
        }
    }
}

/// Brings the item's stages. The first weights don't wait for the launch before.
///
/// # Safety
/// One lane calls it; the barriers are initialised.
#[inline(always)]
pub(super) unsafe fn produce(p: &GemmFew, source: Source, plan: Tile, item: Item) {
    let producer = Producer { p, source, plan, item, base: ptx::shared_base() };
    let early = (item.end - item.first).min(STAGES);
    // SAFETY: stages are free before their first use, and later once the phase of `empty` before has completed.
    unsafe {
        for stage in 0..early {
            producer.weights(stage, item.first + stage);
        }
        ptx::grid_launch_dependents();
        ptx::grid_wait();
        let mut ring = Ring::new();
        for step in item.first..item.end {
            let stage = ring.stage(STAGES);
            if step >= item.first + early {
                ptx::mbarrier_wait(
                    producer.base + plan.empty() + stage * 8,
                    ring.parity(STAGES) ^ 1,
                );
                producer.weights(stage, step);
            }
            producer.activations(stage, step);
            ring = ring.next();
        }
    }
}
