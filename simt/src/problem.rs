//! What can be wrong with one access, before it is known who made it.

use crate::shadow::Conflict;
use crate::shared::Busy;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Problem {
    OutOfBounds,
    Misaligned,
    Uninitialised,
    Race(Conflict),
    /// A copy is on its way.
    InFlight(Busy),
    /// An mbarrier lives there.
    Mbarrier,
    /// The thread that wrote through the generic proxy and hasn't executed a proxy fence since.
    MissingProxyFence(u32),
}
