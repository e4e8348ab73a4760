//! The copy engine: tiles of tensors between global and shared memory, one thread issuing (sm_90).
//!
//! # Safety
//! Of a load: the box in shared memory, aligned to 128 bytes (1024 where swizzled), is free until the barrier has told that it
//! has landed; the barrier expects its bytes. Of a map: it describes memory that is there.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;
#[cfg(not(target_arch = "nvptx64"))]
use tilewright_simt as simt;

use super::intrinsic;

/// Where a tensor map is, for the copy engine: the address of one of the kernel's parameters.
#[derive(Clone, Copy)]
pub struct MapRef {
    /// A generic address on the device, the host's own under emulation.
    address: u64,
}

impl MapRef {
    /// # Safety
    /// `address` is that of a tensor map that outlives the kernel: in its parameter block.
    #[inline(always)]
    pub unsafe fn new(address: u64) -> Self {
        Self { address }
    }

    /// The map `index` maps further.
    #[inline(always)]
    pub fn at(self, index: u64) -> Self {
        Self { address: self.address + index * 128 }
    }

    #[cfg(not(target_arch = "nvptx64"))]
    fn map(&self) -> simt::TensorMap {
        // SAFETY: the promise of `new`; both are 128 bytes of any content.
        unsafe { (self.address as *const simt::TensorMap).read_unaligned() }
    }
}

intrinsic! {
    /// `prefetch.tensormap [map]`.
    pub fn prefetch_tensor_map(map: MapRef) {
        asm!("prefetch.tensormap [{}];", in(reg64) map.address, options(nostack))
    } else {
        simt::intrinsic::prefetch_tensor_map(&map.map())
    }
}

intrinsic! {
    /// `cp.async.bulk.tensor.2d`, as [`bulk_tensor_load_3d`].
    pub fn bulk_tensor_load_2d(shared: u32, map: MapRef, coords: [i32; 2], bar: u32) {
        asm!("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [{0}], [{1}, {{{2}, {3}}}], [{4}];",
            in(reg32) shared, in(reg64) map.address, in(reg32) coords[0], in(reg32) coords[1], in(reg32) bar, options(nostack))
    } else {
        simt::intrinsic::bulk_tensor_load::<2>(shared, &map.map(), coords, bar)
    }
}

intrinsic! {
    /// [`bulk_tensor_load_2d`] with `.L2::cache_hint`, of a policy.
    pub fn bulk_tensor_load_2d_by(shared: u32, map: MapRef, coords: [i32; 2], bar: u32, policy: u64) {
        asm!("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [{0}], [{1}, {{{2}, {3}}}], [{4}], {5};",
            in(reg32) shared, in(reg64) map.address, in(reg32) coords[0], in(reg32) coords[1], in(reg32) bar, in(reg64) policy,
            options(nostack))
    } else {
        {
            let _ = policy;
            simt::intrinsic::bulk_tensor_load::<2>(shared, &map.map(), coords, bar)
        }
    }
}

intrinsic! {
    /// `cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [shared], [map, coords], [bar]`: the box
    /// at `coords` (innermost first); elements outside the tensor become zeros.
    pub fn bulk_tensor_load_3d(shared: u32, map: MapRef, coords: [i32; 3], bar: u32) {
        asm!("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [{0}], [{1}, {{{2}, {3}, {4}}}], [{5}];",
            in(reg32) shared, in(reg64) map.address, in(reg32) coords[0], in(reg32) coords[1], in(reg32) coords[2],
            in(reg32) bar, options(nostack))
    } else {
        simt::intrinsic::bulk_tensor_load::<3>(shared, &map.map(), coords, bar)
    }
}

intrinsic! {
    /// `cp.async.bulk.tensor.4d`, as [`bulk_tensor_load_3d`].
    pub fn bulk_tensor_load_4d(shared: u32, map: MapRef, coords: [i32; 4], bar: u32) {
        asm!("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [{0}], [{1}, {{{2}, {3}, {4}, {5}}}], [{6}];",
            in(reg32) shared, in(reg64) map.address, in(reg32) coords[0], in(reg32) coords[1], in(reg32) coords[2],
            in(reg32) coords[3], in(reg32) bar, options(nostack))
    } else {
        simt::intrinsic::bulk_tensor_load::<4>(shared, &map.map(), coords, bar)
    }
}

intrinsic! {
    /// `fence.proxy.async.shared::cta`: what this thread wrote to shared memory by ordinary stores may be read by `wgmma` and the
    /// copy engine, once a barrier has told who issues them.
    pub fn fence_proxy_async() {
        asm!("fence.proxy.async.shared::cta;", options(nostack))
    } else {
        simt::intrinsic::fence_proxy_async()
    }
}

/// `createpolicy.fractional.L2::evict_first`: what is read by it leaves the L2 before anything else does. For what is read once. Pure.
#[inline(always)]
pub fn read_once() -> u64 {
    #[cfg(target_arch = "nvptx64")]
    {
        let policy: u64;
        // SAFETY: arithmetic on registers.
        unsafe {
            asm!("createpolicy.fractional.L2::evict_first.b64 {}, 1.0;", out(reg64) policy, options(pure, nomem, nostack));
        }
        policy
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        0
    }
}

intrinsic! {
    /// `cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [shared], [global], bytes, [bar], policy`: a run of
    /// bytes; both addresses and `bytes` are multiples of 16.
    pub fn bulk_load(shared: u32, global: u64, bytes: u32, bar: u32, policy: u64) {
        asm!("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [{0}], [{1}], {2}, [{3}], {4};",
            in(reg32) shared, in(reg64) global, in(reg32) bytes, in(reg32) bar, in(reg64) policy, options(nostack))
    } else {
        {
            let _ = policy;
            simt::intrinsic::bulk_load(shared, global, bytes, bar)
        }
    }
}

intrinsic! {
    /// `cp.async.bulk.prefetch.L2.global [global], bytes`: brings a run of bytes to the L2, some time; both are multiples of 16.
    pub fn bulk_prefetch_l2(global: u64, bytes: u32) {
        asm!("cp.async.bulk.prefetch.L2.global [{0}], {1};", in(reg64) global, in(reg32) bytes, options(nostack))
    } else {
        simt::intrinsic::bulk_prefetch_l2(global, bytes)
    }
}

intrinsic! {
    /// `cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [map, coords], [shared]`: what lies outside the tensor isn't
    /// written. What was stored there by ordinary stores went through [`fence_proxy_async`].
    pub fn bulk_tensor_store_2d(map: MapRef, coords: [i32; 2], shared: u32) {
        asm!("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [{0}, {{{1}, {2}}}], [{3}];",
            in(reg64) map.address, in(reg32) coords[0], in(reg32) coords[1], in(reg32) shared, options(nostack))
    } else {
        simt::intrinsic::bulk_tensor_store::<2>(&map.map(), coords, shared)
    }
}

intrinsic! {
    /// `cp.async.bulk.commit_group`: closes the group of this thread's stores since the last one.
    pub fn bulk_commit() {
        asm!("cp.async.bulk.commit_group;", options(nostack))
    } else {
        simt::intrinsic::bulk_commit()
    }
}

intrinsic! {
    /// `cp.async.bulk.wait_group.read 0`: until this thread's stores have read their sources, which may then be written again.
    pub fn bulk_wait_read() {
        asm!("cp.async.bulk.wait_group.read 0;", options(nostack))
    } else {
        simt::intrinsic::bulk_wait_read(0)
    }
}

intrinsic! {
    /// `cp.async.bulk.wait_group 0`: until this thread's stores are done.
    pub fn bulk_wait() {
        asm!("cp.async.bulk.wait_group 0;", options(nostack))
    } else {
        simt::intrinsic::bulk_wait(0)
    }
}

intrinsic! {
    /// `griddepcontrol.wait`: until the launch before this one, which may have let it start early, is done and its writes are there.
    pub fn grid_wait() {
        asm!("griddepcontrol.wait;", options(nostack))
    } else {
        simt::intrinsic::griddepcontrol_wait()
    }
}

intrinsic! {
    /// `griddepcontrol.launch_dependents`: once every block has said so, the next launch may start if it asked to.
    pub fn grid_launch_dependents() {
        asm!("griddepcontrol.launch_dependents;", options(nostack))
    } else {
        simt::intrinsic::griddepcontrol_launch_dependents()
    }
}
