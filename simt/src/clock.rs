//! Who has seen whose accesses: one logical clock a warp, one vector clock a warp.
//!
//! A warp's clock advances whenever its lanes are ordered among themselves (`bar.warp.sync`, shuffles, votes, barriers) or one
//! of them releases (an arrival at an mbarrier); a barrier also merges the vector clocks of the warps that meet there. An
//! access is stamped with its lane and the clock of its warp; it happened before another exactly if the other's warp has seen
//! that clock.
//!
//! What a lane sets off but doesn't do itself (bulk copies, `wgmma`) is stamped with the clock of an [`Agent`]. Nobody has
//! seen that until it waits in the way the instruction asks for. Blocks of one launch see each other through releases alone.

use crate::release::Releases;

/// Bits of a stamp: 26 of cluster (of one block, where there are none), 12 of thread in it or agent, 1 for atomics, 25 of clock. 0
/// is older than everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stamp(u64);

const THREAD_SHIFT: u32 = 26;
const BLOCK_SHIFT: u32 = 38;
const ATOMIC: u64 = 1 << 25;
const CLOCK_MASK: u64 = ATOMIC - 1;
/// The last serial of a cluster that fits a stamp.
pub(crate) const LAST_SERIAL: u64 = (1 << 26) - 1;
/// The floor of memory that no other block sees: whatever another block did to it is over.
pub(crate) const OWN_MEMORY_FLOOR: u64 = u64::MAX;

/// The most warps that run together: those of a cluster.
pub(crate) const WARPS: usize = 64;
/// Components of a vector clock: the warps, one that stays 0, then the agents.
pub(crate) const COMPONENTS: usize = 192;
pub(crate) type VectorClock = [u32; COMPONENTS];
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
}

impl Agent {
    pub fn component(self) -> usize {
        match self {
            Agent::Mbarrier(index) => 72 + index % 48,
            Agent::Warpgroup(group) => 120 + group % 16,
            Agent::StoreSource(warp) => 136 + warp % 28,
            Agent::StoreTarget(warp) => 164 + warp % 28,
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
        (self.0 >> THREAD_SHIFT) as u32 & 0xfff
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
        (if thread < FIRST_AGENT { thread >> 5 } else { thread - FIRST_AGENT }) as usize
    }
    /// Whether another stamp is of the same warp at the same time: to all other warps they are one.
    #[inline(always)]
    pub fn same_warp_and_clock(self, other: Self) -> bool {
        const LANE: u64 = 31 << THREAD_SHIFT | ATOMIC;
        self.0 | LANE == other.0 | LANE && self.thread() < FIRST_AGENT
    }
}

/// The clocks of the running cluster, as the running lane sees them.
#[derive(Debug)]
pub(crate) struct Clocks {
    /// Off: no access is recorded or checked.
    pub enabled: bool,
    /// The running lane's stamp.
    pub now: Stamp,
    /// Serial of the launch's first cluster: what is older is ordered before the launch.
    pub launch_floor: u64,
    /// What the launch's blocks have released.
    pub releases: Releases,
    block: u64,
    /// The row of `seen` that counts: the running warp's, or [`WARPGROUP_VIEW`].
    view: usize,
    /// Of warps and agents.
    own: VectorClock,
    seen: Box<[VectorClock; WARPS + 1]>,
    /// Of each agent, the thread that last set it off.
    agent_threads: [u32; COMPONENTS],
}

fn join(into: &mut VectorClock, from: &VectorClock) {
    for (into, from) in into.iter_mut().zip(from) {
        *into = (*into).max(*from);
    }
}

impl Clocks {
    pub fn new() -> Self {
        Self {
            enabled: true,
            now: Stamp(0),
            launch_floor: 0,
            releases: Releases::default(),
            block: 0,
            view: 0,
            own: [1; COMPONENTS],
            seen: Box::new([[0; COMPONENTS]; WARPS + 1]),
            agent_threads: [0; COMPONENTS],
        }
    }

    /// Begins a cluster of so many warps.
    pub fn begin(&mut self, serial: u64, warps: usize) {
        self.block = serial;
        self.own = [1; COMPONENTS];
        self.seen[..warps].fill([0; COMPONENTS]);
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
        let clock = u64::from(self.own[thread >> 5]);
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
        if past.thread() == self.now.thread() {
            return true;
        }
        let them = past.component();
        if them == self.view {
            past.clock() < self.own[them]
        } else {
            past.clock() <= self.seen[self.view][them]
        }
    }

    /// Orders the lanes of a warp among themselves.
    pub fn sync_warp(&mut self, warp: usize) {
        self.advance(warp);
    }

    fn advance(&mut self, component: usize) {
        self.own[component] += 1;
        if u64::from(self.own[component]) >= CLOCK_MASK {
            // 33 million synchronisations within one block: stop checking rather than report what isn't so.
            self.enabled = false;
        }
    }

    /// Adds what `warp` has done and seen to `into`, which others will acquire.
    pub fn release(&mut self, warp: usize, into: &mut VectorClock) {
        join(into, &self.seen[warp]);
        into[warp] = into[warp].max(self.own[warp]);
        self.advance(warp);
    }

    /// As [`Clocks::release`], by the running lane, which goes on.
    pub fn release_now(&mut self, into: &mut VectorClock) {
        let thread = self.now.thread() as usize;
        self.release(thread >> 5, into);
        self.now = self.stamp(thread);
    }

    /// Lets `warp` see what `from` holds.
    pub fn acquire(&mut self, warp: usize, from: &VectorClock) {
        join(&mut self.seen[warp], from);
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
        let seen = &mut self.seen[warp][agent.component()];
        *seen = (*seen).max(clock);
    }

    /// Whether any of `warps` has seen what `warp` did up to `clock`.
    pub fn seen_by(&self, warps: std::ops::Range<usize>, warp: usize, clock: u32) -> bool {
        self.seen[warps].iter().any(|seen| seen[warp] >= clock)
    }

    /// Makes `stamp`, an agent's, what happens now, ordered after what all `warps` of a warpgroup have seen.
    pub fn become_warpgroup(&mut self, warps: std::ops::Range<usize>, stamp: Stamp) {
        let mut least = [u32::MAX; COMPONENTS];
        for warp in warps {
            for (component, least) in least.iter_mut().enumerate() {
                let seen = if component == warp { self.own[warp] - 1 } else { self.seen[warp][component] };
                *least = (*least).min(seen);
            }
        }
        self.seen[WARPGROUP_VIEW] = least;
        self.view = WARPGROUP_VIEW;
        self.now = stamp;
    }
}
