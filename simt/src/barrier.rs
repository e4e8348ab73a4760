//! `bar.sync` and `bar.arrive`: barriers of whole warps.

use crate::clock::VectorClock;
use crate::context::Context;
use crate::fault::{Fault, FaultKind, Place};
use crate::lane::{Collective, State};

/// One of the 16 barriers.
#[derive(Debug)]
struct Barrier {
    /// Threads that have arrived.
    present: u32,
    /// The first thread that arrived: its number, what it waits in, and where.
    first: Option<(usize, Collective, Place)>,
    /// Warps that wait.
    waiting: Vec<usize>,
    /// What those who arrived have done and seen.
    clock: VectorClock,
}

impl Default for Barrier {
    fn default() -> Self {
        Self { present: 0, first: None, waiting: Vec::new(), clock: VectorClock::new() }
    }
}

/// The barriers of a block.
#[derive(Debug, Default)]
pub(crate) struct Barriers([Barrier; 16]);

impl Barriers {
    /// A warp, all of whose lanes wait at a barrier, arrives there. The warps that may go on.
    pub fn arrive(&mut self, context: &mut Context, warp: usize) -> Result<Vec<usize>, Fault> {
        let first = 32 * warp;
        let collective = context.lanes[first].collective;
        let Collective::Barrier { id, threads, whole_block, arrive } = collective else {
            return Ok(Vec::new());
        };
        if id > 15 || threads == 0 || (!whole_block && threads % 32 != 0) {
            let name = collective.name();
            let detail = format!("{name} {id}, {threads}: expected a barrier below 16 and whole warps");
            let at = Some(context.lane_place(first));
            return Err(context.fault(FaultKind::BarrierDivergence, at, None, detail));
        }
        let barrier = &mut self.0[id as usize];
        barrier.check(context, first, collective)?;
        barrier.present += context.warp_threads(warp).len() as u32;
        context.clocks.release(warp, &mut barrier.clock);
        let mut released = Vec::new();
        if arrive {
            released.push(warp);
        } else {
            barrier.waiting.push(warp);
        }
        if barrier.present >= threads {
            context.report.barriers += 1;
            for &warp in &barrier.waiting {
                context.clocks.acquire(warp, &barrier.clock);
            }
            released.append(&mut barrier.waiting);
            *barrier = Barrier::default();
        }
        for &warp in &released {
            let threads = context.warp_threads(warp);
            context.states[threads].fill(State::Ready);
        }
        Ok(released)
    }
}

impl Barrier {
    /// That whoever arrives means the same barrier as the first who did.
    fn check(&mut self, context: &Context, thread: usize, collective: Collective) -> Result<(), Fault> {
        let at = context.lane_place(thread);
        let Some((_, before, place)) = self.first else {
            self.first = Some((thread, collective, at));
            return Ok(());
        };
        let (
            Collective::Barrier { threads, whole_block, .. },
            Collective::Barrier { id, threads: others, whole_block: others_whole, .. },
        ) = (before, collective)
        else {
            return Ok(());
        };
        let same = threads == others && whole_block == others_whole;
        if !same || (whole_block && place.location != at.location) {
            let detail =
                format!("meets at barrier {id} a warp that waits on another line or for another number");
            return Err(context.fault(FaultKind::BarrierDivergence, Some(at), Some(place), detail));
        }
        Ok(())
    }
}

/// Nothing can run: fine if all lanes have ended.
pub(crate) fn diagnose(context: &Context) -> Result<(), Fault> {
    let threads = context.all_threads();
    let stuck = |thread: &usize| matches!(context.states[*thread], State::Waiting | State::Blocked);
    let blocked = |thread: &usize| context.states[*thread] == State::Blocked;
    // A phase that lacks bytes alone explains most: those who copy have done their part.
    let lacks_bytes =
        |thread: &usize| context.mbarriers[context.lanes[*thread].waits_for.0].lacks_bytes_alone();
    let blocked = (0..threads)
        .find(|thread| blocked(thread) && lacks_bytes(thread))
        .or_else(|| (0..threads).find(blocked));
    let Some(first) = blocked.or_else(|| (0..threads).find(stuck)) else { return Ok(()) };
    let at = context.lane_place(first);
    let elsewhere = (0..threads).filter(stuck).find(|&thread| !context.same_wait(thread, first));
    let other = elsewhere.map(|thread| context.lane_place(thread));
    if blocked.is_some() {
        let (index, parity) = context.lanes[first].waits_for;
        let barrier = &context.mbarriers[index];
        let target = context.shared.describe_in(barrier.rank, barrier.address);
        let detail = format!("waits at the mbarrier at {target} for parity {parity}: {}", barrier.describe());
        return Err(context.fault(FaultKind::Deadlock, Some(at), other, detail));
    }
    let absent = (0..threads).find(|&thread| context.states[thread] == State::Finished).map(|thread| {
        let thread = thread % context.threads as usize;
        format!("warp {} lane {} has finished", thread / 32, thread % 32)
    });
    let reason = absent.unwrap_or_else(|| match elsewhere {
        Some(_) => "others wait elsewhere".to_owned(),
        None => "too few threads come".to_owned(),
    });
    let whole_block = |thread: usize| {
        matches!(context.lanes[thread].collective, Collective::Barrier { whole_block: true, .. })
    };
    let all_whole = (0..threads).filter(stuck).all(whole_block);
    let kind = if all_whole { FaultKind::BarrierDivergence } else { FaultKind::Deadlock };
    let detail = match context.lanes[first].collective {
        Collective::Barrier { id, threads, .. } => {
            format!("waits at barrier {id} for {threads} threads, but {reason}")
        }
        Collective::ClusterWait => format!("waits in barrier.cluster.wait for its cluster, but {reason}"),
        other => format!("waits in {} for the rest of its warpgroup, but {reason}", other.name()),
    };
    Err(context.fault(kind, Some(at), other, detail))
}

impl Context {
    /// Whether two stuck lanes wait for the same.
    fn same_wait(&self, one: usize, other: usize) -> bool {
        self.states[one] == self.states[other]
            && match self.states[one] {
                State::Blocked => self.lanes[one].waits_for == self.lanes[other].waits_for,
                _ => self.same_place(one, other),
            }
    }

    /// That a lane has left nothing behind.
    pub fn lane_ended(&mut self, thread: usize) -> Result<(), Fault> {
        let copy = self.lanes[thread].copies.front();
        if let Some(copy) = copy.filter(|_| !self.arrival_follows(thread)) {
            let target = self.shared.describe(copy.shared);
            let detail = format!("ended before it waited for its copy to {target}");
            let at = self.place(thread, copy.site);
            return Err(self.fault(FaultKind::InFlight, Some(at), None, detail));
        }
        self.stores_at_end(thread)?;
        self.leave_cluster(thread)
    }
}
