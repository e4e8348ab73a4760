//! Runs the lanes of one block until all have ended or one is caught.

use std::panic::{AssertUnwindSafe, catch_unwind};

use corosensei::Coroutine;
use corosensei::stack::{DefaultStack, Stack, StackPointer};

use crate::collective::Standing;
use crate::context::{Collective, Context, State, context};
use crate::fault::{Fault, FaultKind};
use crate::random::Random;

const STACK_BYTES: usize = 256 << 10;
/// Steps a lane may take in a row. In a seeded launch the turns are short and of random length.
const PATIENCE: u32 = 1 << 16;

/// A coroutine's stack, its top moved down by a different distance for each lane: lanes run the same frames, and stacks that
/// lie a power of two apart would put all of them into the same few cache sets.
pub(crate) struct LaneStack {
    memory: DefaultStack,
    top: StackPointer,
}

impl LaneStack {
    pub fn new(lane: usize) -> std::io::Result<Self> {
        let memory = DefaultStack::new(STACK_BYTES)?;
        let down = lane % 64 * (8 * 64 + 64);
        let top = StackPointer::new(memory.base().get() - down).unwrap_or(memory.base());
        Ok(Self { memory, top })
    }
}

// SAFETY: the range from `limit` to `base` is part of the memory of a `DefaultStack` that this value owns, guard page at its
// lower end; `top` is below that stack's base by a multiple of 64 far smaller than the stack, hence aligned and inside.
unsafe impl Stack for LaneStack {
    fn base(&self) -> StackPointer {
        self.top
    }

    fn limit(&self) -> StackPointer {
        self.memory.limit()
    }

    #[cfg(windows)]
    fn teb_fields(&self) -> corosensei::stack::StackTebFields {
        self.memory.teb_fields()
    }

    #[cfg(windows)]
    fn update_teb_fields(&mut self, stack_limit: usize, guaranteed_stack_bytes: usize) {
        self.memory.update_teb_fields(stack_limit, guaranteed_stack_bytes);
    }
}

type LaneRoutine = Coroutine<(), (), (), LaneStack>;

/// One block's lanes. They reach the launch's [`Context`] as the intrinsics do, through [`context`].
pub(crate) struct Block {
    routines: Vec<LaneRoutine>,
    random: Option<Random>,
    /// Of each barrier: the warps that have arrived.
    arrived: [Vec<usize>; 16],
    runnable: Vec<usize>,
}

impl Block {
    /// Lanes that will call `kernel`, on stacks from the pool.
    ///
    /// # Safety
    /// `kernel` must live until the block is ended by [`Block::end`] or dropped.
    pub unsafe fn new(kernel: &dyn Fn(), stacks: &mut Vec<LaneStack>, random: Option<Random>) -> Self {
        // SAFETY: only the lifetime changes; the caller keeps `kernel` alive as long as the coroutines that call it.
        let kernel = unsafe { std::mem::transmute::<&dyn Fn(), &'static dyn Fn()>(kernel) };
        let threads = context().threads as usize;
        let lane = |stack| {
            Coroutine::with_stack(stack, move |yielder: &corosensei::Yielder<(), ()>, ()| {
                let context = context();
                context.lanes[context.current].yielder = yielder;
                kernel();
            })
        };
        let routines = stacks.drain(..threads).map(lane).collect();
        let runnable = (0..threads.div_ceil(32)).collect();
        Self { routines, random, arrived: Default::default(), runnable }
    }

    /// Runs all lanes to their ends.
    pub fn run(&mut self) -> Result<(), Fault> {
        match catch_unwind(AssertUnwindSafe(|| self.run_warps())) {
            Ok(ended) => ended,
            Err(panic) => {
                let message = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("a panic without a message");
                let context = context();
                let at = context.lane_place(context.current);
                Err(context.fault(FaultKind::Panic, Some(at), None, message.to_owned()))
            }
        }
    }

    /// Unwinds the lanes that haven't ended and gives the stacks back.
    pub fn end(self, stacks: &mut Vec<LaneStack>) {
        for mut routine in self.routines {
            routine.force_unwind();
            stacks.push(routine.into_stack());
        }
    }

    fn run_warps(&mut self) -> Result<(), Fault> {
        while !self.runnable.is_empty() {
            let pick = match &mut self.random {
                Some(random) => random.below(self.runnable.len()),
                None => 0,
            };
            let warp = self.runnable[pick];
            self.runnable.remove(pick);
            match self.run_warp(warp)? {
                // Behind the others, so that a lane that waits for another warp's store sees it come.
                true => self.runnable.push(warp),
                false => self.arrive(warp)?,
            }
        }
        diagnose(context())
    }

    /// Runs a warp until it stops at a barrier or ends: false. Before that, a lane that has used up its turn, or the random
    /// order, may make way for another warp: true.
    fn run_warp(&mut self, warp: usize) -> Result<bool, Fault> {
        let threads = context().warp_threads(warp);
        loop {
            if self.run_lanes(threads.clone())? {
                return Ok(true);
            }
            match context().standing(warp)? {
                Standing::Finished | Standing::Together(Collective::Barrier { .. }) => {
                    let context = context();
                    context.requests.flush(threads, &mut context.report);
                    return Ok(false);
                }
                Standing::Together(collective) => {
                    let context = context();
                    if context.report.lane_steps > context.step_limit {
                        return Err(context.out_of_steps(Some(context.lane_place(threads.start))));
                    }
                    context.execute(warp, collective)?;
                    context.requests.flush(threads.clone(), &mut context.report);
                }
            }
            if self.random.as_mut().is_some_and(|random| random.below(2) == 0) {
                return Ok(true);
            }
        }
    }

    /// Gives every lane that can run a turn; whether any still can.
    fn run_lanes(&mut self, threads: std::ops::Range<usize>) -> Result<bool, Fault> {
        let mut left = false;
        let (start, stride) = match &mut self.random {
            // Odd, so that it visits every lane of a warp once; those that a partial warp lacks are passed over.
            Some(random) => (random.below(32), 2 * random.below(16) + 1),
            None => (0, 1),
        };
        for turn in 0..32 {
            let thread = threads.start + ((start + turn * stride) & 31);
            if thread < threads.end && context().states[thread] == State::Ready {
                self.run_lane(thread)?;
                left |= context().states[thread] == State::Ready;
            }
        }
        Ok(left)
    }

    #[inline(always)]
    fn run_lane(&mut self, thread: usize) -> Result<(), Fault> {
        let patience = self.random.as_mut().map_or(PATIENCE, |random| 1 + random.below(64) as u32);
        let now = context();
        now.become_thread(thread);
        now.patience = patience;
        let ended = self.routines[thread].resume(()).as_return().is_some();
        let context = context();
        if let Some(fault) = context.fault.take() {
            return Err(*fault);
        }
        if ended {
            context.states[thread] = State::Finished;
            if let Some(copy) = context.lanes[thread].copies.front() {
                let target = context.shared.describe(copy.shared);
                let detail = format!("ended before it waited for its copy to {target}");
                let at = context.place(thread, copy.site);
                return Err(context.fault(FaultKind::InFlight, Some(at), None, detail));
            }
        }
        Ok(())
    }

    /// A warp that can't run: if it waits at a barrier, it has arrived there, and the last to arrive opens it.
    fn arrive(&mut self, warp: usize) -> Result<(), Fault> {
        let context = context();
        let Standing::Together(Collective::Barrier { id, threads, whole_block }) = context.standing(warp)?
        else {
            return Ok(());
        };
        let first = 32 * warp;
        if id > 15 || threads == 0 || (!whole_block && threads % 32 != 0) {
            let detail = format!("bar.sync {id}, {threads}: expected a barrier below 16 and whole warps");
            let at = Some(context.lane_place(first));
            return Err(context.fault(FaultKind::BarrierDivergence, at, None, detail));
        }
        let arrived = &mut self.arrived[id as usize];
        if let Some(&before) = arrived.first() {
            let before = 32 * before;
            let same_count = context.lanes[before].collective == context.lanes[first].collective;
            if !same_count || (whole_block && !context.same_place(before, first)) {
                let other = Some(context.lane_place(before));
                let detail =
                    format!("meets at barrier {id} a warp that waits on another line or for another number");
                let at = Some(context.lane_place(first));
                return Err(context.fault(FaultKind::BarrierDivergence, at, other, detail));
            }
        }
        arrived.push(warp);
        let present: usize = arrived.iter().map(|&warp| context.warp_threads(warp).len()).sum();
        if present >= threads as usize {
            context.report.barriers += 1;
            context.clocks.sync_warps(arrived);
            for &warp in &*arrived {
                let threads = context.warp_threads(warp);
                context.states[threads].fill(State::Ready);
            }
            self.runnable.append(arrived);
            self.runnable.sort_unstable();
        }
        Ok(())
    }
}

/// Nothing can run: fine if all lanes have ended.
fn diagnose(context: &Context) -> Result<(), Fault> {
    let waiting = |thread: &usize| context.states[*thread] == State::Waiting;
    let threads = context.threads as usize;
    let Some(first) = (0..threads).find(waiting) else { return Ok(()) };
    let whole_block = |thread: usize| {
        matches!(context.lanes[thread].collective, Collective::Barrier { whole_block: true, .. })
    };
    let all_whole = (0..threads).filter(waiting).all(whole_block);
    let kind = if all_whole { FaultKind::BarrierDivergence } else { FaultKind::Deadlock };
    let at = context.lane_place(first);
    let absent = (0..threads)
        .find(|&thread| context.states[thread] == State::Finished)
        .map(|thread| format!("warp {} lane {} has finished", thread / 32, thread % 32));
    let elsewhere = (first..threads).filter(waiting).find(|&thread| !context.same_place(thread, first));
    let reason = absent.unwrap_or_else(|| match elsewhere {
        Some(_) => "others wait elsewhere".to_owned(),
        None => "too few threads come".to_owned(),
    });
    let Collective::Barrier { id, threads, .. } = context.lanes[first].collective else { return Ok(()) };
    let detail = format!("waits at barrier {id} for {threads} threads, but {reason}");
    Err(context.fault(kind, Some(at), elsewhere.map(|thread| context.lane_place(thread)), detail))
}
