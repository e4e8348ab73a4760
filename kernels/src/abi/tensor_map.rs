/// How the copy engine walks a tensor: 128 opaque bytes, encoded by the driver from a `TensorMapSpec`. Travels in a kernel's
/// parameter block.
///
/// The hardware wants 64-byte alignment, rustc passes no parameter of more than 16: `cuda-builder` raises it in the PTX.
#[repr(C, align(16))]
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(target_arch = "nvptx64"), derive(Default, bytemuck::Pod, bytemuck::Zeroable))]
pub struct TensorMap(pub [u64; 16]);

/// What a [`TensorMap`] is made of: a tensor of up to five dimensions, innermost first, and the box that one copy brings. In shared
/// memory the lines of the box are 128 bytes, swizzled in atoms of eight: 16-byte chunk `c` of line `l` lies at `c ^ (l % 8)`.
#[cfg(not(target_arch = "nvptx64"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMapSpec<'a> {
    /// Address of element 0, a multiple of 16.
    pub base: u64,
    /// Bytes an element: 1 or 2.
    pub element_bytes: u32,
    /// Elements along each dimension.
    pub dims: &'a [u64],
    /// Bytes from one element to the next along each dimension but the innermost, which is dense; multiples of 16.
    pub strides_bytes: &'a [u64],
    /// Elements of the box along each dimension, 1 to 256; the innermost makes 128 bytes.
    pub box_dims: &'a [u32],
}
