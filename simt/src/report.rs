//! What a launch did, in numbers.

/// Counters of one launch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Blocks run.
    pub blocks: u64,
    /// Intrinsic calls of all lanes, reads of special registers aside.
    pub lane_steps: u64,
    /// Barriers completed, whole-block and named.
    pub barriers: u64,
    /// Asynchronous copies of 16 bytes issued, a lane each.
    pub async_copies: u64,
    /// `mma` instructions, a warp each.
    pub mma: u64,
    /// `ldmatrix` instructions, a warp each.
    pub ldmatrix: u64,
    /// Calls of `mbarrier.try_wait`, a lane each. How many answer false depends on the order of lanes.
    pub mbarrier_waits: u64,
    /// Bulk copies issued (`cp.async.bulk`, tensor or not), a lane each.
    pub bulk_copies: u64,
    /// Bytes of shared memory that those fill or read.
    pub bulk_bytes: u64,
    /// Bytes that lanes asked to be brought to the L2.
    pub prefetched_bytes: u64,
    /// `wgmma.mma_async` instructions, a warpgroup each.
    pub wgmma: u64,
    /// Loads of global memory, a warp each, asynchronous copies among them. This and the following are 0 unless
    /// [`crate::Device::count_requests`] asked for them.
    pub global_load_requests: u64,
    /// 32-byte sectors those loads touch.
    pub global_load_sectors: u64,
    /// Stores to global memory, a warp each, atomics among them.
    pub global_store_requests: u64,
    /// 32-byte sectors those stores touch.
    pub global_store_sectors: u64,
    /// Loads and stores of shared memory, a warp each; `ldmatrix` and the arriving side of copies among them.
    pub shared_requests: u64,
    /// Passes through the 32 banks that those needed beyond the least possible.
    pub bank_conflicts: u64,
}
