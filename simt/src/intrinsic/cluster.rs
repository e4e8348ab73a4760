//! Blocks of a cluster among themselves. An address of [`mapa`] is of another block's shared memory and goes to functions that
//! have `cluster` in their names alone; those take addresses of the own block too.

use std::panic::Location;

use super::asynchronous::act;
use crate::context::{Space, context, wait_in};
use crate::element::{AtomicElement, Element};
use crate::lane::Collective;

/// `%cluster_ctarank`: 0 without clusters.
#[inline]
pub fn cluster_ctarank() -> u32 {
    context().rank as u32
}

/// `%cluster_nctarank`: 1 without clusters.
#[inline]
pub fn cluster_nctarank() -> u32 {
    context().cluster as u32
}

/// `mapa.shared::cluster.u32`: what `address` of the own block is in the block of `rank`.
#[track_caller]
pub fn mapa(address: u32, rank: u32) -> u32 {
    act(|c, site| c.map_address(address, rank, site))
}

/// `barrier.cluster.arrive.release.aligned` of a warp: counts it, and releases what it has done and seen.
#[track_caller]
pub fn cluster_arrive() {
    wait_in(Collective::ClusterArrive { relaxed: false }, &[], Location::caller());
}

/// `barrier.cluster.arrive.relaxed.aligned` of a warp: counts it, and orders nothing.
#[track_caller]
pub fn cluster_arrive_relaxed() {
    wait_in(Collective::ClusterArrive { relaxed: true }, &[], Location::caller());
}

/// `barrier.cluster.wait.acquire.aligned` of a warp: until all warps of the cluster that have not ended have arrived as often as
/// this one; sees what they released.
#[track_caller]
pub fn cluster_wait() {
    wait_in(Collective::ClusterWait, &[], Location::caller());
}

/// `ld.shared::cluster`.
#[track_caller]
pub fn ld_shared_cluster<T: Element>(address: u32) -> T {
    act(|c, site| {
        c.at_mapped(address, "load", site, |c, own| {
            let loaded = c.shared.load(own, &c.clocks, site);
            let space = Space::Shared(own);
            loaded.map_err(|problem| c.access_fault(problem, space, "shared load", T::BYTES, site))
        })
    })
}

/// `st.shared::cluster`.
#[track_caller]
pub fn st_shared_cluster<T: Element>(address: u32, value: T) {
    act(|c, site| {
        c.at_mapped(address, "store", site, |c, own| {
            let stored = c.shared.store(own, value, &c.clocks, site);
            let space = Space::Shared(own);
            stored.map_err(|problem| c.access_fault(problem, space, "shared store", T::BYTES, site))
        })
    });
}

/// `atom.shared::cluster.add`: the value before.
#[track_caller]
pub fn atom_add_shared_cluster<T: AtomicElement>(address: u32, value: T) -> T {
    act(|c, site| {
        c.at_mapped(address, "atomic", site, |c, own| {
            let updated = c.shared.update(own, |before: T| before.plus(value), &c.clocks, site);
            let space = Space::Shared(own);
            updated.map_err(|problem| c.access_fault(problem, space, "shared atomic", T::BYTES, site))
        })
    })
}

/// `mbarrier.arrive.release.cluster.shared::cluster.b64`: one arrival at an mbarrier of any block of the cluster.
#[track_caller]
pub fn mbarrier_arrive_cluster(bar: u32) {
    act(|c, site| {
        c.at_mapped(bar, "arrival", site, |c, own| {
            let index = c.use_mbarrier(own, "mbarrier.arrive", site)?;
            c.arrive_at(index, site)
        })
    });
}
