//! The state of the running launch, which intrinsics find through a thread-local pointer.

use std::cell::Cell;
use std::panic::Location;
use std::ptr;

use crate::accumulators::{Accumulator, WarpProducts};
use crate::bulk::Flight;
use crate::clock::{Clocks, Stamp};
use crate::cluster::{ClusterBarrier, Peer};
use crate::fault::{Fault, FaultKind, Place};
use crate::global::Global;
use crate::lane::{Collective, Copy, Lane, State};
use crate::mbarrier::Mbarrier;
use crate::polls::Sleepers;
use crate::problem::Problem;
use crate::random::Random;
use crate::report::Report;
use crate::requests::Requests;
use crate::shared::{Busy, FIRST_FLIGHT, Shared};
use crate::site::{Site, Sites};

/// The launch that runs, the blocks that run together, and their lanes.
#[derive(Debug)]
pub(crate) struct Context {
    pub global: Global,
    pub shared: Shared,
    pub clocks: Clocks,
    pub sites: Sites,
    pub report: Report,
    pub requests: Requests,
    pub kernel: String,
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Blocks of a cluster: they run together, and threads and warps are counted through all of them.
    pub cluster: usize,
    pub seed: Option<u64>,
    /// Index of the cluster's first block.
    pub first_block: u64,
    /// The running thread's block, its rank in the cluster, and its first thread.
    pub block: [u32; 3],
    pub rank: usize,
    pub first_thread: usize,
    /// The running thread.
    pub current: usize,
    /// Steps until the running thread lets others run, collective or not.
    pub patience: u32,
    /// Steps a launch may take.
    pub step_limit: u64,
    pub states: Vec<State>,
    pub lanes: Vec<Lane>,
    pub mbarriers: Vec<Mbarrier>,
    /// The blocks of the cluster.
    pub peers: Vec<Peer>,
    pub cluster_barrier: ClusterBarrier,
    /// What is on its way, in order of issue.
    pub flights: Vec<Flight>,
    pub last_flight: Busy,
    /// Of each warp.
    pub products: Vec<WarpProducts>,
    /// The name of the last accumulator that a warpgroup's product began.
    pub last_accumulator: u32,
    /// Steps of lanes that looked whether another has written something: no sign that anything goes on.
    pub polls: u64,
    /// Lanes that sleep until what they look at is written.
    pub sleepers: Sleepers,
    /// Where the last of them was.
    pub last_poll: (usize, Site),
    /// Warps of which a blocked lane has become ready.
    pub woken: Vec<usize>,
    /// Chooses when a launch in random order lets a wait answer false.
    pub random: Option<Random>,
    pub fault: Option<Box<Fault>>,
}

impl Context {
    pub fn new() -> Self {
        Self {
            global: Global::default(),
            shared: Shared::default(),
            clocks: Clocks::new(),
            sites: Sites::new(),
            report: Report::default(),
            requests: Requests::default(),
            kernel: String::new(),
            grid: [1; 3],
            threads: 0,
            cluster: 1,
            seed: None,
            first_block: 0,
            block: [0; 3],
            rank: 0,
            first_thread: 0,
            current: 0,
            patience: 0,
            step_limit: u64::MAX,
            states: Vec::new(),
            lanes: Vec::new(),
            mbarriers: Vec::new(),
            peers: Vec::new(),
            cluster_barrier: ClusterBarrier::default(),
            flights: Vec::new(),
            last_flight: FIRST_FLIGHT,
            polls: 0,
            sleepers: Sleepers::default(),
            last_poll: (0, Site::default()),
            products: Vec::new(),
            last_accumulator: 0,
            woken: Vec::new(),
            random: None,
            fault: None,
        }
    }

    /// The lanes of a warp.
    pub fn warp_threads(&self, warp: usize) -> std::ops::Range<usize> {
        32 * warp..(32 * warp + 32).min(self.all_threads())
    }

    /// Threads that run together.
    pub fn all_threads(&self) -> usize {
        self.threads as usize * self.cluster
    }

    /// Rank of the block that a thread is of.
    #[inline(always)]
    pub fn rank_of(&self, thread: usize) -> usize {
        if self.cluster == 1 { 0 } else { thread / self.threads as usize }
    }

    /// The first warp of a warp's warpgroup, which may lack warps.
    pub fn warpgroup_of(&self, warp: usize) -> usize {
        let first = self.rank_of(32 * warp) * self.threads as usize / 32;
        first + (warp - first) / 4 * 4
    }

    /// Makes `thread` the one whose accesses are recorded.
    #[inline(always)]
    pub fn become_thread(&mut self, thread: usize) {
        self.become_current(thread);
        self.clocks.become_thread(thread);
    }

    /// Makes `thread` the running one, and its block the one whose memory addresses mean.
    #[inline(always)]
    pub fn become_current(&mut self, thread: usize) {
        self.current = thread;
        if self.cluster > 1 {
            let rank = self.rank_of(thread);
            self.shared.enter(rank);
            if rank != self.rank {
                self.rank = rank;
                self.first_thread = rank * self.threads as usize;
                self.block = self.block_of(self.first_block + rank as u64);
            }
        }
    }

    /// Coordinates of a block from its index in the launch.
    pub fn block_of(&self, index: u64) -> [u32; 3] {
        let [x, y, _] = self.grid.map(u64::from);
        [(index % x) as u32, (index / x % y) as u32, (index / (x * y)) as u32]
    }

    pub fn place(&self, thread: usize, site: Site) -> Place {
        self.place_in(self.first_block, thread, site)
    }

    /// A thread of the cluster whose first block is given.
    fn place_in(&self, first_block: u64, thread: usize, site: Site) -> Place {
        let rank = self.rank_of(thread);
        let block = self.block_of(first_block + rank as u64);
        let thread = (thread - rank * self.threads as usize) as u32;
        Place { block, thread, location: self.sites.decode(site) }
    }

    /// None for a block of an earlier launch, of which nothing is known any more.
    fn place_of(&self, stamp: Stamp, site: Site) -> Option<Place> {
        if stamp.block() < self.clocks.launch_floor {
            return None;
        }
        let first_block = (stamp.block() - self.clocks.launch_floor) * self.cluster as u64;
        // An agent of another cluster can't be asked any more; that cluster's first thread stands for it.
        let known = first_block == self.first_block || !stamp.is_agent();
        let thread = if known { self.clocks.thread_of(stamp) } else { 0 };
        Some(self.place_in(first_block, thread as usize, site))
    }

    pub fn fault(&self, kind: FaultKind, at: Option<Place>, other: Option<Place>, detail: String) -> Fault {
        Fault { kind, kernel: self.kernel.as_str().into(), at, other, detail: detail.into(), seed: self.seed }
    }

    /// Steps of all lanes but those that poll.
    pub fn steps_aside_polls(&self) -> u64 {
        self.report.lane_steps - self.polls
    }

    /// The fault of a lane that polls for what nobody will write.
    #[cold]
    pub fn endless_poll(&self) -> Fault {
        let (thread, site) = self.last_poll;
        let detail = "polls for a value that nobody who still runs writes".to_string();
        self.fault(FaultKind::Deadlock, Some(self.place(thread, site)), None, detail)
    }

    /// The fault of a launch that shows no sign of ending.
    #[cold]
    pub fn out_of_steps(&self, at: Option<Place>) -> Fault {
        let detail = format!("more than {} steps of all lanes, and no end", self.step_limit);
        self.fault(FaultKind::Deadlock, at, None, detail)
    }

    /// The fault that the running lane's access is.
    #[cold]
    pub fn access_fault(
        &self,
        problem: Problem,
        space: Space,
        what: &str,
        bytes: usize,
        site: Site,
    ) -> Fault {
        let target = match space {
            Space::Global(address) => self.global.describe(address),
            Space::Shared(address) => self.shared.describe(address),
        };
        let at = Some(self.place(self.current, site));
        let (kind, other, detail) = match problem {
            Problem::OutOfBounds => {
                (FaultKind::OutOfBounds, None, format!("{what} of {bytes} bytes at {target}"))
            }
            Problem::Misaligned => (
                FaultKind::Misaligned,
                None,
                format!("{what} at {target}: expected a multiple of {bytes} bytes"),
            ),
            Problem::Uninitialised => (
                FaultKind::Uninitialised,
                None,
                format!("{what} of {bytes} bytes at {target}, which nobody wrote"),
            ),
            Problem::Race(conflict) => {
                let did = if conflict.was_write { "a write" } else { "a read" };
                let other = self.place_of(conflict.stamp, conflict.site);
                let whose =
                    if other.is_none() { " of an earlier launch, which was not waited for" } else { "" };
                let detail = format!("{what} of {bytes} bytes at {target}, unordered with {did}{whose}");
                (FaultKind::Race, other, detail)
            }
            Problem::InFlight(busy) => {
                let (thread, issued) = self.copy_behind(busy, space);
                let detail = format!("{what} of {bytes} bytes at {target}, where a copy is on its way");
                (FaultKind::InFlight, Some(self.place(thread, issued)), detail)
            }
            Problem::Mbarrier => (
                FaultKind::Mbarrier,
                None,
                format!("{what} of {bytes} bytes at {target}, where an mbarrier is"),
            ),
            Problem::MissingProxyFence(writer) => {
                let detail = format!(
                    "{what} of {bytes} bytes at {target}, which a thread stored without fence.proxy.async after it"
                );
                (FaultKind::MissingFence, Some(self.place(writer as usize, Site::default())), detail)
            }
        };
        self.fault(kind, at, other, detail)
    }

    /// Who issued the copy that marks its destination with `busy`, and where.
    fn copy_behind(&self, busy: Busy, space: Space) -> (usize, Site) {
        if let Some(flight) = self.flights.iter().find(|flight| flight.busy == busy) {
            return (flight.thread, flight.site);
        }
        let thread = self.shared.rank() * self.threads as usize + usize::from(busy) - 1;
        let Space::Shared(address) = space else { return (thread, Site::default()) };
        let here = |copy: &&Copy| copy.shared == address & !15;
        (thread, self.lanes[thread].copies.iter().find(here).map_or(Site::default(), |copy| copy.site))
    }

    /// Lets a `cp.async` of the running lane land.
    pub fn land_copy(&mut self, copy: Copy) -> Result<(), Fault> {
        let landed = self.shared.land_copy(copy.shared, (copy.data, copy.init), &self.clocks, copy.site);
        let space = Space::Shared(copy.shared);
        landed.map_err(|problem| self.access_fault(problem, space, "arrival of a copy", 16, copy.site))
    }
}

/// Where an access goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Space {
    Global(u64),
    Shared(u32),
}

thread_local! {
    static CURRENT: Cell<*mut Context> = const { Cell::new(ptr::null_mut()) };
}

/// Makes a context the thread's current one until dropped.
pub(crate) struct Current(*mut Context);

impl Current {
    pub fn set(context: *mut Context) -> Self {
        Self(CURRENT.replace(context))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// The running launch. The reference must not be held across a suspension, nor while another is made.
///
/// # Panics
/// Outside a launch.
#[inline(always)]
pub(crate) fn context<'a>() -> &'a mut Context {
    let context = CURRENT.get();
    assert!(!context.is_null(), "an intrinsic of the emulator was called outside a launch");
    // SAFETY: `launch` sets the pointer to a context that outlives the launch, and reaches it through that pointer alone. Lanes
    // and the scheduler take turns on one thread, and each of them lets go of its reference before it hands over.
    unsafe { &mut *context }
}

/// As [`context`], for an intrinsic that takes a step: lets others run when the lane has had its share.
#[inline(always)]
pub(crate) fn step<'a>() -> &'a mut Context {
    let context = context();
    context.report.lane_steps += 1;
    context.patience -= 1;
    if context.patience == 0 {
        return step_aside();
    }
    context
}

#[cold]
fn step_aside<'a>() -> &'a mut Context {
    let now = context();
    if now.report.lane_steps > now.step_limit {
        let at = now.place(now.current, Site::default());
        stop(now.out_of_steps(Some(at)));
    }
    suspend();
    context()
}

/// Hands over to the scheduler until it resumes the running lane.
#[inline(always)]
pub(crate) fn suspend() {
    let context = context();
    let yielder = context.lanes[context.current].yielder;
    // SAFETY: the running lane stored its coroutine's yielder when it began, and its coroutine is running now.
    unsafe { (*yielder).suspend(()) };
}

/// Waits in a collective; what the scheduler answers.
#[inline(always)]
pub(crate) fn wait_in(
    collective: Collective,
    operands: &[u32],
    location: &'static Location<'static>,
) -> [u32; 4] {
    let context = step();
    let site = context.sites.encode(location);
    let current = context.current;
    context.states[current] = State::Waiting;
    let lane = &mut context.lanes[current];
    lane.collective = collective;
    lane.site = site;
    lane.operands[..operands.len()].copy_from_slice(operands);
    suspend();
    let context = self::context();
    context.lanes[context.current].result
}

/// As [`wait_in`], in a collective that reads and writes the lane's accumulators.
#[inline(always)]
pub(crate) fn wait_in_with<T: Accumulator>(
    collective: Collective,
    operands: &[u32],
    accumulators: &mut [T],
    location: &'static Location<'static>,
) {
    let context = context();
    context.lanes[context.current].lend_accumulators(accumulators);
    wait_in(collective, operands, location);
    let context = self::context();
    context.lanes[context.current].take_accumulators_back();
}

/// Ends the launch: the running lane never goes on.
#[cold]
pub(crate) fn stop(fault: Fault) -> ! {
    context().fault = Some(Box::new(fault));
    loop {
        // The scheduler sees the fault and unwinds this lane from here.
        suspend();
    }
}
