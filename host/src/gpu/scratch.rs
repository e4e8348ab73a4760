//! Memory that launches use one after the other, grown to the largest.

use std::sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering};

use super::{Driver, GpuDevice};
use crate::Result;

/// One allocation of it.
pub(super) struct Scratch<Dr: Driver> {
    op: &'static str,
    purpose: &'static str,
    buffer: Option<(Dr::Buffer, u64)>,
    bytes: usize,
}

impl<Dr: Driver> Scratch<Dr> {
    /// Nothing yet; errors will name the operation and the purpose.
    pub fn new(op: &'static str, purpose: &'static str) -> Self {
        Self { op, purpose, buffer: None, bytes: 0 }
    }

    /// The address of at least `bytes`. What was there before is freed in the order of the stream, after the launches that use it.
    /// `zeros` are written to fresh memory only.
    pub fn at_least(&mut self, device: &GpuDevice<Dr>, bytes: usize, zeros: bool) -> Result<u64> {
        if let Some((_, address)) = self.buffer.as_ref().filter(|_| self.bytes >= bytes) {
            return Ok(*address);
        }
        let bytes = bytes.next_power_of_two();
        let (buffer, address) = device.allocate(self.op, &[bytes], self.purpose)?;
        if zeros {
            device.driver.zero(&buffer)?;
        }
        device.scratch_moves.fetch_add(1, Ordering::Relaxed);
        self.buffer = Some((buffer, address));
        self.bytes = bytes;
        Ok(address)
    }
}

/// Locks scratch until the launch that uses it is in the stream.
pub(super) fn lock<T>(scratch: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held leaves buffers that are there or not.
    scratch.lock().unwrap_or_else(PoisonError::into_inner)
}
