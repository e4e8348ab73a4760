/// What a launcher, the PTX builder and the emulator need to know of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelSpec {
    /// The PTX symbol.
    pub name: &'static str,
    /// Threads a block, all in x. Becomes `.maxntid`.
    pub threads: u32,
    /// Blocks that must fit a multiprocessor. Becomes `.minnctapersm`.
    pub min_blocks: u32,
    /// Dynamic shared memory of every launch, in bytes.
    pub shared_bytes: u32,
    /// Why this kernel may use local memory, if it may.
    pub allowance: Option<&'static str>,
    /// Whether it may start before the launch before it has ended: it then waits (`griddepcontrol.wait`) before it touches what an
    /// earlier launch wrote or reads.
    pub starts_early: bool,
    /// Whether the blocks of a row of the grid, along x, may wait for each other, where there are at most [`MOST_WAITING`] of them or the grid is one row of at most
    /// as many as the device runs at a time. Blocks start in the order of the grid, so that those of the first row that hasn't ended run, all of them: on a
    /// stream beside which no other runs such a launch.
    pub waits_in_row: bool,
    /// Whether the driver is asked to run all blocks of the grid at the same time, or else to refuse: what those of a grid that is one long row rely on.
    pub cooperative: bool,
    /// Whether blocks of a grid that doesn't fill the device are kept from gathering on some multiprocessors: where it starts early, the first that the launch
    /// before leaves would take [`KernelSpec::min_blocks`] of them, and the last none. They are given more shared memory than they use.
    pub spreads: bool,
}

/// Blocks of a row that may wait for each other, [`KernelSpec::waits_in_row`].
pub const MOST_WAITING: u32 = 16;

/// Launch parameters that travel as plain bytes, passed by value as the entry's only parameter.
#[cfg(not(target_arch = "nvptx64"))]
pub trait Params: bytemuck::Pod {}

/// Declares a `#[repr(C)]` parameter block and, on the host, its `Pod` and `Params` implementations.
macro_rules! params {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$fdoc:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy)]
        #[cfg_attr(not(target_arch = "nvptx64"), derive(Default, bytemuck::Pod, bytemuck::Zeroable))]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
        #[cfg(not(target_arch = "nvptx64"))]
        impl super::Params for $name {}
    };
}
pub(crate) use params;
