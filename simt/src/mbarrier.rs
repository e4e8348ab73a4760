//! Mbarriers: phases that complete when as many have arrived as were expected and all announced bytes have landed.

use crate::clock::{Agent, OWN_MEMORY_FLOOR, Stamp, VectorClock, WARPS};
use crate::context::{Context, Space};
use crate::fault::{Fault, FaultKind};
use crate::lane::State;
use crate::problem::Problem;
use crate::shadow::Conflict;
use crate::site::Site;

/// The most arrivals that an mbarrier counts, and the most bytes, in either direction.
const MOST_ARRIVALS: u32 = (1 << 20) - 1;
const MOST_BYTES: i64 = (1 << 20) - 1;

#[derive(Debug)]
pub(crate) struct Mbarrier {
    pub address: u32,
    /// Rank of the block in whose memory it is.
    pub rank: usize,
    /// Arrivals a phase.
    expected: u32,
    /// Arrivals that the phase still waits for.
    pending: u32,
    /// Bytes that the phase still waits for; negative while more have landed than were announced.
    pending_bytes: i64,
    /// Phases completed.
    phase: u64,
    /// What those who arrived have done and seen; of completed phases, and with the present one's.
    completed: VectorClock,
    gathering: VectorClock,
    /// The warps, a bit each, that have acquired what has been released to the completed phases.
    acquired: [u64; WARPS.div_ceil(64)],
    /// When and where it was initialised.
    initialised: (Stamp, Site),
    /// Who initialised it, and how many of its proxy fences had gone before.
    initialised_by: (usize, u16),
    /// Whether that thread has made it visible to the asynchronous proxy.
    pub fenced: bool,
    /// Lanes that wait, in order of their coming.
    pub waiters: Vec<usize>,
}

impl Mbarrier {
    fn is_at(&self, rank: usize, address: u32) -> bool {
        self.address == address && self.rank == rank
    }

    pub fn passed(&self, parity: u32) -> bool {
        self.phase & 1 != u64::from(parity)
    }

    pub fn lacks_bytes_alone(&self) -> bool {
        self.pending == 0
    }

    /// What it waits for, in words.
    pub fn describe(&self) -> String {
        let Self { pending, expected, phase, pending_bytes, .. } = self;
        let bytes = match pending_bytes {
            0 => String::new(),
            1.. => format!(", {pending_bytes} bytes to land"),
            _ => format!(", {} bytes more landed than were expected", -pending_bytes),
        };
        format!("phase {phase} has {pending} of {expected} arrivals to come{bytes}")
    }
}

impl Context {
    /// The fault of a bad use of an mbarrier by the running lane.
    #[cold]
    pub fn mbarrier_fault(&self, address: u32, site: Site, what: &str) -> Fault {
        let detail = format!("mbarrier at {}: {what}", self.shared.describe(address));
        self.fault(FaultKind::Mbarrier, Some(self.place(self.current, site)), None, detail)
    }

    pub fn init_mbarrier(&mut self, address: u32, count: u32, site: Site) -> Result<(), Fault> {
        if !(1..=MOST_ARRIVALS).contains(&count) {
            let what = format!("{count} arrivals expected, it counts 1 to {MOST_ARRIVALS}");
            return Err(self.mbarrier_fault(address, site, &what));
        }
        if let Err(problem) = self.shared.begin_mbarrier(address, &self.clocks, site) {
            return Err(self.access_fault(problem, Space::Shared(address), "mbarrier.init", 8, site));
        }
        let rank = self.shared.rank();
        let fresh = Mbarrier {
            address,
            rank,
            expected: count,
            pending: count,
            pending_bytes: 0,
            phase: 0,
            completed: VectorClock::new(),
            gathering: VectorClock::new(),
            acquired: Default::default(),
            initialised: (self.clocks.now, site),
            initialised_by: (self.current, self.shared.proxy_fences(self.current)),
            fenced: false,
            waiters: Vec::new(),
        };
        match self.mbarriers.iter_mut().find(|barrier| barrier.is_at(rank, address)) {
            Some(barrier) if barrier.waiters.is_empty() => *barrier = fresh,
            Some(_) => return Err(self.mbarrier_fault(address, site, "initialised while lanes wait at it")),
            None => self.mbarriers.push(fresh),
        }
        Ok(())
    }

    /// The index of the mbarrier that the running lane uses.
    pub fn use_mbarrier(&mut self, address: u32, what: &str, site: Site) -> Result<usize, Fault> {
        let used = self.shared.use_mbarrier(address, &self.clocks, site);
        let index = used.and_then(|exists| {
            let rank = self.shared.rank();
            let index = self.mbarriers.iter().position(|barrier| exists && barrier.is_at(rank, address));
            let Some(index) = index else { return Ok(None) };
            // The uses of others in between are atomic, so memory itself may have forgotten.
            let (stamp, site) = self.mbarriers[index].initialised;
            match !self.clocks.enabled || self.clocks.ordered(stamp, OWN_MEMORY_FLOOR) {
                true => Ok(Some(index)),
                false => Err(Problem::Race(Conflict { stamp, site, was_write: true })),
            }
        });
        match index {
            Ok(Some(index)) => Ok(index),
            Ok(None) => Err(self.mbarrier_fault(address, site, &format!("{what} before mbarrier.init"))),
            Err(problem) => Err(self.access_fault(problem, Space::Shared(address), what, 8, site)),
        }
    }

    /// Makes the mbarriers that the running lane initialised visible to all proxies.
    pub fn fence_mbarriers(&mut self) {
        let current = self.current;
        let own = self.mbarriers.iter_mut().filter(|barrier| barrier.initialised_by.0 == current);
        own.for_each(|barrier| barrier.fenced = true);
    }

    /// That copies may complete on an mbarrier.
    pub fn check_mbarrier_fence(&self, index: usize, site: Site) -> Result<(), Fault> {
        let barrier = &self.mbarriers[index];
        let (thread, fences) = barrier.initialised_by;
        if barrier.fenced || self.shared.proxy_fences(thread) != fences {
            return Ok(());
        }
        let target = self.shared.describe_in(barrier.rank, barrier.address);
        let detail = format!(
            "a bulk copy completes on the mbarrier at {target}, which no fence.mbarrier_init or fence.proxy.async of the \
             thread that initialised it has followed"
        );
        let at = Some(self.place(self.current, site));
        Err(self.fault(FaultKind::MissingFence, at, Some(self.place(thread, Site::default())), detail))
    }

    /// Announces `bytes` to the present phase.
    pub fn expect_bytes(&mut self, index: usize, bytes: u32, site: Site) -> Result<(), Fault> {
        let barrier = &mut self.mbarriers[index];
        barrier.pending_bytes += i64::from(bytes);
        if barrier.pending_bytes > MOST_BYTES {
            let what = format!("{} bytes expected, at most {MOST_BYTES} fit", barrier.pending_bytes);
            let address = barrier.address;
            return Err(self.mbarrier_fault(address, site, &what));
        }
        Ok(())
    }

    /// One arrival of the running lane, which releases what it has done and seen: of what other lanes of its warp have done, that
    /// which was ordered before.
    pub fn arrive_at(&mut self, index: usize, site: Site) -> Result<(), Fault> {
        let barrier = &mut self.mbarriers[index];
        if barrier.pending == 0 {
            let what = format!("one arrival too many: {}", barrier.describe());
            let address = barrier.address;
            return Err(self.mbarrier_fault(address, site, &what));
        }
        barrier.pending -= 1;
        self.clocks.release_now(&mut barrier.gathering);
        self.complete(index);
        Ok(())
    }

    /// `bytes` of a copy have landed; `clock` is what its agent's clock says.
    pub fn landed(&mut self, index: usize, bytes: u32, agent: Agent, clock: u32) -> Result<(), Fault> {
        let barrier = &mut self.mbarriers[index];
        barrier.gathering.add_agent(agent, clock);
        barrier.pending_bytes -= i64::from(bytes);
        if barrier.pending_bytes < -MOST_BYTES {
            let (address, what) =
                (barrier.address, format!("more bytes landed than fit: {}", barrier.describe()));
            return Err(self.mbarrier_fault(address, Site::default(), &what));
        }
        self.complete(index);
        Ok(())
    }

    /// Ends the phase if nothing is missing, and wakes those who wait for that.
    fn complete(&mut self, index: usize) {
        let barrier = &mut self.mbarriers[index];
        if barrier.pending != 0 || barrier.pending_bytes != 0 {
            return;
        }
        barrier.pending = barrier.expected;
        barrier.phase += 1;
        barrier.completed = barrier.gathering;
        barrier.acquired = Default::default();
        for thread in std::mem::take(&mut barrier.waiters) {
            if self.mbarriers[index].passed(self.lanes[thread].waits_for.1) {
                self.wake(thread, true);
            } else {
                self.mbarriers[index].waiters.push(thread);
            }
        }
    }

    /// Lets a blocked lane go on, told whether its phase has completed.
    pub fn wake(&mut self, thread: usize, passed: bool) {
        self.states[thread] = State::Ready;
        self.lanes[thread].result[0] = u32::from(passed);
        self.woken.push(thread / 32);
    }

    /// Lets the running lane see what has been released to the completed phases.
    pub fn acquire_mbarrier(&mut self, index: usize) {
        let (warp, barrier) = (self.current / 32, &mut self.mbarriers[index]);
        let (word, bit) = (warp / 64, 1 << (warp % 64));
        if barrier.acquired[word] & bit == 0 {
            barrier.acquired[word] |= bit;
            self.clocks.acquire(warp, &barrier.completed);
        }
    }
}
