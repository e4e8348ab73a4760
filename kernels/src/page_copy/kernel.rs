//! Device code of [`super::PAGE_COPY`], [`super::PAGE_COPY_OUT`] and [`super::PAGE_COPY_IN`].

use super::{BLOCK_BYTES, HELD_VECTORS, THREADS};
use crate::{abi::PageCopy, entry::kernel, ptx};

/// Bytes of a [`PageTensor`](crate::abi::PageTensor).
const TENSOR_BYTES: u64 = 24;
const _: () = assert!(TENSOR_BYTES == size_of::<crate::abi::PageTensor>() as u64);

/// Bytes that the block's vectors are apart.
const STRIDE: u64 = THREADS as u64 * 16;

/// Copies bytes `first..end` of the `end` at `g_from` that are the block's, both addresses aligned to 16.
///
/// # Safety
/// Both must be `end` bytes, and must not overlap.
#[inline(always)]
unsafe fn copy_vectors(g_from: u64, g_to: u64, first: u64, end: u64) {
    let at = first + u64::from(ptx::tid_x()) * 16;
    // SAFETY: the branches bound the addresses; the block's own bytes.
    unsafe {
        if first + u64::from(BLOCK_BYTES) <= end {
            let mut held = [[0u32; 4]; HELD_VECTORS as usize];
            for (i, vector) in held.iter_mut().enumerate() {
                *vector = ptx::ld_global_v4_b32(g_from + at + i as u64 * STRIDE);
            }
            for (i, vector) in held.iter().enumerate() {
                ptx::st_global_v4_b32(g_to + at + i as u64 * STRIDE, *vector);
            }
            return;
        }
        for i in 0..u64::from(HELD_VECTORS) {
            let at = at + i * STRIDE;
            if at < end {
                ptx::st_global_v4_b32(g_to + at, ptx::ld_global_v4_b32(g_from + at));
            }
        }
    }
}

/// As [`copy_vectors`], of addresses aligned to 4.
///
/// # Safety
/// As [`copy_vectors`].
#[inline(always)]
unsafe fn copy_words(g_from: u64, g_to: u64, first: u64, end: u64) {
    let end = end.min(first + u64::from(BLOCK_BYTES));
    let mut at = first + u64::from(ptx::tid_x()) * 4;
    while at < end {
        // SAFETY: `end` bounds the addresses.
        unsafe { ptx::st_global_b32(g_to + at, ptx::ld_global_b32(g_from + at)) };
        at += u64::from(THREADS) * 4;
    }
}

/// From where to where a launch copies.
const WITHIN: u32 = 0;
const OUT: u32 = 1;
const IN: u32 = 2;

/// # Safety
/// As the entries.
#[inline(always)]
unsafe fn copy<const DIRECTION: u32>(p: &PageCopy) {
    let blocks = p.blocks_per_page.max(1);
    let (listed, block) = (u64::from(ptx::ctaid_x() / blocks), u64::from(ptx::ctaid_x() % blocks));
    let g_tensor = p.tensors + u64::from(ptx::ctaid_y()) * TENSOR_BYTES;
    let first = block * u64::from(BLOCK_BYTES);
    // SAFETY: the launch's own indices, into arrays of the documented lengths.
    let (address, page_bytes, stage_offset) = unsafe {
        (
            ptx::ld_global_nc_b64(g_tensor),
            ptx::ld_global_nc_b64(g_tensor + 8),
            ptx::ld_global_nc_b64(g_tensor + 16),
        )
    };
    if first >= page_bytes {
        return;
    }
    let page = |index: u64| {
        // SAFETY: the list has as many entries as the launch has pages.
        address + u64::from(unsafe { ptx::ld_global_nc_b32(p.pages + index * 4) }) * page_bytes
    };
    let staged = p.staging + listed * p.record_bytes + stage_offset;
    let (g_from, g_to) = match DIRECTION {
        WITHIN => (page(2 * listed), page(2 * listed + 1)),
        OUT => (page(listed), staged),
        _ => (staged, page(listed)),
    };
    // SAFETY: pages and records are where the parameters say, and are disjoint by the caller's promise.
    unsafe {
        if page_bytes.is_multiple_of(16) {
            copy_vectors(g_from, g_to, first, page_bytes);
        } else {
            copy_words(g_from, g_to, first, page_bytes);
        }
    }
}

kernel! {
    /// See [`PageCopy`].
    pub fn page_copy(p: PageCopy) {
        copy::<WITHIN>(&p);
    }
}

kernel! {
    /// See [`PageCopy`].
    pub fn page_copy_out(p: PageCopy) {
        copy::<OUT>(&p);
    }
}

kernel! {
    /// See [`PageCopy`].
    pub fn page_copy_in(p: PageCopy) {
        copy::<IN>(&p);
    }
}
