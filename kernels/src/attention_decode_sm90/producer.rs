//! The warp that takes items and keeps the ring full.

use super::{
    ITEM_BYTES, ITEMS, Plan, STAGE_BYTES,
    work::{Place, Tiles, Work},
};
use crate::{
    abi::AttentionDecodeSm90,
    ptx,
    tile::{Ring, queue},
};

/// Tiles of an item still to be brought when the warp asks which item is next: its answer comes from the L2, and a block that has asked
/// has an item that no other can take.
const ASK: u32 = 6;
/// Those when the next item's sequence and first pages are looked up.
const TAKE: u32 = 3;

/// How tiles come in.
pub(super) trait Feed: Copy {
    /// Where the tiles of an item lie that come next, some of them still being looked up.
    type Places: Copy;

    /// Starts to look up the first ones.
    ///
    /// # Safety
    /// The whole warp calls it; the block table covers the item's keys.
    unsafe fn look_up(&self, p: &AttentionDecodeSm90, plan: Plan, work: &Work) -> Self::Places;

    /// Starts to bring the next one into the stage at `s_stage`; when it has landed the phase of `full` completes.
    ///
    /// # Safety
    /// The whole warp calls it; the stage is free.
    unsafe fn bring(
        &self,
        p: &AttentionDecodeSm90,
        plan: Plan,
        work: &Work,
        places: &mut Self::Places,
        s_stage: u32,
        full: u32,
    );
}

/// An item of the launch, and where its tiles lie; nothing where there is nothing to do for it.
#[derive(Clone, Copy)]
struct Taken<F: Feed> {
    index: u32,
    work: Option<(Work, F::Places)>,
}

impl<F: Feed> Taken<F> {
    /// # Safety
    /// As [`Feed::look_up`].
    #[inline(always)]
    unsafe fn new(p: &AttentionDecodeSm90, feed: &F, plan: Plan, index: u32) -> Self {
        // SAFETY: the caller's promise.
        let work = unsafe { Work::new(&p.shared, plan, index) };
        // SAFETY: likewise.
        let with_places = |work| (work, unsafe { feed.look_up(p, plan, &work) });
        Self { index, work: work.map(with_places) }
    }
}

/// Brings all items of the block, then tells the four warps that there are no more.
///
/// # Safety
/// One whole warp calls it; the barriers are initialised.
#[inline(always)]
pub(super) unsafe fn produce<F: Feed>(p: &AttentionDecodeSm90, feed: F, plan: Plan) {
    let (mut ring, mut place) = (Ring::new(), Place(0));
    // SAFETY: the whole warp takes the same branches; the sequences say which indices are the launch's. They and the block table are no
    // launch's work; what launches leave each other are the counters, keys and values: all after the wait.
    unsafe {
        let mut taken = Taken::new(p, &feed, plan, ptx::ctaid_x());
        ptx::start_after_previous();
        while taken.index < p.items {
            if let Some((work, _)) = &taken.work {
                share(plan, ring, Some(work));
                ring = ring.next();
            }
            taken = bring(p, &feed, plan, taken, &mut place);
        }
        share(plan, ring, None);
        queue::leave(p.queue);
    }
}

/// Leaves an item for the four warps, or word that there are no more, when its place is empty.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
unsafe fn share(plan: Plan, ring: Ring, work: Option<&Work>) {
    let base = ptx::shared_base();
    let stage = ring.stage(ITEMS);
    let s_item = base + plan.s_items() + stage * ITEM_BYTES;
    // SAFETY: the place is free once the four warps have told that they have read it.
    unsafe {
        ptx::mbarrier_wait(base + plan.item_empty() + stage * 8, ring.parity(ITEMS) ^ 1);
        if ptx::lane() == 0 {
            match work {
                Some(work) => work.share(s_item),
                None => Work::share_end(s_item),
            }
            ptx::mbarrier_arrive(base + plan.item_full() + stage * 8);
        }
    }
}

/// Brings an item's tiles, from place `place` of the ring on, each when its stage is empty, and takes the next item meanwhile.
///
/// # Safety
/// The whole warp calls it.
#[inline(always)]
unsafe fn bring<F: Feed>(
    p: &AttentionDecodeSm90,
    feed: &F,
    plan: Plan,
    mut taken: Taken<F>,
    place: &mut Place,
) -> Taken<F> {
    let base = ptx::shared_base();
    let mut left = taken.work.as_ref().map_or(0, |(work, _)| Tiles::new(&work.item, plan).count());
    let (mut asked, mut next) = (None, None);
    // SAFETY: a stage is free once the phase of its `empty` barrier before this one has completed.
    unsafe {
        loop {
            if left <= ASK && asked.is_none() {
                asked = Some(queue::ask(p.queue));
            }
            if left <= TAKE
                && next.is_none()
                && let Some(asked) = asked
            {
                next = Some(Taken::new(p, feed, plan, asked.index()));
            }
            if left == 0
                && let Some(next) = next
            {
                return next;
            }
            if let Some((work, places)) = &mut taken.work {
                let stage = place.stage(plan);
                ptx::mbarrier_wait(base + plan.empty() + stage * 8, place.parity(plan) ^ 1);
                let (s_stage, full) = (base + stage * STAGE_BYTES, base + plan.full() + stage * 8);
                feed.bring(p, plan, work, places, s_stage, full);
            }
            *place = Place(place.0.wrapping_add(1));
            left -= 1;
        }
    }
}
