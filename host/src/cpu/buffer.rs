use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::{Pod, Zeroable};

use crate::{Error, Result};

/// Bytes of a cache line, and of the widest vector register.
const ALIGN: usize = 64;

/// Bytes of freed buffers that are kept for later ones, at most: about what a prompt of a thousand tokens takes of a small model.
const SPARE_BYTES: usize = 64 << 20;
/// Smaller ones the allocator keeps itself.
const SMALLEST_SPARE_BYTES: usize = 64 << 10;

/// Memory of a freed buffer. Every byte of it was set once.
struct Spare {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is owned, and nobody reads it.
unsafe impl Send for Spare {}

impl Drop for Spare {
    fn drop(&mut self) {
        // SAFETY: allocated by `Buffer::zeroed` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// The oldest first.
static SPARES: Mutex<Vec<Spare>> = Mutex::new(Vec::new());

fn spares() -> MutexGuard<'static, Vec<Spare>> {
    SPARES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory on a cache-line boundary. Unlike a `Vec` it refuses instead of aborting when there is no room, and leaves it
/// to the system to make pages on first use: a cache sized for a long context costs nothing until it is filled.
pub(super) struct Buffer<T> {
    /// The first of `len` elements, on a boundary.
    ptr: NonNull<T>,
    len: usize,
    /// What was allocated.
    base: NonNull<u8>,
    layout: Layout,
    /// To be kept for another when freed.
    reused: bool,
}

// SAFETY: a buffer owns its memory; `T` is plain data.
unsafe impl<T: Send> Send for Buffer<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Sync> Sync for Buffer<T> {}

impl<T: Zeroable + Copy> Buffer<T> {
    /// `len` zeros, `len` given as a product so that an overflow is found here.
    pub(super) fn zeroed(factors: &[usize], purpose: &'static str) -> Result<Self> {
        const { assert!(align_of::<T>() <= ALIGN) };
        let len = factors.iter().try_fold(1usize, |product, &factor| product.checked_mul(factor));
        let bytes = len.and_then(|len| len.checked_mul(size_of::<T>()));
        let refused = || Error::OutOfMemory {
            device: "cpu".into(),
            requested_bytes: bytes.unwrap_or(usize::MAX),
            purpose,
        };
        let (Some(len), Some(bytes)) = (len, bytes) else { return Err(refused()) };
        // The boundary is found here, a line of room beyond the elements: asked for it, Rust's allocator would clear the memory
        // itself, and so touch every page.
        let with_room = bytes.checked_add(ALIGN).ok_or_else(refused)?;
        let layout = Layout::from_size_align(with_room, align_of::<usize>()).map_err(|_| refused())?;
        // SAFETY: the layout's size is not 0.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refused)?;
        // SAFETY: a boundary is less than a line away, and the allocation has that beyond `bytes`.
        let ptr = unsafe { base.add(base.align_offset(ALIGN)) }.cast::<T>();
        Ok(Buffer { ptr, len, base, layout, reused: false })
    }
}

impl<T: Pod> Buffer<T> {
    /// As [`Buffer::zeroed`], but of any contents: zeros, or what an earlier buffer left. The system takes longer to make pages than
    /// a prompt's operations to fill them, so freed ones are kept.
    pub(super) fn reused(factors: &[usize], purpose: &'static str) -> Result<Self> {
        let product = |product: usize, &factor: &usize| product.checked_mul(factor);
        let len = factors.iter().try_fold(1usize, product).unwrap_or(usize::MAX);
        let least_bytes = len.saturating_mul(size_of::<T>()).saturating_add(ALIGN);
        if let Some(spare) = take_spare(least_bytes) {
            let (base, layout) = (spare.base, spare.layout);
            std::mem::forget(spare);
            // SAFETY: a boundary is less than a line away, and the memory has that beyond the elements.
            let ptr = unsafe { base.add(base.align_offset(ALIGN)) }.cast::<T>();
            return Ok(Buffer { ptr, len, base, layout, reused: true });
        }
        let mut buffer = Self::zeroed(factors, purpose)?;
        buffer.reused = true;
        Ok(buffer)
    }
}

/// The smallest spare of at least so many bytes, and not twice as many.
fn take_spare(least_bytes: usize) -> Option<Spare> {
    let mut spares = spares();
    let fits = |spare: &Spare| spare.layout.size() >= least_bytes && spare.layout.size() / 2 < least_bytes;
    let fitting = spares.iter().enumerate().filter(|(_, spare)| fits(spare));
    let index = fitting.min_by_key(|(_, spare)| spare.layout.size())?.0;
    Some(spares.remove(index))
}

/// Keeps a spare in place of the oldest.
fn keep_spare(spare: Spare) {
    let mut spares = spares();
    let mut bytes = spare.layout.size() + spares.iter().map(|spare| spare.layout.size()).sum::<usize>();
    while bytes > SPARE_BYTES && !spares.is_empty() {
        bytes -= spares.remove(0).layout.size();
    }
    if spares.try_reserve(1).is_ok() {
        spares.push(spare);
    }
}

impl<T> Buffer<T> {
    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements were allocated and zeroed, or set since to what is a value of any `T` that is reused.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let spare = Spare { base: self.base, layout: self.layout };
        if self.reused && (SMALLEST_SPARE_BYTES..=SPARE_BYTES).contains(&self.layout.size()) {
            keep_spare(spare);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_zeroed_and_on_a_line() {
        let buffer = Buffer::<f32>::zeroed(&[3, 7], "a test").unwrap();
        assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
        assert_eq!(&buffer[..], &[0.0; 21]);
    }

    #[test]
    fn freed_buffers_are_used_again_up_to_a_limit() {
        // Sizes that no other test's buffers have.
        let floats = (20 << 20) / size_of::<f32>();
        let mut first = Buffer::<f32>::reused(&[floats], "a test").unwrap();
        first.fill(7.0);
        let address = first.as_ptr();
        drop(first);
        let small = Buffer::<f32>::reused(&[floats / 2 - 64], "a test").unwrap();
        assert_ne!(small.as_ptr(), address);
        let large = Buffer::<f32>::reused(&[floats + 64], "a test").unwrap();
        assert_ne!(large.as_ptr(), address);
        let second = Buffer::<f32>::reused(&[floats - 64], "a test").unwrap();
        assert_eq!((second.as_ptr(), second.len()), (address, floats - 64));
        assert!(second.iter().all(|&x| x == 7.0));
        drop(second);
        let zeroed = Buffer::<f32>::zeroed(&[floats], "a test").unwrap();
        assert!(zeroed.iter().all(|&x| x == 0.0));

        // More than is kept: in this test, for it drives out the other's.
        for _ in 0..2 {
            let buffers: Vec<_> =
                (0..8).map(|_| Buffer::<f32>::reused(&[3 << 20], "a test").unwrap()).collect();
            drop(buffers);
        }
        drop(Buffer::<u8>::reused(&[SPARE_BYTES + 1], "a test").unwrap());
        let bytes: usize = spares().iter().map(|spare| spare.layout.size()).sum();
        assert!(bytes <= SPARE_BYTES, "{bytes}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for factors in [&[usize::MAX, 2][..], &[1 << 60], &[1 << 46, 1]] {
            assert!(matches!(Buffer::<f32>::zeroed(factors, "a test"), Err(Error::OutOfMemory { .. })));
            assert!(matches!(Buffer::<f32>::reused(factors, "a test"), Err(Error::OutOfMemory { .. })));
        }
    }
}
