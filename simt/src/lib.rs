//! Runs CUDA-style kernels on the host: blocks, warps and lanes, shared memory and asynchronous copies, with every access
//! checked.
//!
//! A kernel is a Rust function that touches memory and other threads through [`intrinsic`] alone. [`Device::launch`] calls it
//! once a thread: each lane is a coroutine, a block runs at a time, lanes meet in barriers, shuffles and matrix instructions.
//! The first thing a GPU would not forgive ends the launch with a [`Fault`] that names kernel, block, warp, lane, line,
//! allocation and offset; [`FaultKind`] lists them. A launch without one answers a [`Report`] of what was done.
//!
//! ```
//! use tilewright_simt::intrinsic::{bar_sync, ctaid_x, ld_global, ld_shared, shared_base, st_global, st_shared, tid_x};
//! use tilewright_simt::{Device, FaultKind, Launch, Order};
//!
//! // Reverses each block's 64 values through shared memory.
//! fn reverse(x: u64, out: u64, with_barrier: bool) {
//!     let slot = |i: u32| shared_base() + 4 * i;
//!     let at = 4 * u64::from(64 * ctaid_x() + tid_x());
//!     st_shared(slot(63 - tid_x()), ld_global::<u32>(x + at));
//!     if with_barrier {
//!         bar_sync();
//!     }
//!     st_global(out + at, ld_shared::<u32>(slot(tid_x())));
//! }
//!
//! let mut device = Device::new();
//! let (x, out) = (device.alloc(4 * 128, "x"), device.alloc(4 * 128, "out"));
//! device.write(x, &(0..128u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
//! let launch =
//!     Launch { name: "reverse", grid: [2, 1, 1], threads: 64, shared_bytes: 256, order: Order::Deterministic };
//! let report = device.launch(&launch, &|| reverse(x, out, true))?;
//! assert_eq!((report.blocks, report.barriers), (2, 2));
//! let mut first = [0; 4];
//! device.read(out, &mut first)?;
//! assert_eq!(u32::from_le_bytes(first), 63);
//!
//! let fault = device.launch(&launch, &|| reverse(x, out, false)).unwrap_err();
//! assert_eq!(fault.kind, FaultKind::Uninitialised);
//! # Ok::<(), tilewright_simt::Fault>(())
//! ```
//!
//! # Memory model
//!
//! Two accesses to the same byte by different lanes, at least one a write and not both atomic, are a race unless something
//! orders them:
//!
//! - a barrier that both reach, or at which one arrives and the other waits;
//! - among the lanes of a warp `bar.warp.sync`, and nothing else in which they merely meet: a shuffle, a vote, an election, `mma`,
//!   `ldmatrix` and `wgmma` order nothing, for PTX promises nothing of them;
//! - an mbarrier: an arrival releases what the lane has done and seen, a wait that answers true acquires what was released to
//!   the phases completed by then;
//! - between blocks, atomics on one address with acquire and release semantics, their own or by `fence.acq_rel.gpu` before and
//!   after. What a lane acquires from another block counts for its whole block. Without fences atomics order nothing else.
//!
//! - between blocks of a cluster, `barrier.cluster` (its arrival releases unless relaxed, its wait acquires), and mbarriers
//!   across blocks; scopes are not told apart. Shared memory of another block may be touched only while something orders that
//!   before the block's end. What a lane acquires from outside its cluster counts for the whole cluster.
//!
//! What one lane releases covers of the other lanes of its warp what a `bar.warp.sync` or a barrier has ordered before, met or
//! not; what it acquires counts for all of them. Launches are ordered, those that start early ([`Device::start_early`])
//! by `griddepcontrol.wait`.
//!
//! # What is on its way
//!
//! | set off by | complete when | until then |
//! |---|---|---|
//! | `cp.async` | its lane waits for the group, or an mbarrier told by `cp.async.mbarrier.arrive` | the 16 bytes are nobody's to touch |
//! | bulk load | its mbarrier's phase completes, for those who wait at it | the destination is nobody's to touch |
//! | bulk store | its lane waits for the group; `.read` for the source alone | writing the source and reading the target are races |
//! | `wgmma` | each warp waits for the group | writing the operands is a race; accumulators are signalling NaNs, or huge integers |
//!
//! The last three are recorded as accesses of an agent of their own, which nobody has seen before that wait. Data is read when
//! the instruction is issued and lands as late as it can: when a lane waits for it and nothing else can run, of several that are
//! waited for the newest. In a random order it lands at any time. Whatever is still on its way when its lane, warp or block ends is a fault. Any wait of a warp for a
//! warpgroup's product means that all four warps have read their operands.
//!
//! A lane that waits at an mbarrier sleeps until the phase completes. When nothing else can run, waits answer false once, as a
//! device does when its time limit is over; if that changes nothing, the launch is deadlocked. In a random order they also do
//! so now and then.
//!
//! Fences: shared memory written by a store or `cp.async` and then touched by a bulk copy or `wgmma` must have been followed by
//! the writer's own `fence.proxy.async` (of several writers of 16 bytes the last is looked at); an mbarrier on which copies
//! complete, by that or `fence.mbarrier_init` of whoever initialised it; the registers of `wgmma`, after each wait, by
//! `wgmma.fence`. Accumulators that are on their way may go on to the next `wgmma` as they are and to nothing else.
//!
//! # Limits
//!
//! Blocks, or clusters, run one after another, so a kernel whose blocks wait for each other outside of a cluster never ends
//! ([`Device::limit_steps`] ends it). Clusters extend in x. Of the instructions between their blocks there are loads, stores,
//! additions, arrivals and multicast tensor loads; not `st.async`, nor bulk copies from shared memory to shared memory. A lane that spins on memory within its block does let others run. Of unordered reads of a cell of
//! memory some are remembered, four in shared and two in global: a later write may miss that it is unordered with another.
//! Lanes of a warp that release one after the other count as having released as late as the last of them, for whoever acquires
//! from both. More than 48 mbarriers, or stores of more than 28 warps, share agents, which can hide a race. The clocks, caches and
//! throughput of a device aren't modelled, nor what moves through banks for bulk copies and `wgmma`. Matrix products are
//! rounded once where a device rounds its own way.

mod accumulators;
mod barrier;
mod bulk;
mod bulk_store;
mod clock;
mod cluster;
mod collective;
mod context;
mod descriptor;
mod device;
mod element;
mod fault;
mod global;
pub mod intrinsic;
mod lane;
mod matrix;
mod mbarrier;
mod operands;
mod polls;
mod problem;
mod random;
mod release;
mod report;
mod requests;
mod scheduler;
mod shadow;
mod shared;
mod site;
mod tensor_map;
mod wgmma;

pub use device::{Device, Launch, Order};
pub use element::{AtomicElement, Element};
pub use fault::{Fault, FaultKind, Place};
pub use report::Report;
pub use tensor_map::{Swizzle, TensorMap, TensorMapSpec};
