//! Clusters: blocks that run together, meet at a barrier of their own and reach into each other's shared memory.

use crate::clock::{Stamp, VectorClock};
use crate::context::Context;
use crate::fault::{Fault, FaultKind};
use crate::lane::State;
use crate::shared::RANK_SHIFT;
use crate::site::Site;

/// The most blocks of a cluster, as on devices that are asked for more than the portable eight.
pub(crate) const MOST_BLOCKS: u32 = 16;

/// One block of the running cluster.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Threads that have not ended.
    running: usize,
    /// The last access of each thread that is of another block to this one's memory: its stamp, and where.
    touched: Vec<(Stamp, Site)>,
}

impl Peer {
    pub fn new(threads: usize) -> Self {
        Self { running: threads, touched: Vec::new() }
    }
}

/// `barrier.cluster`.
#[derive(Debug)]
pub(crate) struct ClusterBarrier {
    /// Phases completed.
    phase: u64,
    /// Of each warp that has come, the phase that it has arrived at and not waited for.
    arrived: Vec<Option<u64>>,
    /// Warps that wait.
    waiting: Vec<usize>,
    /// What those who arrived have done and seen; of completed phases, and with the present one's.
    completed: VectorClock,
    gathering: VectorClock,
}

impl Default for ClusterBarrier {
    fn default() -> Self {
        Self {
            phase: 0,
            arrived: Vec::new(),
            waiting: Vec::new(),
            completed: VectorClock::new(),
            gathering: VectorClock::new(),
        }
    }
}

impl Context {
    fn cluster_barrier_fault(&self, warp: usize, detail: &str) -> Fault {
        self.fault(FaultKind::BarrierDivergence, Some(self.lane_place(32 * warp)), None, detail.to_owned())
    }

    /// `barrier.cluster.arrive` of a warp: releases what it has done and seen unless `relaxed`.
    pub fn arrive_at_cluster_barrier(&mut self, warp: usize, relaxed: bool) -> Result<(), Fault> {
        let warps = self.all_threads().div_ceil(32);
        let barrier = &mut self.cluster_barrier;
        barrier.arrived.resize(warps, None);
        if barrier.arrived[warp].is_some() {
            let detail = "arrives at the cluster's barrier again before it has waited there";
            return Err(self.cluster_barrier_fault(warp, detail));
        }
        barrier.arrived[warp] = Some(barrier.phase);
        if !relaxed {
            self.clocks.release(warp, &mut barrier.gathering);
        }
        self.complete_cluster_barrier();
        Ok(())
    }

    /// `barrier.cluster.wait` of a warp, all of whose lanes wait: it goes on at once if the phase has completed.
    pub fn wait_at_cluster_barrier(&mut self, warp: usize) -> Result<(), Fault> {
        let barrier = &mut self.cluster_barrier;
        match barrier.arrived.get(warp).copied().flatten() {
            None => {
                let detail = "waits at the cluster's barrier without having arrived there";
                Err(self.cluster_barrier_fault(warp, detail))
            }
            Some(phase) => {
                barrier.waiting.push(warp);
                if phase < barrier.phase {
                    self.pass_cluster_barrier();
                }
                Ok(())
            }
        }
    }

    /// Ends the phase if every warp has arrived or ended.
    fn complete_cluster_barrier(&mut self) {
        let barrier = &self.cluster_barrier;
        let warps = 0..self.all_threads().div_ceil(32);
        let there = |warp: usize| {
            barrier.arrived[warp] == Some(barrier.phase)
                || self.states[self.warp_threads(warp)].iter().all(|&state| state == State::Finished)
        };
        // Where all have ended there is nobody to go on.
        let anyone = barrier.arrived.contains(&Some(barrier.phase));
        if !anyone || !warps.clone().all(there) {
            return;
        }
        let barrier = &mut self.cluster_barrier;
        barrier.phase += 1;
        barrier.completed = barrier.gathering;
        self.pass_cluster_barrier();
    }

    /// Lets those go on who wait for a completed phase.
    fn pass_cluster_barrier(&mut self) {
        for warp in std::mem::take(&mut self.cluster_barrier.waiting) {
            if self.cluster_barrier.arrived[warp] == Some(self.cluster_barrier.phase) {
                self.cluster_barrier.waiting.push(warp);
                continue;
            }
            self.cluster_barrier.arrived[warp] = None;
            self.clocks.acquire(warp, &self.cluster_barrier.completed);
            let threads = self.warp_threads(warp);
            self.states[threads].fill(State::Ready);
            self.woken.push(warp);
        }
    }

    /// A thread has ended: perhaps the cluster's barrier waited for it alone, and perhaps its block ends with it.
    pub fn leave_cluster(&mut self, thread: usize) -> Result<(), Fault> {
        if !self.cluster_barrier.arrived.is_empty() {
            self.complete_cluster_barrier();
        }
        let rank = self.rank_of(thread);
        let peer = &mut self.peers[rank];
        peer.running -= 1;
        if peer.running > 0 || self.cluster == 1 {
            return Ok(());
        }
        if let Some(flight) = self.flights.iter().find(|flight| self.mbarriers[flight.mbarrier].rank == rank)
        {
            return Err(self.left_in_flight(flight));
        }
        let warps = self.threads as usize / 32;
        let own = rank * warps..(rank + 1) * warps;
        let unseen = |&&(stamp, _): &&(Stamp, Site)| !self.clocks.seen_by(own.clone(), stamp);
        match self.peers[rank].touched.iter().find(unseen) {
            Some(&(stamp, site)) if self.clocks.enabled => {
                let detail = format!(
                    "uses the shared memory of rank {rank} of its cluster, which nothing keeps from ending before that"
                );
                let (at, ended) =
                    (self.place(stamp.thread() as usize, site), self.place(thread, Site::default()));
                Err(self.fault(FaultKind::Exited, Some(at), Some(ended), detail))
            }
            _ => Ok(()),
        }
    }

    /// `mapa`: the address in the block of `rank` of what `address` is in one's own.
    pub fn map_address(&self, address: u32, rank: u32, site: Site) -> Result<u32, Fault> {
        if address >> RANK_SHIFT != 0 || rank as usize >= self.cluster {
            let blocks = self.cluster;
            let detail = format!(
                "mapa of {address:#x} to rank {rank}: expected an address of the own block and a rank below {blocks}"
            );
            return Err(self.operand_fault(site, detail));
        }
        Ok((rank + 1) << RANK_SHIFT | address)
    }

    /// Lets the running lane do something to the shared memory that an address of [`Context::map_address`], or of the lane's own
    /// block, is in; the address within that block.
    pub fn at_mapped<T>(
        &mut self,
        address: u32,
        what: &str,
        site: Site,
        action: impl FnOnce(&mut Self, u32) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let rank = match address >> RANK_SHIFT {
            0 => self.rank,
            mapped => mapped as usize - 1,
        };
        if rank >= self.cluster {
            let blocks = self.cluster;
            let detail = format!("{what} at {address:#x}: expected an address in a cluster of {blocks}");
            let at = Some(self.place(self.current, site));
            return Err(self.fault(FaultKind::OutOfBounds, at, None, detail));
        }
        let now = self.clocks.now;
        let done = self.in_block(rank, what, site, |c| action(c, address & ((1 << RANK_SHIFT) - 1)))?;
        if rank != self.rank {
            let touched = &mut self.peers[rank].touched;
            match touched.iter_mut().find(|(other, _)| now.same_origin(*other)) {
                Some(last) => *last = (now, site),
                None => touched.push((now, site)),
            }
        }
        Ok(done)
    }

    /// Does something with the addresses of the block of `rank`, which must not have ended.
    pub fn in_block<T>(
        &mut self,
        rank: usize,
        what: &str,
        site: Site,
        action: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        if self.peers[rank].running == 0 {
            let detail =
                format!("{what} of the shared memory of rank {rank} of its cluster, which has ended");
            return Err(self.fault(FaultKind::Exited, Some(self.place(self.current, site)), None, detail));
        }
        self.shared.enter(rank);
        let done = action(self);
        self.shared.enter(self.rank);
        done
    }
}
