//! Runs the lanes of one block, or of the blocks of a cluster, until all have ended or one is caught.

use std::panic::{AssertUnwindSafe, catch_unwind};

use corosensei::Coroutine;
use corosensei::stack::{DefaultStack, Stack, StackPointer};

use crate::barrier::{Barriers, diagnose};
use crate::collective::Standing;
use crate::context::context;
use crate::fault::{Fault, FaultKind};
use crate::lane::{Collective, State};
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

/// How a warp's turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// A lane has used up its share, or the random order makes way for another warp.
    Yielded,
    /// All lanes wait for other warps, or have ended.
    Stopped,
}

/// Turns for each warp that can run until it is taken that they just wait: in a random order some warps have several before others have one.
const IDLE_TURNS: usize = 64;

/// The lanes of the blocks that run together. They reach the launch's [`Context`](crate::context::Context) as the intrinsics do, through [`context`].
pub(crate) struct Block {
    routines: Vec<LaneRoutine>,
    random: Option<Random>,
    /// Of each block.
    barriers: Vec<Barriers>,
    /// Of each warpgroup, by its first warp, the warps that wait in an instruction of the whole group.
    groups: Vec<Vec<usize>>,
    runnable: Vec<usize>,
    /// Steps that lanes had taken, waiting aside, when waits were last told to give up.
    steps_at_give_up: u64,
    /// Steps that lanes had taken, polls aside, and how many turns have passed since then.
    steps_before: u64,
    idle_turns: usize,
}

impl Block {
    /// Lanes that will call `kernel`, on stacks from the pool.
    ///
    /// # Safety
    /// `kernel` must live until the block is ended by [`Block::end`] or dropped.
    pub unsafe fn new(kernel: &dyn Fn(), stacks: &mut Vec<LaneStack>, random: Option<Random>) -> Self {
        // SAFETY: only the lifetime changes; the caller keeps `kernel` alive as long as the coroutines that call it.
        let kernel = unsafe { std::mem::transmute::<&dyn Fn(), &'static dyn Fn()>(kernel) };
        let threads = context().all_threads();
        let lane = |stack| {
            Coroutine::with_stack(stack, move |yielder: &corosensei::Yielder<(), ()>, ()| {
                let context = context();
                context.lanes[context.current].yielder = yielder;
                kernel();
            })
        };
        let routines = stacks.drain(..threads).map(lane).collect();
        let runnable = (0..threads.div_ceil(32)).collect();
        Self {
            routines,
            random,
            barriers: (0..context().cluster).map(|_| Barriers::default()).collect(),
            groups: vec![Vec::new(); threads.div_ceil(32)],
            runnable,
            steps_at_give_up: u64::MAX,
            steps_before: 0,
            idle_turns: 0,
        }
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
        loop {
            self.absorb_woken();
            if self.only_polls() {
                if !self.unstick()? {
                    diagnose(context())?;
                    return Err(context().endless_poll());
                }
                continue;
            }
            if self.runnable.is_empty() {
                if self.unstick()? {
                    continue;
                }
                let polls = context().wake_all_pollers();
                diagnose(context())?;
                return if polls { Err(context().endless_poll()) } else { context().flights_at_end() };
            }
            self.land_at_random()?;
            let pick = match &mut self.random {
                Some(random) => random.below(self.runnable.len()),
                None => 0,
            };
            let warp = self.runnable.remove(pick);
            match self.run_warp(warp)? {
                // Behind the others, so that a lane that waits for another warp's store sees it come.
                Turn::Yielded => self.queue(warp),
                Turn::Stopped => self.stopped(warp)?,
            }
        }
    }

    /// Whether those that can run have all had their turns, and did nothing but look for what others are to write.
    fn only_polls(&mut self) -> bool {
        let steps = context().steps_aside_polls();
        if steps != self.steps_before {
            (self.steps_before, self.idle_turns) = (steps, 0);
        }
        self.idle_turns += 1;
        let only_polls =
            !self.runnable.is_empty() && self.idle_turns > IDLE_TURNS * (self.runnable.len() + 1);
        if only_polls {
            self.idle_turns = 0;
        }
        only_polls
    }

    fn queue(&mut self, warp: usize) {
        if !self.runnable.contains(&warp) {
            self.runnable.push(warp);
        }
    }

    /// Queues the warps whose blocked lanes an mbarrier has let go.
    fn absorb_woken(&mut self) {
        let context = context();
        for index in 0..context.woken.len() {
            self.queue(context.woken[index]);
        }
        context.woken.clear();
    }

    /// In a random order, lets a copy land now and then.
    fn land_at_random(&mut self) -> Result<(), Fault> {
        let flights = context().flights.len();
        let Some(random) = self.random.as_mut().filter(|_| flights > 0) else { return Ok(()) };
        match random.below(4) {
            0 => context().land(random.below(flights)),
            _ => Ok(()),
        }
    }

    /// Nothing can run: copies that a lane waits for land; failing that, waits answer false, once, and whoever polls looks once more. Whether anything changed.
    fn unstick(&mut self) -> Result<bool, Fault> {
        let context = context();
        if context.land_awaited()? {
            return Ok(true);
        }
        if context.report.lane_steps > context.step_limit {
            return Err(context.out_of_steps(None));
        }
        let steps = context.steps_aside_polls() - context.report.mbarrier_waits;
        if steps == self.steps_at_give_up {
            return Ok(false);
        }
        self.steps_at_give_up = steps;
        let mut any = context.wake_all_pollers();
        for index in 0..context.mbarriers.len() {
            for thread in std::mem::take(&mut context.mbarriers[index].waiters) {
                context.wake(thread, false);
                any = true;
            }
        }
        Ok(any)
    }

    fn run_warp(&mut self, warp: usize) -> Result<Turn, Fault> {
        let threads = context().warp_threads(warp);
        loop {
            if self.run_lanes(threads.clone())? {
                return Ok(Turn::Yielded);
            }
            match context().standing(warp)? {
                Standing::Together(collective) if !collective.is_wider_than_warp() => {
                    let context = context();
                    if context.report.lane_steps > context.step_limit {
                        return Err(context.out_of_steps(Some(context.lane_place(threads.start))));
                    }
                    context.execute(warp, collective)?;
                    context.requests.flush(threads.clone(), &mut context.report);
                }
                // Its requests are complete when its lanes are together again.
                Standing::Blocked => return Ok(Turn::Stopped),
                standing => {
                    let context = context();
                    if standing == Standing::Finished {
                        context.products_at_end(warp)?;
                    }
                    context.requests.flush(threads, &mut context.report);
                    return Ok(Turn::Stopped);
                }
            }
            if self.random.as_mut().is_some_and(|random| random.below(2) == 0) {
                return Ok(Turn::Yielded);
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
        // A lane may have let go an earlier one.
        let woken = &context().woken;
        Ok(left || !woken.is_empty() && woken.contains(&(threads.start / 32)))
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
            context.lane_ended(thread)?;
        }
        Ok(())
    }

    /// A warp that can't run: if it waits for other warps, it has arrived, and the last to arrive lets all go on.
    fn stopped(&mut self, warp: usize) -> Result<(), Fault> {
        let context = context();
        let Standing::Together(collective) = context.standing(warp)? else { return Ok(()) };
        match collective {
            Collective::Barrier { .. } => {
                let released = self.barriers[context.rank_of(32 * warp)].arrive(context, warp)?;
                self.runnable.extend(released);
                self.runnable.sort_unstable();
                Ok(())
            }
            Collective::ClusterWait => context.wait_at_cluster_barrier(warp),
            _ => self.meet_warpgroup(warp, collective),
        }
    }

    fn meet_warpgroup(&mut self, warp: usize, collective: Collective) -> Result<(), Fault> {
        let context = context();
        let (group, first) = (context.warpgroup_of(warp), 32 * warp);
        if 32 * (group + 4) > (context.rank_of(first) + 1) * context.threads as usize {
            let threads = context.threads;
            let detail = format!(
                "{} needs a warpgroup, 4 whole warps from a multiple of 4 on; the block has {threads} threads",
                collective.name()
            );
            return Err(context.fault(
                FaultKind::WarpDivergence,
                Some(context.lane_place(first)),
                None,
                detail,
            ));
        }
        let met = &mut self.groups[group];
        let before = met.first().map(|before| 32 * before);
        if let Some(before) = before.filter(|&before| !context.same_place(before, first)) {
            let detail = format!(
                "waits in {}, but another warp of its warpgroup is at {}",
                collective.name(),
                context.lanes[before].collective.name()
            );
            let (at, other) = (context.lane_place(first), context.lane_place(before));
            return Err(context.fault(FaultKind::WarpDivergence, Some(at), Some(other), detail));
        }
        met.push(warp);
        if met.len() == 4 {
            context.execute_warpgroup(group, collective)?;
            self.runnable.append(met);
            self.runnable.sort_unstable();
        }
        Ok(())
    }
}
