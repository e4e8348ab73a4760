use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytemuck::Zeroable;

use crate::{Error, Result};

/// Bytes of a cache line, and of the widest vector register.
const ALIGN: usize = 64;

/// Zeroed memory on a cache-line boundary. Unlike a `Vec` it refuses instead of aborting when there is no room, and leaves it
/// to the system to make pages on first use: a cache sized for a long context costs nothing until it is filled.
pub(super) struct Buffer<T> {
    /// The first of `len` elements, on a boundary.
    ptr: NonNull<T>,
    len: usize,
    /// What was allocated.
    base: NonNull<u8>,
    layout: Layout,
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
        Ok(Buffer { ptr, len, base, layout })
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
        // SAFETY: `len` elements were allocated and zeroed, which is a value of `T`.
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
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
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
    fn what_does_not_fit_is_refused() {
        for factors in [&[usize::MAX, 2][..], &[1 << 60], &[1 << 46, 1]] {
            assert!(matches!(Buffer::<f32>::zeroed(factors, "a test"), Err(Error::OutOfMemory { .. })));
        }
    }
}
