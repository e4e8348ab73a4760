//! Who has seen whose accesses: one logical clock a warp, one vector clock a warp.
//!
//! A warp's clock advances whenever its lanes are ordered among themselves (`bar.warp.sync`, barriers) or one of them releases
//! (an arrival at an mbarrier, a fence); a barrier also merges the vector clocks of the warps that meet there. An access is
//! stamped with its lane and the clock of its warp; it happened before another exactly if the other's warp has seen that lane
//! at that clock.
//!
//! Lanes that merely meet (shuffles, votes, `mma`, `ldmatrix`) have seen nothing of each other. So a release by one lane covers
//! all that this lane has done, and of the other lanes of its warp what was ordered among them before. A [`VectorClock`] tells
//! the two apart; what a lane acquires, on the other hand, counts for its whole warp.
//!
//! What a lane sets off but doesn't do itself (bulk copies, `wgmma`) is stamped with the clock of an [`Agent`]. Nobody has
//! seen that until it waits in the way the instruction asks for. Blocks of one launch see each other through releases alone.

use crate::release::Releases;

/// Bits of a stamp: 24 of cluster (of one block, where there are none), 14 of thread in it or agent, 1 for atomics, 25 of clock. 0
/// is older than everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stamp(u64);

const THREAD_SHIFT: u32 = 26;
const BLOCK_SHIFT: u32 = 40;
const ATOMIC: u64 = 1 << 25;
const CLOCK_MASK: u64 = ATOMIC - 1;
/// The last serial of a cluster that fits a stamp.
pub(crate) const LAST_SERIAL: u64 = (1 << 24) - 1;
/// The floor of memory that no other block sees: whatever another block did to it is over.
pub(crate) const OWN_MEMORY_FLOOR: u64 = u64::MAX;

/// The most warps that run together: those of a cluster.
pub(crate) const WARPS: usize = 320;
/// Components of agents, which come first in a vector clock.
const AGENTS: usize = 145;
/// Components of a vector clock: agents, then warps.
const COMPONENTS: usize = AGENTS + WARPS;
/// The row of `seen` that stands for all warps of a warpgroup at once.
const WARPGROUP_VIEW: usize = WARPS;
/// Stamps of agents count from here: all threads and the component.
const FIRST_AGENT: u32 = 32 * WARPS as u32;

/// Who accesses memory on a lane's behalf, at a time of its own. Where there are more of a kind than components, some share
/// one, which can only hide a race.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Agent {
    /// Copies that complete on the mbarrier of this index.
    Mbarrier(usize),
    /// The matrix products of the warpgroup whose first warp is four times this.
    Warpgroup(usize),
    /// The reading side of a warp's bulk stores.
    StoreSource(usize),
    /// The writing side of a warp's bulk stores.
    StoreTarget(usize),
    /// The launches that may not have ended when this one began. Who has seen it has waited for them.
    Launches,
}

impl Agent {
    pub fn component(self) -> usize {
        match self {
            Agent::Mbarrier(index) => index % 48,
            Agent::Warpgroup(group) => 48 + group % 40,
            Agent::StoreSource(warp) => 88 + warp % 28,
            Agent::StoreTarget(warp) => 116 + warp % 28,
            Agent::Launches => 144,
        }
    }
}

impl Stamp {
    #[inline(always)]
    pub fn atomic(self) -> Self {
        Self(self.0 | ATOMIC)
    }
    #[inline(always)]
    pub fn is_atomic(self) -> bool {
        self.0 & ATOMIC != 0
    }
    /// The thread, or from [`FIRST_AGENT`] on an agent.
    #[inline(always)]
    pub fn thread(self) -> u32 {
        (self.0 >> THREAD_SHIFT) as u32 & 0x3fff
    }
    pub fn is_agent(self) -> bool {
        self.thread() >= FIRST_AGENT
    }
    /// Serial number of the cluster over the life of the device.
    #[inline(always)]
    pub fn block(self) -> u64 {
        self.0 >> BLOCK_SHIFT
    }
    #[inline(always)]
    pub fn clock(self) -> u32 {
        (self.0 & CLOCK_MASK) as u32
    }
    /// Whether another stamp is of the same thread or agent of the same cluster.
    #[inline(always)]
    pub fn same_origin(self, other: Self) -> bool {
        (self.0 ^ other.0) >> THREAD_SHIFT == 0
    }
    /// Where vector clocks keep what was seen of it.
    #[inline(always)]
    pub fn component(self) -> usize {
        let thread = self.thread();
        if thread < FIRST_AGENT { of_warp(thread as usize >> 5) } else { (thread - FIRST_AGENT) as usize }
    }
    /// Whether another stamp is of the same warp at the same time: to other warps they are one, unless a lane of it has released.
    #[inline(always)]
    pub fn same_warp_and_clock(self, other: Self) -> bool {
        const LANE: u64 = 31 << THREAD_SHIFT | ATOMIC;
        self.0 | LANE == other.0 | LANE && self.thread() < FIRST_AGENT
    }
}

/// The component of a warp.
#[inline(always)]
const fn of_warp(warp: usize) -> usize {
    AGENTS + warp
}

/// What has been seen of everybody, own warp included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VectorClock {
    /// Of each component, the clock up to which all was seen.
    all: [u32; COMPONENTS],
    /// Of each warp, the clock up to which `lanes` (a bit each) were seen. Void where it isn't above that of all lanes. Lanes that
    /// were seen up to different clocks share the highest, which can only hide a race.
    some: [u32; WARPS],
    lanes: [u32; WARPS],
    /// Nothing was seen of warps from this one on.
    warps: usize,
}

impl VectorClock {
    pub const fn new() -> Self {
        Self { all: [0; COMPONENTS], some: [0; WARPS], lanes: [0; WARPS], warps: 0 }
    }

    /// Whether what `past` stamps was seen.
    #[inline(always)]
    pub fn covers(&self, past: Stamp) -> bool {
        let them = past.component();
        past.clock() <= self.all[them]
            || them.checked_sub(AGENTS).is_some_and(|warp| {
                past.clock() <= self.some[warp] && self.lanes[warp] >> (past.thread() & 31) & 1 != 0
            })
    }

    /// Adds what another has seen.
    pub fn join(&mut self, other: &Self) {
        self.warps = self.warps.max(other.warps);
        for (all, others) in self.all.iter_mut().zip(&other.all[..of_warp(self.warps)]) {
            *all = (*all).max(*others);
        }
        for warp in 0..self.warps {
            let all = self.all[of_warp(warp)];
            let (ours, theirs) = (self.some[warp], other.some[warp]);
            let of = |some: u32, lanes: u32| if some > all { lanes } else { 0 };
            self.lanes[warp] = of(ours, self.lanes[warp]) | of(theirs, other.lanes[warp]);
            self.some[warp] = ours.max(theirs);
        }
    }

    /// Adds what a thread has done up to `clock`, the highest there is of its warp.
    fn add_thread(&mut self, thread: usize, clock: u32) {
        let (warp, lane) = (thread / 32, thread % 32);
        let known = if self.some[warp] > self.all[of_warp(warp)] { self.lanes[warp] } else { 0 };
        self.lanes[warp] = known | 1 << lane;
        self.some[warp] = clock;
        self.warps = self.warps.max(warp + 1);
    }

    /// Adds what all lanes of a warp have done up to `clock`, the highest there is of it.
    fn add_warp(&mut self, warp: usize, clock: u32) {
        self.all[of_warp(warp)] = clock;
        self.warps = self.warps.max(warp + 1);
    }

    /// Adds what an agent has done up to `clock`.
    pub fn add_agent(&mut self, agent: Agent, clock: u32) {
        let seen = &mut self.all[agent.component()];
        *seen = (*seen).max(clock);
    }

    /// What all of several have seen. Of lanes that each of them has seen more of than of their whole warp, at times more.
    fn least(of: &[Self]) -> Self {
        let warps = of.iter().map(|seen| seen.warps).max().unwrap_or(0);
        let mut least =
            Self { all: [u32::MAX; COMPONENTS], some: [u32::MAX; WARPS], lanes: [!0; WARPS], warps };
        for seen in of {
            for (least, all) in least.all.iter_mut().zip(&seen.all) {
                *least = (*least).min(*all);
            }
        }
        for seen in of {
            for warp in 0..WARPS {
                let (all, some) = (seen.all[of_warp(warp)], seen.some[warp]);
                let least_all = least.all[of_warp(warp)];
                let lanes = if some > least_all { seen.lanes[warp] } else { 0 };
                least.lanes[warp] &= if all > least_all { !0 } else { lanes };
                least.some[warp] = least.some[warp].min(all.max(some));
            }
        }
        least
    }
}

/// The clocks of the running cluster, as the running lane sees them.
#[derive(Debug)]
pub(crate) struct Clocks {
    /// Off: no access is recorded or checked.
    pub enabled: bool,
    /// The running lane's stamp.
    pub now: Stamp,
    /// Serial of the launch's first cluster: what is older is ordered before the launch, once it has waited for that.
    pub launch_floor: u64,
    /// What is older than this had ended when the launch began.
    pub ended_floor: u64,
    /// What the launch's blocks have released.
    pub releases: Releases,
    block: u64,
    /// The row of `seen` that counts: the running warp's, or [`WARPGROUP_VIEW`].
    view: usize,
    /// Of warps and agents.
    own: [u32; COMPONENTS],
    seen: Box<[VectorClock; WARPS + 1]>,
    /// Of each agent, the thread that last set it off.
    agent_threads: [u32; COMPONENTS],
}

impl Clocks {
    pub fn new() -> Self {
        Self {
            enabled: true,
            now: Stamp(0),
            launch_floor: 0,
            ended_floor: 0,
            releases: Releases::default(),
            block: 0,
            view: 0,
            own: [1; COMPONENTS],
            seen: Box::new([VectorClock::new(); WARPS + 1]),
            agent_threads: [0; COMPONENTS],
        }
    }

    /// Begins a cluster of so many warps.
    pub fn begin(&mut self, serial: u64, warps: usize) {
        self.block = serial;
        self.own = [1; COMPONENTS];
        self.seen[..warps].fill(VectorClock::new());
        self.releases.begin_block(serial);
    }

    /// Makes `thread` the one whose accesses are recorded.
    #[inline(always)]
    pub fn become_thread(&mut self, thread: usize) {
        self.view = thread >> 5;
        self.now = self.stamp(thread);
    }

    /// The stamp of what `thread` does now.
    #[inline(always)]
    fn stamp(&self, thread: usize) -> Stamp {
        let clock = u64::from(self.own[of_warp(thread >> 5)]);
        Stamp(self.block << BLOCK_SHIFT | (thread as u64) << THREAD_SHIFT | clock)
    }

    /// The thread behind a stamp of the running cluster: an agent's is the one that last set it off.
    pub fn thread_of(&self, stamp: Stamp) -> u32 {
        match stamp.thread() {
            thread if thread < FIRST_AGENT => thread,
            _ => self.agent_threads[stamp.component()],
        }
    }

    /// Whether what `past` stamps happened before what the running lane does. `floor` is the serial below which blocks are
    /// ordered before this one.
    #[inline(always)]
    pub fn ordered(&self, past: Stamp, floor: u64) -> bool {
        if past.block() != self.block {
            return past.block() < floor || self.releases.acquired(past);
        }
        past.thread() == self.now.thread() || self.seen[self.view].covers(past)
    }

    /// The serial below which blocks are ordered before the running lane: of those of earlier launches that may not have ended, none if
    /// nothing has told it so.
    #[inline(always)]
    pub fn floor(&self) -> u64 {
        let waited = self.ended_floor == self.launch_floor
            || self.seen[self.view].all[Agent::Launches.component()] > 0;
        if waited { self.launch_floor } else { self.ended_floor }
    }

    /// Orders all earlier launches before the running lane.
    pub fn wait_for_launches(&mut self) {
        self.seen[self.view].add_agent(Agent::Launches, 1);
    }

    /// Orders the lanes of a warp among themselves.
    pub fn sync_warp(&mut self, warp: usize) {
        self.seen[warp].add_warp(warp, self.own[of_warp(warp)]);
        self.advance(of_warp(warp));
    }

    fn advance(&mut self, component: usize) {
        self.own[component] += 1;
        if u64::from(self.own[component]) >= CLOCK_MASK {
            // 33 million synchronisations within one block: stop checking rather than report what isn't so.
            self.enabled = false;
        }
    }

    /// Adds what all lanes of `warp` have done and seen to `into`, which others will acquire.
    pub fn release(&mut self, warp: usize, into: &mut VectorClock) {
        into.join(&self.seen[warp]);
        into.add_warp(warp, self.own[of_warp(warp)]);
        self.advance(of_warp(warp));
    }

    /// As [`Clocks::release`], of the running lane alone, which goes on.
    pub fn release_now(&mut self, into: &mut VectorClock) {
        let thread = self.now.thread() as usize;
        into.join(&self.seen[thread >> 5]);
        into.add_thread(thread, self.own[of_warp(thread >> 5)]);
        self.advance(of_warp(thread >> 5));
        self.now = self.stamp(thread);
    }

    /// Lets `warp` see what `from` holds.
    pub fn acquire(&mut self, warp: usize, from: &VectorClock) {
        self.seen[warp].join(from);
    }

    /// Begins something that an agent does for `thread`; its stamp.
    pub fn set_off(&mut self, agent: Agent, thread: usize) -> Stamp {
        let component = agent.component();
        self.advance(component);
        self.agent_threads[component] = thread as u32;
        let clock = u64::from(self.own[component]);
        Stamp(self.block << BLOCK_SHIFT | u64::from(FIRST_AGENT + component as u32) << THREAD_SHIFT | clock)
    }

    /// Lets `warp` see what an agent did up to `clock`.
    pub fn see(&mut self, warp: usize, agent: Agent, clock: u32) {
        self.seen[warp].add_agent(agent, clock);
    }

    /// Whether any of `warps` has seen what `past` stamps.
    pub fn seen_by(&self, warps: std::ops::Range<usize>, past: Stamp) -> bool {
        self.seen[warps].iter().any(|seen| seen.covers(past))
    }

    /// Makes `stamp`, an agent's, what happens now, ordered after what all `warps` of a warpgroup have seen.
    pub fn become_warpgroup(&mut self, warps: std::ops::Range<usize>, stamp: Stamp) {
        self.seen[WARPGROUP_VIEW] = VectorClock::least(&self.seen[warps]);
        self.view = WARPGROUP_VIEW;
        self.now = stamp;
    }
}
