//! What can be wrong with one access, before it is known who made it.

use crate::shadow::Conflict;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Problem {
    OutOfBounds,
    Misaligned,
    Uninitialised,
    Race(Conflict),
    /// The thread whose copy is on its way.
    InFlight(u32),
}
