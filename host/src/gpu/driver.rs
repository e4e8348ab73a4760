use tilewright_kernels::abi::{KernelSpec, TensorMap, TensorMapSpec};

use crate::{MemoryUse, Result};

/// What a [`Driver`] runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    /// The device's name.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Device memory, in bytes.
    pub memory_bytes: u64,
}

/// One launch, to be made later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The kernel.
    pub spec: &'static KernelSpec,
    /// Blocks.
    pub grid: [u32; 3],
    /// Its parameter block.
    pub params: Vec<u8>,
}

/// The little a GPU device needs from below: memory, copies and launches, in order on one stream. CUDA is one; the test suite's
/// emulator is another, so that the very launches can be checked without a GPU.
pub trait Driver: Send + Sync + 'static {
    /// An allocation, freed on drop, 256-byte aligned.
    type Buffer: Send + Sync;
    /// Launches that are made as one.
    type Graph: Send;

    /// What the driver runs on.
    fn info(&self) -> &GpuInfo;
    /// Uninitialised memory. `purpose` goes into the error.
    fn alloc(&self, bytes: usize, purpose: &'static str) -> Result<Self::Buffer>;
    /// The device address of an allocation.
    fn address(&self, buffer: &Self::Buffer) -> u64;
    /// Copies `bytes` to `offset` of `dst`; `bytes` may be reused at once.
    fn upload(&self, dst: &Self::Buffer, offset: usize, bytes: &[u8]) -> Result<()>;
    /// Waits for all before it and copies from `offset` of `src`.
    fn download(&self, src: &Self::Buffer, offset: usize, out: &mut [u8]) -> Result<()>;
    /// Fills an allocation with zeros.
    fn zero(&self, dst: &Self::Buffer) -> Result<()>;
    /// Encodes how the copy engine walks a tensor.
    ///
    /// # Errors
    /// For a driver without the copy engine, and for a tensor it can't walk: see [`TensorMapSpec`].
    fn tensor_map(&self, spec: &TensorMapSpec<'_>) -> Result<TensorMap>;
    /// Makes kernels ready that will be launched before long, so that no launch waits for that; of a driver that always has them, nothing.
    fn prepare(&self, kernels: &[&'static KernelSpec]) -> Result<()> {
        let _ = kernels;
        Ok(())
    }
    /// Launches `spec` over `grid` blocks with its one parameter block.
    ///
    /// # Safety
    /// `params` are those of this kernel and what they address is large enough.
    unsafe fn launch(&self, spec: &'static KernelSpec, grid: [u32; 3], params: &[u8]) -> Result<()>;
    /// Prepares launches, to be made in this order as often as [`Driver::replay`] is called; nothing where the driver can't.
    ///
    /// # Safety
    /// As [`Driver::launch`], for every replay.
    unsafe fn graph(&self, launches: &[Launch]) -> Result<Option<Self::Graph>>;
    /// Makes the launches of a graph.
    ///
    /// # Safety
    /// What [`Driver::graph`] was promised holds still.
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()>;
    /// Waits for all before it.
    fn synchronize(&self) -> Result<()>;
    /// Waits for all before it and says what is allocated, where that is counted.
    fn memory(&self) -> Result<Option<MemoryUse>> {
        Ok(None)
    }
}
