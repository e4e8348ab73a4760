/// What a device can refuse.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument doesn't fit the operation.
    #[error("{op}: {what}: expected {expected}, found {found}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// What would have fitted.
        expected: String,
        /// What came.
        found: String,
    },
    /// The device has no room.
    #[error("out of memory on {device}: {requested_bytes} bytes requested for {purpose}")]
    OutOfMemory {
        /// The device.
        device: String,
        /// Bytes asked for.
        requested_bytes: usize,
        /// What for.
        purpose: &'static str,
    },
    /// The device asked for isn't there.
    #[error("device {device}: {reason}")]
    Unavailable {
        /// As the user named it.
        device: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The driver refused a call.
    #[error("{call} failed with {code}{}", observed.as_ref().map(|at| format!(" (observed at {at})")).unwrap_or_default())]
    Driver {
        /// The driver's function.
        call: &'static str,
        /// The driver's name of the error.
        code: String,
        /// The kernel or copy at which it came to light.
        observed: Option<String>,
    },
    /// A row of logits holds a NaN or nothing finite.
    #[error("logits of row {row} hold a NaN or no finite value")]
    InvalidLogits {
        /// The row.
        row: usize,
    },
}

/// A result of a device operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;
