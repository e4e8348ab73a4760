//! Order among the blocks of a launch: what one block writes and another reads.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;
#[cfg(not(target_arch = "nvptx64"))]
use tilewright_simt as simt;

use super::intrinsic;

intrinsic! {
    /// `ld.acquire.gpu.global.u32`, for a loop that waits: acquires what was released by the value that it finds.
    ///
    /// # Safety
    /// As of [`atom_add_acq_rel_gpu_u32`].
    pub fn poll_acquire_gpu_u32(address: u64) -> u32 {
        let value: u32;
        asm!("ld.acquire.gpu.global.u32 {}, [{}];", out(reg32) value, in(reg64) address, options(nostack));
        value
    } else {
        simt::intrinsic::poll_acquire_gpu_u32(address)
    }
}

intrinsic! {
    /// `ld.relaxed.gpu.global.v4.u32`, for a loop that waits until none of the words is what it was: each by itself is one that was stored, and says nothing of others.
    ///
    /// # Safety
    /// The address must be aligned to 16 bytes and lie in memory the kernel may touch, which others write by [`st_relaxed_gpu_u32`] and
    /// [`st_relaxed_gpu_v4_u32`] alone.
    pub fn poll_relaxed_gpu_v4_u32(address: u64) -> [u32; 4] {
        let mut v = [0 as u32; 4];
        asm!("ld.relaxed.gpu.global.v4.u32 {{{0}, {1}, {2}, {3}}}, [{4}];", out(reg32) v[0], out(reg32) v[1], out(reg32) v[2], out(reg32) v[3], in(reg64) address, options(nostack));
        v
    } else {
        simt::intrinsic::poll_relaxed_gpu_v4_u32(address)
    }
}

intrinsic! {
    /// `st.relaxed.gpu.global.u32`: a word that others wait for.
    ///
    /// # Safety
    /// The address must be aligned to 4 bytes and lie in memory the kernel may touch.
    pub fn st_relaxed_gpu_u32(address: u64, value: u32) {
        asm!("st.relaxed.gpu.global.u32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack));
    } else {
        simt::intrinsic::st_relaxed_gpu_u32(address, value)
    }
}

intrinsic! {
    /// `st.relaxed.gpu.global.v4.u32`: words that others wait for, each of which is there by itself.
    ///
    /// # Safety
    /// The address must be aligned to 16 bytes and lie in memory the kernel may touch.
    pub fn st_relaxed_gpu_v4_u32(address: u64, value: [u32; 4]) {
        asm!("st.relaxed.gpu.global.v4.u32 [{0}], {{{1}, {2}, {3}, {4}}};", in(reg64) address, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3], options(nostack));
    } else {
        simt::intrinsic::st_relaxed_gpu_v4_u32(address, value)
    }
}

intrinsic! {
    /// `atom.acq_rel.gpu.global.add.u32` (sm_70): the value before the addition. Releases what the thread has written and seen
    /// (through barriers: what its block has) to whoever acquires by the same word, and acquires what they released.
    ///
    /// # Safety
    /// The address must be aligned to 4 bytes and lie in memory the kernel may touch.
    pub fn atom_add_acq_rel_gpu_u32(address: u64, value: u32) -> u32 {
        let before: u32;
        asm!("atom.acq_rel.gpu.global.add.u32 {}, [{}], {};", out(reg32) before, in(reg64) address, in(reg32) value, options(nostack));
        before
    } else {
        simt::intrinsic::atom_add_acq_rel_gpu_u32(address, value)
    }
}
