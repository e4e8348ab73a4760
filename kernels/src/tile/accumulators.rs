use crate::{
    element::{Bf16, Element, F16},
    ptx::{Wgmma, WgmmaS8},
};

/// What products of 64 rows add to: f32 for bf16 and, as [`OfF16`], for f16, i32 for bytes.
pub(crate) trait Accumulators: Sized {
    /// Bytes an element of `a` and `w`.
    const ELEMENT_BYTES: u32;
    /// Whether rows and columns have scales.
    const SCALED: bool;
    /// Columns.
    const COLS: u32;
    /// What results are rounded to.
    type Out: Element;

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
    type Out = Bf16;

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

/// What products of f16 add to.
pub(crate) struct OfF16<A>(A);

impl<const R: usize> Accumulators for OfF16<[f32; R]>
where
    [f32; R]: Wgmma,
{
    const ELEMENT_BYTES: u32 = 2;
    const SCALED: bool = false;
    const COLS: u32 = <[f32; R] as Wgmma>::N;
    type Out = F16;

    #[inline(always)]
    fn zeros() -> Self {
        OfF16([0.0; R])
    }

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn add(&mut self, a: u64, w: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.0.ss::<true, true>(a, w) }
    }

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn wait<const NEWEST: u32>(&mut self) {
        // SAFETY: the caller's promise.
        unsafe { Wgmma::wait::<NEWEST>(&mut self.0) }
    }

    #[inline(always)]
    fn value(&self, register: usize) -> f32 {
        self.0[register]
    }
}

impl<const R: usize> Accumulators for [i32; R]
where
    [i32; R]: WgmmaS8,
{
    const ELEMENT_BYTES: u32 = 1;
    const SCALED: bool = true;
    const COLS: u32 = <Self as WgmmaS8>::N;
    type Out = Bf16;

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
