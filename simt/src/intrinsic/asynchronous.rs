//! Hopper's asynchronous instructions: mbarriers, bulk copies, and the fences that go with them.

use std::panic::Location;

use crate::context::{Context, context, step, stop, suspend, wait_in};
use crate::fault::Fault;
use crate::lane::{Collective, State};
use crate::site::Site;
use crate::tensor_map::TensorMap;

/// Takes a step and does something that may be a fault.
#[inline]
#[track_caller]
pub(super) fn act<T>(action: impl FnOnce(&mut Context, Site) -> Result<T, Fault>) -> T {
    let c = step();
    let site = c.sites.encode(Location::caller());
    match action(c, site) {
        Ok(value) => value,
        Err(fault) => stop(fault),
    }
}

/// `mbarrier.init.shared.b64`: phases of `count` arrivals each. Others need a barrier to see it, and the asynchronous proxy
/// [`fence_mbarrier_init`] or [`fence_proxy_async`] of the calling lane.
#[track_caller]
pub fn mbarrier_init(bar: u32, count: u32) {
    act(|c, site| c.init_mbarrier(bar, count, site));
}

/// `mbarrier.arrive.shared.b64`: one arrival, which releases what the lane has done.
#[track_caller]
pub fn mbarrier_arrive(bar: u32) {
    act(|c, site| {
        let index = c.use_mbarrier(bar, "mbarrier.arrive", site)?;
        c.arrive_at(index, site)
    });
}

/// `mbarrier.arrive.expect_tx.shared.b64`: lets the phase wait for `bytes` more, then arrives once.
#[track_caller]
pub fn mbarrier_arrive_expect_tx(bar: u32, bytes: u32) {
    act(|c, site| {
        let index = c.use_mbarrier(bar, "mbarrier.arrive.expect_tx", site)?;
        c.expect_bytes(index, bytes, site)?;
        c.arrive_at(index, site)
    });
}

/// `mbarrier.try_wait.parity.shared.b64`: whether the phase of this parity has completed; if so, the lane sees what was
/// released to it.
///
/// The lane waits until that is so. It answers false when nothing else could run meanwhile (once: a second time is a
/// deadlock), and in a random order now and then, as a device does when its time limit is over.
#[track_caller]
pub fn mbarrier_try_wait_parity(bar: u32, parity: u32) -> bool {
    let passed = act(|c, site| {
        c.report.mbarrier_waits += 1;
        if parity > 1 {
            return Err(
                c.operand_fault(site, format!("mbarrier.try_wait for parity {parity}: expected 0 or 1"))
            );
        }
        let index = c.use_mbarrier(bar, "mbarrier.try_wait", site)?;
        if c.mbarriers[index].passed(parity) {
            c.acquire_mbarrier(index);
            return Ok(None);
        }
        let current = c.current;
        if c.random.as_mut().is_some_and(|random| random.below(4) == 0) {
            c.lanes[current].result[0] = 0;
            return Ok(Some(index));
        }
        c.states[current] = State::Blocked;
        c.mbarriers[index].waiters.push(current);
        let lane = &mut c.lanes[current];
        lane.waits_for = (index, parity);
        lane.site = site;
        Ok(Some(index))
    });
    let Some(index) = passed else { return true };
    suspend();
    let c = context();
    let passed = c.lanes[c.current].result[0] != 0;
    if passed {
        c.acquire_mbarrier(index);
    }
    passed
}

/// `fence.mbarrier_init.release.cluster`: makes the mbarriers that the lane initialised visible to the asynchronous proxy.
#[track_caller]
pub fn fence_mbarrier_init() {
    act(|c, _| {
        c.fence_mbarriers();
        Ok(())
    });
}

/// `fence.proxy.async.shared::cta`: lets bulk copies and `wgmma` that are ordered after it see what the lane stored before.
#[track_caller]
pub fn fence_proxy_async() {
    act(|c, _| {
        c.shared.fence_proxy(c.current);
        Ok(())
    });
}

/// `bar.arrive id, threads`: counts towards [`super::bar_sync_named`] of the same numbers and doesn't wait. Whole warps.
#[track_caller]
pub fn bar_arrive_named(id: u32, threads: u32) {
    let collective = Collective::Barrier { id, threads, whole_block: false, arrive: true };
    wait_in(collective, &[], Location::caller());
}

/// `setmaxnreg.inc` or `.dec.sync.aligned.u32` of a warpgroup. `registers` is a multiple of 8 from 24 to 256.
#[track_caller]
pub fn setmaxnreg(registers: u32, increase: bool) {
    wait_in(Collective::SetMaxRegisters, &[registers, u32::from(increase)], Location::caller());
}

/// `elect.sync` of a whole warp: true in lane 0. Orders nothing.
#[track_caller]
pub fn elect() -> bool {
    wait_in(Collective::Elect, &[], Location::caller())[0] != 0
}

/// `prefetch.tensormap`: does nothing but check that there is one.
#[track_caller]
pub fn prefetch_tensor_map(map: &TensorMap) {
    act(|c, site| c.check_tensor_map(map, site));
}

/// `cp.async.bulk.tensor.{D}d.shared::cta.global.tile.mbarrier::complete_tx::bytes`: starts the copy of a box, zeros where it
/// lies outside the tensor. `shared` is a multiple of 128 bytes.
///
/// The destination is in flight, out of bounds for everyone, until the box has landed and counts on `bar`. That happens late:
/// in the deterministic order when a lane waits at `bar` and nothing else can run.
#[track_caller]
pub fn bulk_tensor_load<const D: usize>(shared: u32, map: &TensorMap, coords: [i32; D], bar: u32) {
    act(|c, site| c.load_tensor(shared, map, &coords, bar, site));
}

/// `cp.async.bulk.tensor.{D}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster`: as
/// [`bulk_tensor_load`] into every block of the cluster whose rank's bit is set in `ranks`, to the address that `shared` is in
/// it, where `bar` of that block is told.
#[track_caller]
pub fn bulk_tensor_load_multicast<const D: usize>(
    shared: u32,
    map: &TensorMap,
    coords: [i32; D],
    bar: u32,
    ranks: u16,
) {
    act(|c, site| c.load_tensor_multicast(shared, map, &coords, bar, ranks, site));
}

/// `cp.async.bulk.tensor.{D}d.global.shared::cta.tile.bulk_group`: starts to store a box; what lies outside the tensor isn't
/// written. The source may not be written, nor the target read, before [`bulk_wait_read`] and [`bulk_wait`].
#[track_caller]
pub fn bulk_tensor_store<const D: usize>(map: &TensorMap, coords: [i32; D], shared: u32) {
    act(|c, site| c.store_tensor(map, &coords, shared, site));
}

/// `cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes`: as [`bulk_tensor_load`] of `bytes` in a row, all multiples
/// of 16.
#[track_caller]
pub fn bulk_load(shared: u32, global: u64, bytes: u32, bar: u32) {
    act(|c, site| c.load_bulk(shared, global, bytes, bar, site));
}

/// `cp.async.bulk.prefetch.L2.global`: does nothing but check that there are `bytes` in a row, a multiple of 16, and count them.
#[track_caller]
pub fn bulk_prefetch_l2(global: u64, bytes: u32) {
    act(|c, site| c.prefetch_bulk(global, bytes, site));
}

/// `cp.async.bulk.global.shared::cta.bulk_group`: as [`bulk_tensor_store`] of `bytes` in a row, all multiples of 16.
#[track_caller]
pub fn bulk_store(global: u64, shared: u32, bytes: u32) {
    act(|c, site| c.store_bulk(global, shared, bytes, site));
}

/// `cp.async.bulk.commit_group`: closes the group of the bulk stores that the lane issued since the last one.
#[track_caller]
pub fn bulk_commit() {
    act(|c, _| {
        c.commit_stores();
        Ok(())
    });
}

/// `cp.async.bulk.wait_group`: until at most the `newest` newest groups are incomplete. The lane sees what the others wrote.
#[track_caller]
pub fn bulk_wait(newest: u32) {
    act(|c, _| {
        c.wait_for_stores(newest, false);
        Ok(())
    });
}

/// `cp.async.bulk.wait_group.read`: until all but the `newest` newest groups have read their sources.
#[track_caller]
pub fn bulk_wait_read(newest: u32) {
    act(|c, _| {
        c.wait_for_stores(newest, true);
        Ok(())
    });
}

/// `cp.async.mbarrier.arrive.noinc.shared.b64`: arrives once the `cp.async` that the lane has issued so far have landed.
#[track_caller]
pub fn mbarrier_arrive_cp_async(bar: u32) {
    act(|c, site| c.arrive_after_copies(bar, site));
}

/// `griddepcontrol.wait`: what earlier launches did is ordered before what the lane does from here on, and before what it releases.
#[track_caller]
pub fn griddepcontrol_wait() {
    act(|c, _| {
        c.clocks.wait_for_launches();
        Ok(())
    });
}

/// `griddepcontrol.launch_dependents`: does nothing.
#[track_caller]
pub fn griddepcontrol_launch_dependents() {
    act(|_, _| Ok(()));
}
