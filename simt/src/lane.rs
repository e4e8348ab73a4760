//! A lane's own state, and what it can wait in.

use std::collections::VecDeque;
use std::ptr;

use corosensei::Yielder;

use crate::accumulators::Accumulator;
use crate::bulk_store::Stores;
use crate::matrix::Factors;
use crate::polls::Found;
use crate::release::Fenced;
use crate::site::Site;

/// What a lane is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// In a collective.
    Waiting,
    /// At an mbarrier, on its own, or until somebody writes where it polls.
    Blocked,
    Finished,
}

/// What a waiting lane waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Collective {
    #[default]
    WarpSync,
    Ballot,
    Elect,
    ShflBfly,
    ShflIdx,
    ShflDown,
    ShflUp,
    Mma(Factors),
    Ldmatrix {
        trans: bool,
    },
    StmatrixTrans,
    Barrier {
        id: u32,
        threads: u32,
        /// `bar.sync 0`: all of the block, on one line.
        whole_block: bool,
        /// `bar.arrive`: doesn't wait.
        arrive: bool,
    },
    /// Of a warpgroup.
    SetMaxRegisters,
    /// Of a warpgroup.
    Wgmma {
        /// A comes from registers.
        registers: bool,
    },
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait,
    ClusterArrive {
        relaxed: bool,
    },
    ClusterWait,
}

impl Collective {
    /// Whether more than a warp meets there.
    pub fn is_wider_than_warp(self) -> bool {
        matches!(
            self,
            Collective::Barrier { .. }
                | Collective::SetMaxRegisters
                | Collective::Wgmma { .. }
                | Collective::ClusterWait
        )
    }

    /// The instruction.
    pub fn name(self) -> &'static str {
        match self {
            Collective::WarpSync => "bar.warp.sync",
            Collective::Ballot => "vote.ballot",
            Collective::ShflBfly => "shfl.bfly",
            Collective::ShflIdx => "shfl.idx",
            Collective::ShflDown => "shfl.down",
            Collective::ShflUp => "shfl.up",
            Collective::Mma(_) => "mma",
            Collective::Ldmatrix { trans: false } => "ldmatrix",
            Collective::Ldmatrix { trans: true } => "ldmatrix.trans",
            Collective::StmatrixTrans => "stmatrix.trans",
            Collective::Barrier { whole_block: true, .. } => "bar.sync 0",
            Collective::Barrier { arrive: true, .. } => "bar.arrive",
            Collective::Barrier { .. } => "bar.sync",
            Collective::Elect => "elect",
            Collective::SetMaxRegisters => "setmaxnreg",
            Collective::Wgmma { .. } => "wgmma",
            Collective::WgmmaFence => "wgmma.fence",
            Collective::WgmmaCommit => "wgmma.commit_group",
            Collective::WgmmaWait => "wgmma.wait_group",
            Collective::ClusterArrive { .. } => "barrier.cluster.arrive",
            Collective::ClusterWait => "barrier.cluster.wait",
        }
    }
}

/// A 16-byte copy on its way to shared memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy {
    pub shared: u32,
    pub data: [u8; 16],
    pub init: u16,
    pub group: u32,
    /// How many the lane had issued before.
    pub number: u64,
    pub site: Site,
}

/// A lane's own state. What it brings to a collective and takes from it lies in `operands` and `result`.
#[derive(Debug)]
pub(crate) struct Lane {
    pub yielder: *const Yielder<(), ()>,
    pub collective: Collective,
    pub site: Site,
    pub operands: [u32; 10],
    /// The accumulators that it lends to a collective, as bits: where, and how many. None while it runs.
    accumulators: (*mut u32, usize),
    pub result: [u32; 4],
    pub copies: VecDeque<Copy>,
    pub copies_issued: u64,
    /// Groups committed so far.
    pub groups: u32,
    pub stores: Stores,
    pub fenced: Fenced,
    /// Where it polls.
    pub found: Found,
    /// Blocked: the index of the mbarrier, and the parity of the phase.
    pub waits_for: (usize, u32),
}

// SAFETY: `yielder` and `accumulators` are followed only while the coroutine they belong to is suspended within a launch, which
// one thread runs from beginning to end; between launches nobody follows them.
unsafe impl Send for Lane {}

impl Default for Lane {
    fn default() -> Self {
        Self {
            yielder: ptr::null(),
            collective: Collective::default(),
            site: Site::default(),
            operands: [0; 10],
            accumulators: (ptr::NonNull::dangling().as_ptr(), 0),
            result: [0; 4],
            copies: VecDeque::new(),
            copies_issued: 0,
            groups: 0,
            stores: Stores::default(),
            fenced: Fenced::default(),
            found: Found::default(),
            waits_for: (0, 0),
        }
    }
}

impl Lane {
    /// The accumulators lent to the collective that the lane waits in.
    pub fn accumulators(&self) -> &[u32] {
        let (start, count) = self.accumulators;
        // SAFETY: empty, or set by `lend_accumulators` from a slice of f32 or i32, as large and as aligned as u32 and like it
        // of any bits, that the lane, now suspended, has borrowed mutably; it takes them back before it goes on, or the next
        // block does so if it was unwound.
        unsafe { std::slice::from_raw_parts(start, count) }
    }

    pub fn accumulators_mut(&mut self) -> &mut [u32] {
        let (start, count) = self.accumulators;
        // SAFETY: as for `accumulators`; `self` is borrowed mutably, so nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(start, count) }
    }

    /// Lends `accumulators` until [`Lane::take_accumulators_back`]; the caller waits in a collective and nothing else meanwhile.
    pub fn lend_accumulators<T: Accumulator>(&mut self, accumulators: &mut [T]) {
        const { assert!(size_of::<T>() == size_of::<u32>() && align_of::<T>() == align_of::<u32>()) };
        self.accumulators = (accumulators.as_mut_ptr().cast(), accumulators.len());
    }

    pub fn take_accumulators_back(&mut self) {
        self.accumulators = (ptr::NonNull::dangling().as_ptr(), 0);
    }
}
