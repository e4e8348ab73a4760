//! What kernels call: one function per instruction, each executed by the calling lane of the running launch.
//!
//! Addresses of global memory are those that [`crate::Device::alloc`] answers; addresses of shared memory count from
//! [`shared_base`]. Every function ends the launch with a [`crate::Fault`] that names the caller's line if the access isn't
//! allowed, and panics outside a launch.

mod asynchronous;
mod cluster;
mod warpgroup;

use std::array;
use std::panic::Location;

pub use asynchronous::*;
pub use cluster::*;
pub use warpgroup::*;

use crate::context::{Context, Space, context, step, stop, suspend, wait_in};
use crate::element::{AtomicElement, Element};
use crate::lane::{Collective, Copy};
use crate::matrix::Factors;
use crate::requests::Kind;
use crate::shared::BASE;
use crate::site::Site;

/// Loads from global memory.
#[inline]
#[track_caller]
pub fn ld_global<T: Element>(address: u64) -> T {
    let c = step();
    let site = c.sites.encode(Location::caller());
    c.requests.log(c.current, Kind::GlobalLoad, address, T::BYTES, site);
    match c.global.load(address, &c.clocks, site) {
        Ok(value) => value,
        Err(problem) => stop(c.access_fault(problem, Space::Global(address), "global load", T::BYTES, site)),
    }
}

/// Stores to global memory.
#[inline]
#[track_caller]
pub fn st_global<T: Element>(address: u64, value: T) {
    let c = step();
    let site = c.sites.encode(Location::caller());
    c.requests.log(c.current, Kind::GlobalStore, address, T::BYTES, site);
    if let Err(problem) = c.global.store(address, value, &c.clocks, site) {
        stop(c.access_fault(problem, Space::Global(address), "global store", T::BYTES, site));
    }
}

/// Loads from shared memory.
#[inline]
#[track_caller]
pub fn ld_shared<T: Element>(address: u32) -> T {
    let c = step();
    let site = c.sites.encode(Location::caller());
    c.requests.log(c.current, Kind::Shared, u64::from(address), T::BYTES, site);
    match c.shared.load(address, &c.clocks, site) {
        Ok(value) => value,
        Err(problem) => stop(c.access_fault(problem, Space::Shared(address), "shared load", T::BYTES, site)),
    }
}

/// Stores to shared memory.
#[inline]
#[track_caller]
pub fn st_shared<T: Element>(address: u32, value: T) {
    let c = step();
    let site = c.sites.encode(Location::caller());
    c.requests.log(c.current, Kind::Shared, u64::from(address), T::BYTES, site);
    if let Err(problem) = c.shared.store(address, value, &c.clocks, site) {
        stop(c.access_fault(problem, Space::Shared(address), "shared store", T::BYTES, site));
    }
}

/// Adds to global memory; the value before. Atomics don't race with one another, and order other accesses only where
/// [`fence_acq_rel_gpu`] of the lane goes before (then it releases) or after (then it acquires).
#[track_caller]
pub fn atom_add_global<T: AtomicElement>(address: u64, value: T) -> T {
    let c = step();
    let site = c.sites.encode(Location::caller());
    add_global(c, address, value, site)
}

/// `atom.add.acq_rel.gpu.global.u32`: the value before. Releases what the lane has done and seen, and acquires what was
/// released at the address before.
#[track_caller]
pub fn atom_add_acq_rel_gpu_u32(address: u64, value: u32) -> u32 {
    let c = step();
    let site = c.sites.encode(Location::caller());
    c.fence();
    let before = add_global(c, address, value, site);
    c.fence();
    before
}

/// `st.relaxed.gpu.global.u32`: doesn't race with atomics and polls.
#[track_caller]
pub fn st_relaxed_gpu_u32(address: u64, value: u32) {
    store_relaxed(address, [value]);
}

/// `st.relaxed.gpu.global.v4.u32`: as [`st_relaxed_gpu_u32`], each word by itself.
#[track_caller]
pub fn st_relaxed_gpu_v4_u32(address: u64, values: [u32; 4]) {
    store_relaxed(address, values);
}

#[track_caller]
fn store_relaxed<const N: usize>(address: u64, values: [u32; N]) {
    let c = step();
    let site = c.sites.encode(Location::caller());
    c.requests.log(c.current, Kind::GlobalStore, address, N * 4, site);
    for (i, value) in values.into_iter().enumerate() {
        let word = address + i as u64 * 4;
        match c.global.update(word, |_: u32| value, &c.clocks, site) {
            Ok(_) => c.relaxed_store_at(word),
            Err(problem) => stop(c.access_fault(problem, Space::Global(word), "global store", 4, site)),
        }
    }
    c.wake_pollers(address);
}

/// `ld.relaxed.gpu.global.v4.u32` of a lane that waits for values: others go on before it looks again.
#[track_caller]
pub fn poll_relaxed_gpu_v4_u32(address: u64) -> [u32; 4] {
    let c = step();
    let site = c.sites.encode(Location::caller());
    c.requests.log(c.current, Kind::GlobalLoad, address, 16, site);
    poll(address, site, Context::relaxed_load_at)
}

/// `ld.acquire.gpu.global.u32` of a lane that waits for a value: others go on before it looks again.
#[track_caller]
pub fn poll_acquire_gpu_u32(address: u64) -> u32 {
    let c = step();
    let site = c.sites.encode(Location::caller());
    c.requests.log(c.current, Kind::GlobalLoad, address, 4, site);
    let [value] = poll(address, site, Context::acquire_at);
    value
}

/// What is at `address`, once it isn't what the lane found there before, or nobody can go on; others go on before the lane does. `seen` takes note of each word.
fn poll<const N: usize>(address: u64, site: Site, seen: impl Fn(&mut Context, u64)) -> [u32; N] {
    let look = || {
        let c = context();
        array::from_fn(|i| {
            let word = address + i as u64 * 4;
            // Ordered among atomics, with which it doesn't race; the word stays what it is.
            let value = match c.global.update(word, |value: u32| value, &c.clocks, site) {
                Ok(value) => value,
                Err(problem) => stop(c.access_fault(problem, Space::Global(word), "global load", 4, site)),
            };
            seen(c, word);
            value
        })
    };
    let mut values = look();
    if context().sleeps_at(address, &values, site) {
        suspend();
        values = look();
    }
    let c = context();
    c.found(address, &values);
    c.polls += 1;
    c.last_poll = (c.current, site);
    suspend();
    values
}

/// `fence.acq_rel.gpu`: turns the lane's later relaxed atomics into releases of what it has done and seen by now, and its
/// earlier ones into acquires.
#[track_caller]
pub fn fence_acq_rel_gpu() {
    step().fence();
}

fn add_global<T: AtomicElement>(c: &mut Context, address: u64, value: T, site: Site) -> T {
    c.requests.log(c.current, Kind::GlobalStore, address, T::BYTES, site);
    match c.global.update(address, |before: T| before.plus(value), &c.clocks, site) {
        Ok(before) => {
            c.atomic_at(address);
            c.wake_pollers(address);
            before
        }
        Err(problem) => {
            stop(c.access_fault(problem, Space::Global(address), "global atomic", T::BYTES, site))
        }
    }
}

/// Adds to shared memory; the value before. Atomics don't race with one another.
#[track_caller]
pub fn atom_add_shared<T: AtomicElement>(address: u32, value: T) -> T {
    let c = step();
    let site = c.sites.encode(Location::caller());
    c.requests.log(c.current, Kind::Shared, u64::from(address), T::BYTES, site);
    match c.shared.update(address, |before: T| before.plus(value), &c.clocks, site) {
        Ok(before) => before,
        Err(problem) => {
            stop(c.access_fault(problem, Space::Shared(address), "shared atomic", T::BYTES, site))
        }
    }
}

/// Address of the block's dynamic shared memory.
pub fn shared_base() -> u32 {
    BASE
}

/// `%tid.x`
#[inline]
pub fn tid_x() -> u32 {
    let c = context();
    (c.current - c.first_thread) as u32
}

/// `%ntid.x`
#[inline]
pub fn ntid_x() -> u32 {
    context().threads
}

/// `%ctaid.x`
#[inline]
pub fn ctaid_x() -> u32 {
    context().block[0]
}

/// `%ctaid.y`
#[inline]
pub fn ctaid_y() -> u32 {
    context().block[1]
}

/// `%ctaid.z`
#[inline]
pub fn ctaid_z() -> u32 {
    context().block[2]
}

/// `%nctaid.x`
#[inline]
pub fn nctaid_x() -> u32 {
    context().grid[0]
}

/// `%nctaid.y`
#[inline]
pub fn nctaid_y() -> u32 {
    context().grid[1]
}

/// `%nctaid.z`
#[inline]
pub fn nctaid_z() -> u32 {
    context().grid[2]
}

/// `bar.sync 0`: every thread of the block, all on the same line.
#[track_caller]
pub fn bar_sync() {
    let threads = context().threads;
    wait_in(
        Collective::Barrier { id: 0, threads, whole_block: true, arrive: false },
        &[],
        Location::caller(),
    );
}

/// `bar.sync id, threads`: whole warps, `threads` threads in all.
#[track_caller]
pub fn bar_sync_named(id: u32, threads: u32) {
    wait_in(Collective::Barrier { id, threads, whole_block: false, arrive: false }, &[], Location::caller());
}

/// `bar.warp.sync` of all lanes of the warp: orders memory among them, as no other instruction does in which they meet.
#[track_caller]
pub fn bar_warp_sync() {
    wait_in(Collective::WarpSync, &[], Location::caller());
}

/// `shfl.sync.bfly.b32`: the value of lane `lane ^ mask`.
#[track_caller]
pub fn shfl_bfly(value: u32, mask: u32) -> u32 {
    wait_in(Collective::ShflBfly, &[value, mask], Location::caller())[0]
}

/// `shfl.sync.idx.b32`: the value of lane `lane`.
#[track_caller]
pub fn shfl_idx(value: u32, lane: u32) -> u32 {
    wait_in(Collective::ShflIdx, &[value, lane], Location::caller())[0]
}

/// `shfl.sync.down.b32`: the value of lane `lane + delta`, one's own past the end.
#[track_caller]
pub fn shfl_down(value: u32, delta: u32) -> u32 {
    wait_in(Collective::ShflDown, &[value, delta], Location::caller())[0]
}

/// `shfl.sync.up.b32`: the value of lane `lane - delta`, one's own before the start.
#[track_caller]
pub fn shfl_up(value: u32, delta: u32) -> u32 {
    wait_in(Collective::ShflUp, &[value, delta], Location::caller())[0]
}

/// `vote.sync.ballot.b32`: bit `i` is lane `i`'s predicate.
#[track_caller]
pub fn ballot(predicate: bool) -> u32 {
    wait_in(Collective::Ballot, &[u32::from(predicate)], Location::caller())[0]
}

/// `cp.async.cg.shared.global`: starts a copy of 16 bytes, the first `source_bytes` from `global`, zeros after.
///
/// The destination is in flight, out of bounds for everyone, until the calling lane waits for the group.
#[track_caller]
pub fn cp_async_16(shared: u32, global: u64, source_bytes: u32) {
    let c = step();
    let site = c.sites.encode(Location::caller());
    c.report.async_copies += 1;
    let bytes = source_bytes.min(16) as usize;
    c.requests.log(c.current, Kind::Shared, u64::from(shared), 16, site);
    if bytes > 0 {
        c.requests.log(c.current, Kind::GlobalLoad, global, bytes, site);
    }
    let loaded = c.global.load_for_copy(global, bytes, &c.clocks, site);
    let (data, init) = match loaded {
        Ok(loaded) => loaded,
        Err(problem) => stop(c.access_fault(problem, Space::Global(global), "copy from global", 16, site)),
    };
    let busy = (c.current - c.first_thread) as u16 + 1;
    if let Err(problem) = c.shared.begin_copy(shared, &c.clocks, site, busy) {
        stop(c.access_fault(problem, Space::Shared(shared), "copy to shared", 16, site));
    }
    let lane = &mut c.lanes[c.current];
    lane.copies.push_back(Copy { shared, data, init, group: lane.groups, number: lane.copies_issued, site });
    lane.copies_issued += 1;
}

/// `cp.async.commit_group`: closes the group of the copies issued since the last one.
#[inline]
#[track_caller]
pub fn cp_async_commit() {
    let c = step();
    c.lanes[c.current].groups += 1;
}

/// `cp.async.wait_group`: lets copies arrive until at most the `newest` newest groups are in flight.
#[track_caller]
pub fn cp_async_wait(newest: u32) {
    let c = step();
    let current = c.current;
    while let Some(&copy) = c.lanes[current].copies.front() {
        if copy.group + newest >= c.lanes[current].groups {
            break;
        }
        c.lanes[current].copies.pop_front();
        if let Err(fault) = c.land_copy(copy) {
            stop(fault);
        }
    }
}

/// `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32` of a warp: `a * b + c`, each lane's part.
///
/// Products are exact and summed in f64 in ascending order of k; `c` is added and the result rounded once to f32.
#[track_caller]
pub fn mma_m16n8k16_bf16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
    mma(Factors::Float(WgmmaType::Bf16), a, b, c.map(f32::to_bits)).map(f32::from_bits)
}

/// `mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32` of a warp, as [`mma_m16n8k16_bf16`].
#[track_caller]
pub fn mma_m16n8k16_f16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
    mma(Factors::Float(WgmmaType::F16), a, b, c.map(f32::to_bits)).map(f32::from_bits)
}

/// `mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32` of a warp: `a * b + c` modulo 2^32, each lane's part.
///
/// With `g = lane / 4` and `t = lane % 4`, byte `j` of register `i` of A is row `g + 8 (i % 2)`, column `4 t + 16 (i / 2) + j`;
/// of B, row `4 t + 16 i + j`, column `g`; C and D lie as in `m16n8k16`.
#[track_caller]
pub fn mma_m16n8k32_s8(a: [u32; 4], b: [u32; 2], c: [i32; 4]) -> [i32; 4] {
    mma(Factors::S8, a, b, c.map(|c| c as u32)).map(|d| d as i32)
}

#[track_caller]
fn mma(factors: Factors, a: [u32; 4], b: [u32; 2], c: [u32; 4]) -> [u32; 4] {
    let operands = [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]];
    wait_in(Collective::Mma(factors), &operands, Location::caller())
}

/// `ldmatrix.sync.aligned.m8n8.x4.shared.b16` of a warp: lane `8i + r` gives the address of row `r` of matrix `i`.
#[track_caller]
pub fn ldmatrix_x4(address: u32) -> [u32; 4] {
    wait_in(Collective::Ldmatrix { trans: false }, &[address], Location::caller())
}

/// As [`ldmatrix_x4`], each matrix transposed.
#[track_caller]
pub fn ldmatrix_x4_trans(address: u32) -> [u32; 4] {
    wait_in(Collective::Ldmatrix { trans: true }, &[address], Location::caller())
}

/// `stmatrix.sync.aligned.m8n8.x4.trans.shared.b16` of a warp: lane `8i + r` gives the address of row `r` of matrix `i`, whose column `r` the lanes have.
#[track_caller]
pub fn stmatrix_x4_trans(address: u32, [a, b, c, d]: [u32; 4]) {
    wait_in(Collective::StmatrixTrans, &[address, a, b, c, d], Location::caller());
}
