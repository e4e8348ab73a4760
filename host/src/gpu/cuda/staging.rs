use std::ptr::{copy_nonoverlapping, null_mut};

use cust::{
    event::{Event, EventFlags},
    stream::Stream,
    sys::CUdeviceptr,
};

use super::api;
use crate::Result;

/// Bytes of a slot: a step's metadata fits many times over, and weights go at the bus's speed.
const SLOT_BYTES: usize = 1 << 20;
/// Slots: copies in flight while the next is filled.
const SLOTS: usize = 8;

/// Bytes of [`Landing`]: tokens of a step fit many times over.
const LANDING_BYTES: usize = 64 << 10;

/// Page-locked memory to which small downloads go: the driver would take a detour for memory that isn't.
pub(super) struct Landing {
    base: *mut u8,
}

// SAFETY: the memory belongs to the landing alone, and any thread may touch it.
unsafe impl Send for Landing {}

impl Landing {
    pub(super) fn new() -> Result<Landing> {
        let mut base = null_mut();
        // SAFETY: writes the address of the new memory.
        let code = unsafe { api::cuMemHostAlloc(&mut base, LANDING_BYTES, 0) };
        api::check("cuMemHostAlloc", code, || Some("landing memory".into()))?;
        Ok(Landing { base: base.cast() })
    }

    /// Whether so many bytes have room.
    pub(super) fn holds(bytes: usize) -> bool {
        bytes <= LANDING_BYTES
    }

    /// Copies device memory to `out`, once `wait` has waited for the stream.
    ///
    /// # Safety
    /// `from` is the address of as many bytes as `out` has, which the landing holds, and the context is current.
    pub(super) unsafe fn download(
        &mut self,
        from: CUdeviceptr,
        out: &mut [u8],
        stream: &Stream,
        wait: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        // SAFETY: the landing has room; nobody reads it before the stream has been waited for.
        let code = unsafe { api::cuMemcpyDtoHAsync_v2(self.base.cast(), from, out.len(), stream.as_inner()) };
        let waited = wait();
        api::check("cuMemcpyDtoHAsync", code, || Some("a download".into()))?;
        waited?;
        // SAFETY: the copy is done.
        unsafe { copy_nonoverlapping(self.base, out.as_mut_ptr(), out.len()) };
        Ok(())
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`; every copy into it was waited for. An error has nobody to go to.
        let _ = unsafe { api::cuMemFreeHost(self.base.cast()) };
    }
}

/// Page-locked memory through which uploads go, so that the caller's bytes are free at once and the copy is asynchronous.
pub(super) struct Staging {
    base: *mut u8,
    /// Recorded after each slot's copy.
    copied: Vec<Event>,
    next: usize,
}

// SAFETY: the memory belongs to the staging alone, and any thread may touch it.
unsafe impl Send for Staging {}

impl Staging {
    pub(super) fn new() -> Result<Staging> {
        let mut staging = Staging { base: null_mut(), copied: Vec::with_capacity(SLOTS), next: 0 };
        let mut base = null_mut();
        // SAFETY: writes the address of the new memory.
        let code = unsafe { api::cuMemHostAlloc(&mut base, SLOTS * SLOT_BYTES, 0) };
        api::check("cuMemHostAlloc", code, || Some("staging memory".into()))?;
        staging.base = base.cast();
        for _ in 0..SLOTS {
            staging.copied.push(api::wrapped("cuEventCreate", Event::new(EventFlags::DISABLE_TIMING))?);
        }
        Ok(staging)
    }

    /// Copies `bytes` to device memory in the order of `stream`.
    ///
    /// # Safety
    /// `to` is the address of at least as many bytes, and the context is current.
    pub(super) unsafe fn upload(&mut self, to: CUdeviceptr, bytes: &[u8], stream: &Stream) -> Result<()> {
        for (chunk, source) in bytes.chunks(SLOT_BYTES).enumerate() {
            let slot = self.next;
            self.next = (slot + 1) % SLOTS;
            api::wrapped("cuEventSynchronize", self.copied[slot].synchronize())?;
            // SAFETY: the slot lies in the staging memory and its last copy is done; the caller promises the destination.
            let code = unsafe {
                let staged = self.base.add(slot * SLOT_BYTES);
                copy_nonoverlapping(source.as_ptr(), staged, source.len());
                let to = to + (chunk * SLOT_BYTES) as u64;
                api::cuMemcpyHtoDAsync_v2(to, staged.cast(), source.len(), stream.as_inner())
            };
            api::check("cuMemcpyHtoDAsync", code, || Some("an upload".into()))?;
            api::wrapped("cuEventRecord", self.copied[slot].record(stream))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.base.is_null() {
            // SAFETY: allocated by `new`; the driver waits for copies out of it. An error has nobody to go to.
            let _ = unsafe { api::cuMemFreeHost(self.base.cast()) };
        }
    }
}
