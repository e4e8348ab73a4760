//! What a launch is stopped for.

use std::fmt;
use std::panic::Location;

/// The kinds of [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// An address outside every live allocation, or outside the block's shared memory.
    OutOfBounds,
    /// An address that isn't a multiple of the access's size.
    Misaligned,
    /// A read of bytes that nobody wrote.
    Uninitialised,
    /// Two accesses to the same bytes, at least one of them a write, that nothing orders.
    Race,
    /// A use of shared memory that an asynchronous copy is still on its way to, or of accumulators that `wgmma` still writes;
    /// or such work never waited for.
    InFlight,
    /// A use of the shared memory of another block of the cluster that has ended, or that nothing keeps from ending before.
    Exited,
    /// A barrier that some lanes reach and others can't any more.
    BarrierDivergence,
    /// Lanes of a warp that disagree about the warp-wide instruction they execute.
    WarpDivergence,
    /// Nothing can run and not everything has ended.
    Deadlock,
    /// A value or memory handed to another proxy or to `wgmma` without the fence that makes it visible there.
    MissingFence,
    /// An mbarrier used before it was initialised, touched as memory, or given more arrivals or bytes than it can take.
    Mbarrier,
    /// An operand that the instruction doesn't take: a descriptor, a tensor map, a count of registers.
    InvalidOperand,
    /// A Rust panic inside a lane.
    Panic,
    /// A launch whose shape no device accepts.
    InvalidLaunch,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FaultKind::OutOfBounds => "out of bounds",
            FaultKind::Misaligned => "misaligned",
            FaultKind::Uninitialised => "uninitialised read",
            FaultKind::Race => "race",
            FaultKind::InFlight => "in flight",
            FaultKind::Exited => "exited block",
            FaultKind::BarrierDivergence => "barrier divergence",
            FaultKind::WarpDivergence => "warp divergence",
            FaultKind::Deadlock => "deadlock",
            FaultKind::MissingFence => "missing fence",
            FaultKind::Mbarrier => "mbarrier misuse",
            FaultKind::InvalidOperand => "invalid operand",
            FaultKind::Panic => "panic",
            FaultKind::InvalidLaunch => "invalid launch",
        })
    }
}

/// A lane of a launch and the line it was at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index of the block in the grid.
    pub block: [u32; 3],
    /// Index of the thread in the block: `32 * warp + lane`.
    pub thread: u32,
    /// The kernel's line, where known.
    pub location: Option<&'static Location<'static>>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "block ({x}, {y}, {z}) warp {} lane {}", self.thread / 32, self.thread % 32)?;
        match self.location {
            Some(at) => write!(f, " at {at}"),
            None => Ok(()),
        }
    }
}

/// Why a launch was stopped. Its `Display` is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// What kind of fault.
    pub kind: FaultKind,
    /// The kernel's name.
    pub kernel: Box<str>,
    /// The lane that was caught.
    pub at: Option<Place>,
    /// The other lane of a race, or one that an abandoned lane waits for.
    pub other: Option<Place>,
    /// What was done, to which space, where.
    pub detail: Box<str>,
    /// The seed of [`crate::Order::Seeded`] that reproduces the fault.
    pub seed: Option<u64>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.kernel, self.kind)?;
        if let Some(at) = self.at {
            write!(f, "{at}: ")?;
        }
        f.write_str(&self.detail)?;
        if let Some(other) = self.other {
            write!(f, "; the other: {other}")?;
        }
        if let Some(seed) = self.seed {
            write!(f, " [seed {seed}]")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}
