use crate::ptx::{Wgmma, WgmmaS8};

/// What products of 64 rows add to: f32 for bf16, i32 for bytes.
pub(crate) trait Accumulators: Sized {
    /// Bytes an element of `a` and `w`.
    const ELEMENT_BYTES: u32;
    /// Whether rows and columns have scales.
    const SCALED: bool;
    /// Columns.
    const COLS: u32;

    /// Nothing added yet.
    fn zeros() -> Self;
    /// Adds a step's product, both factors in shared memory.
    ///
    /// # Safety
    /// As [`Wgmma::ss`].
    unsafe fn add(&mut self, a: u64, w: u64);
    /// Waits for products.
    ///
    /// # Safety
    /// As [`Wgmma::wait`].
    unsafe fn wait<const NEWEST: u32>(&mut self);
    /// A register.
    fn value(&self, register: usize) -> f32;
}

impl<const R: usize> Accumulators for [f32; R]
where
    [f32; R]: Wgmma,
{
    const ELEMENT_BYTES: u32 = 2;
    const SCALED: bool = false;
    const COLS: u32 = <Self as Wgmma>::N;

    #[inline(always)]
    fn zeros() -> Self {
        [0.0; R]
    }

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn add(&mut self, a: u64, w: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.ss::<false, true>(a, w) }
    }

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn wait<const NEWEST: u32>(&mut self) {
        // SAFETY: the caller's promise.
        unsafe { Wgmma::wait::<NEWEST>(self) }
    }

    #[inline(always)]
    fn value(&self, register: usize) -> f32 {
        self[register]
    }
}

impl<const R: usize> Accumulators for [i32; R]
where
    [i32; R]: WgmmaS8,
{
    const ELEMENT_BYTES: u32 = 1;
    const SCALED: bool = true;
    const COLS: u32 = <Self as WgmmaS8>::N;

    #[inline(always)]
    fn zeros() -> Self {
        [0; R]
    }

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn add(&mut self, a: u64, w: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.ss(a, w) }
    }

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn wait<const NEWEST: u32>(&mut self) {
        // SAFETY: the caller's promise.
        unsafe { WgmmaS8::wait::<NEWEST>(self) }
    }

    #[inline(always)]
    fn value(&self, register: usize) -> f32 {
        self[register] as f32
    }
}
