//! Blocks of a cluster among themselves (sm_90): launched together, neighbours in x. An address of [`mapa`] names another block's shared
//! memory, and goes to functions that have `cluster` in their names alone.
//!
//! # Safety
//! Of an access: that block runs, and does not end before it has happened; what others write is ordered by the cluster's barrier. Of that
//! barrier: whole warps execute it, and each arrives before it waits; warps that have ended are not waited for. Its release is a fence of
//! the whole device in what `ptxas` makes of it: not on a path that something waits for.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;
#[cfg(not(target_arch = "nvptx64"))]
use tilewright_simt as simt;

use super::intrinsic;

intrinsic! {
    /// `mapa.shared::cluster.u32`: what `address` of the own block is in the block of `rank`.
    pub fn mapa(address: u32, rank: u32) -> u32 {
        let mapped: u32;
        asm!("mapa.shared::cluster.u32 {}, {}, {};", out(reg32) mapped, in(reg32) address, in(reg32) rank, options(nostack));
        mapped
    } else {
        simt::intrinsic::mapa(address, rank)
    }
}

intrinsic! {
    /// `barrier.cluster.arrive.release.aligned`: counts the warp, and releases what it has done and seen.
    pub fn cluster_arrive() {
        asm!("barrier.cluster.arrive.release.aligned;", options(nostack));
    } else {
        simt::intrinsic::cluster_arrive()
    }
}

intrinsic! {
    /// `barrier.cluster.wait.acquire.aligned`: until every warp of the cluster that has not ended has arrived as often as this one; sees
    /// what they released.
    pub fn cluster_wait() {
        asm!("barrier.cluster.wait.acquire.aligned;", options(nostack));
    } else {
        simt::intrinsic::cluster_wait()
    }
}

intrinsic! {
    /// `st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [address], value, [bar]` (PTX 8.1): stores into a block of the
    /// cluster and counts 16 bytes as landed at `bar`, an mbarrier of the same block. Whoever has waited there sees what was stored: no
    /// fence, which would wait for all that the thread has written.
    pub fn st_async_v4_b32(address: u32, value: [u32; 4], bar: u32) {
        asm!("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [{0}], {{{1}, {2}, {3}, {4}}}, [{5}];",
            in(reg32) address, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3], in(reg32) bar,
            options(nostack));
    } else {
        simt::intrinsic::st_async::<[u32; 4]>(address, value, bar)
    }
}
