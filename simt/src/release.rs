//! What blocks release to each other through atomics on global memory.
//!
//! Blocks run one after another, so whoever acquires an address sees all that was released there before.

use std::collections::{BTreeSet, HashMap};

use crate::clock::{Stamp, VectorClock};
use crate::context::Context;

/// What one block has released at an address.
#[derive(Debug)]
struct Release {
    /// How many blocks had released there before.
    index: usize,
    clock: Box<VectorClock>,
}

/// The releases at one address.
#[derive(Debug, Default)]
struct Released {
    by_block: HashMap<u64, Release>,
    /// What the releasing blocks had acquired elsewhere.
    also: Acquired,
}

/// Of addresses (as indices): the number of blocks whose releases count.
type Acquired = HashMap<usize, usize>;

fn merge(into: &mut Acquired, from: &Acquired) {
    for (&address, &blocks) in from {
        let known = into.entry(address).or_default();
        *known = (*known).max(blocks);
    }
}

/// All releases of a launch.
#[derive(Debug, Default)]
pub(crate) struct Releases {
    index: HashMap<u64, usize>,
    released: Vec<Released>,
    block: u64,
    /// What the running block has acquired.
    acquired: Acquired,
}

impl Releases {
    pub fn begin_launch(&mut self) {
        self.index.clear();
        self.released.clear();
    }

    pub fn begin_block(&mut self, serial: u64) {
        self.block = serial;
        self.acquired.clear();
    }

    fn at(&mut self, address: u64) -> usize {
        let next = self.released.len();
        let index = *self.index.entry(address).or_insert(next);
        if index == next {
            self.released.push(Released::default());
        }
        index
    }

    /// Releases `clock` of the running block at `address`.
    pub fn release(&mut self, address: u64, clock: &VectorClock) {
        let (at, block) = (self.at(address), self.block);
        let released = &mut self.released[at];
        let index = released.by_block.len();
        let fresh = || Release { index, clock: Box::new(VectorClock::new()) };
        let release = released.by_block.entry(block).or_insert_with(fresh);
        release.clock.join(clock);
        merge(&mut released.also, &self.acquired);
    }

    /// Acquires what was released at `address`; what the running block itself released there.
    pub fn acquire(&mut self, address: u64) -> Option<VectorClock> {
        let at = self.at(address);
        let released = &self.released[at];
        merge(&mut self.acquired, &released.also);
        self.acquired.insert(at, released.by_block.len());
        released.by_block.get(&self.block).map(|release| *release.clock)
    }

    /// Whether the running block has acquired another block's access.
    #[cold]
    pub fn acquired(&self, past: Stamp) -> bool {
        self.acquired.iter().any(|(&address, &blocks)| {
            let release = self.released[address].by_block.get(&past.block());
            release.is_some_and(|r| r.index < blocks && r.clock.covers(past))
        })
    }
}

/// What a lane's fences and relaxed atomics have left for later.
#[derive(Debug, Default)]
pub(crate) struct Fenced {
    /// What the lane had done and seen at its last fence: its atomics release it.
    release: Option<Box<VectorClock>>,
    /// Where the lane's atomics have been since its last fence: the next one acquires.
    since: BTreeSet<u64>,
}

impl Context {
    /// A fence of the running lane.
    pub fn fence(&mut self) {
        let fenced = &mut self.lanes[self.current].fenced;
        for address in std::mem::take(&mut fenced.since) {
            self.acquire_at(address);
        }
        let fenced = &mut self.lanes[self.current].fenced;
        let clock = fenced.release.get_or_insert_with(|| Box::new(VectorClock::new()));
        self.clocks.release_now(clock);
    }

    /// The running lane acquires what was released at an address.
    pub fn acquire_at(&mut self, address: u64) {
        // Other blocks' releases count for the whole block, this one's for the warp.
        if let Some(own) = self.clocks.releases.acquire(address) {
            self.clocks.acquire(self.current / 32, &own);
        }
    }

    /// An atomic of the running lane.
    pub fn atomic_at(&mut self, address: u64) {
        self.relaxed_store_at(address);
        self.relaxed_load_at(address);
    }

    /// A relaxed store of the running lane.
    pub fn relaxed_store_at(&mut self, address: u64) {
        if let Some(clock) = &self.lanes[self.current].fenced.release {
            self.clocks.releases.release(address, clock);
        }
    }

    /// A relaxed load of the running lane.
    pub fn relaxed_load_at(&mut self, address: u64) {
        self.lanes[self.current].fenced.since.insert(address);
    }
}
