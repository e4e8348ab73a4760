//! Values that one load or store moves.

mod sealed {
    pub trait Sealed {}
}

/// A value that one load or store moves: 2, 4, 8 or 16 bytes, aligned to its own size in memory.
pub trait Element: Copy + sealed::Sealed {
    /// Bytes moved, and the alignment asked for.
    const BYTES: usize;
    #[doc(hidden)]
    fn from_memory(bytes: &[u8]) -> Self;
    #[doc(hidden)]
    fn to_memory(self, bytes: &mut [u8]);
}

macro_rules! scalar {
    ($($ty:ty),*) => {$(
        impl sealed::Sealed for $ty {}
        impl Element for $ty {
            const BYTES: usize = size_of::<$ty>();
            #[inline(always)]
            fn from_memory(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<$ty>()];
                own.copy_from_slice(&bytes[..size_of::<$ty>()]);
                <$ty>::from_le_bytes(own)
            }
            #[inline(always)]
            fn to_memory(self, bytes: &mut [u8]) {
                bytes[..size_of::<$ty>()].copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
scalar!(u16, u32, u64);

impl<const N: usize> sealed::Sealed for [u32; N] {}
macro_rules! vector {
    ($($n:literal),*) => {$(
        impl Element for [u32; $n] {
            const BYTES: usize = 4 * $n;
            #[inline(always)]
            fn from_memory(bytes: &[u8]) -> Self {
                let bytes = &bytes[..4 * $n];
                core::array::from_fn(|i| u32::from_memory(&bytes[4 * i..4 * i + 4]))
            }
            #[inline(always)]
            fn to_memory(self, bytes: &mut [u8]) {
                let bytes = &mut bytes[..4 * $n];
                for i in 0..$n {
                    self[i].to_memory(&mut bytes[4 * i..4 * i + 4]);
                }
            }
        }
    )*};
}
vector!(2, 4);

/// A value that an atomic addition takes.
pub trait AtomicElement: Element {
    #[doc(hidden)]
    fn plus(self, other: Self) -> Self;
}

impl AtomicElement for u32 {
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

impl AtomicElement for u64 {
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}
