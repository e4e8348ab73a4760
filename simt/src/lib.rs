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
//! orders them: a barrier that both reach; among the lanes of a warp `bar.warp.sync`, a shuffle or a vote (PTX promises order
//! of memory for the first alone, so this is lenient). `mma` and `ldmatrix` order nothing. Blocks of one
//! launch are never ordered, launches always are. Atomics don't order other accesses.
//!
//! A lane's `cp.async` arrives when that lane waits for its group, and is then that lane's write: others need a barrier. Until
//! then its 16 bytes of shared memory are nobody's to touch.
//!
//! # Limits
//!
//! Blocks run one after another, so a kernel whose blocks wait for each other never ends ([`Device::limit_steps`] ends it). A
//! lane that spins on memory within its block does let others run. The clocks, caches and throughput of a device aren't modelled.

mod barrier;
mod bulk;
mod bulk_store;
mod clock;
mod collective;
mod context;
mod descriptor;
mod device;
mod element;
mod fault;
mod global;
pub mod intrinsic;
mod matrix;
mod mbarrier;
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
