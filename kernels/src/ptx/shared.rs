//! Loads and stores of shared memory. Lane by lane, no ordering beyond program order of the thread.
//!
//! # Safety
//! Every address must be aligned to the access and lie in memory the kernel may touch; what other threads write must be
//! ordered by a barrier.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;
#[cfg(not(target_arch = "nvptx64"))]
use tilewright_simt as simt;

use super::intrinsic;

#[cfg(target_arch = "nvptx64")]
core::arch::global_asm!(".extern .shared .align 1024 .b8 smem[];");

/// Address of the block's dynamic shared memory, 1024-byte aligned. `mov.u32 r, smem;`
#[inline(always)]
pub fn shared_base() -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let base: u32;
        // SAFETY: names a symbol's address.
        unsafe { asm!("mov.u32 {}, smem;", out(reg32) base, options(pure, nomem, nostack)) };
        base
    }
    #[cfg(not(target_arch = "nvptx64"))]
    simt::intrinsic::shared_base()
}

intrinsic! {
    /// `ld.shared.b16`.
    pub fn ld_shared_b16(address: u32) -> u16 {
        let value: u16;
        asm!("ld.shared.b16 {}, [{}];", out(reg16) value, in(reg32) address, options(nostack));
        value
    } else {
        simt::intrinsic::ld_shared::<u16>(address)
    }
}

intrinsic! {
    /// `ld.shared.b32`.
    pub fn ld_shared_b32(address: u32) -> u32 {
        let value: u32;
        asm!("ld.shared.b32 {}, [{}];", out(reg32) value, in(reg32) address, options(nostack));
        value
    } else {
        simt::intrinsic::ld_shared::<u32>(address)
    }
}

intrinsic! {
    /// `ld.shared.b64`.
    pub fn ld_shared_b64(address: u32) -> u64 {
        let value: u64;
        asm!("ld.shared.b64 {}, [{}];", out(reg64) value, in(reg32) address, options(nostack));
        value
    } else {
        simt::intrinsic::ld_shared::<u64>(address)
    }
}

intrinsic! {
    /// `ld.shared.v2.b32`.
    pub fn ld_shared_v2_b32(address: u32) -> [u32; 2] {
        let mut v = [0 as u32; 2];
        asm!("ld.shared.v2.b32 {{{0}, {1}}}, [{2}];", out(reg32) v[0], out(reg32) v[1], in(reg32) address, options(nostack));
        v
    } else {
        simt::intrinsic::ld_shared::<[u32; 2]>(address)
    }
}

intrinsic! {
    /// `ld.shared.v4.b32`.
    pub fn ld_shared_v4_b32(address: u32) -> [u32; 4] {
        let mut v = [0 as u32; 4];
        asm!("ld.shared.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}];", out(reg32) v[0], out(reg32) v[1], out(reg32) v[2], out(reg32) v[3], in(reg32) address, options(nostack));
        v
    } else {
        simt::intrinsic::ld_shared::<[u32; 4]>(address)
    }
}

intrinsic! {
    /// `@p ld.shared.v4.b32`: lanes whose `is_there` is false read nothing and keep `before`. What isn't read takes no time of the memory's.
    pub fn ld_shared_v4_b32_if(is_there: bool, address: u32, before: [u32; 4]) -> [u32; 4] {
        let mut v = before;
        asm!("{{ .reg .pred there; setp.ne.u32 there, {5}, 0; @there ld.shared.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}]; }}",
            inout(reg32) v[0], inout(reg32) v[1], inout(reg32) v[2], inout(reg32) v[3], in(reg32) address,
            in(reg32) u32::from(is_there), options(nostack));
        v
    } else {
        if is_there { simt::intrinsic::ld_shared::<[u32; 4]>(address) } else { before }
    }
}

intrinsic! {
    /// `st.shared.b16`.
    pub fn st_shared_b16(address: u32, value: u16) {
        asm!("st.shared.b16 [{}], {};", in(reg32) address, in(reg16) value, options(nostack));
    } else {
        simt::intrinsic::st_shared::<u16>(address, value)
    }
}

intrinsic! {
    /// `st.shared.b32`.
    pub fn st_shared_b32(address: u32, value: u32) {
        asm!("st.shared.b32 [{}], {};", in(reg32) address, in(reg32) value, options(nostack));
    } else {
        simt::intrinsic::st_shared::<u32>(address, value)
    }
}

intrinsic! {
    /// `st.shared.b64`.
    pub fn st_shared_b64(address: u32, value: u64) {
        asm!("st.shared.b64 [{}], {};", in(reg32) address, in(reg64) value, options(nostack));
    } else {
        simt::intrinsic::st_shared::<u64>(address, value)
    }
}

intrinsic! {
    /// `st.shared.v2.b32`.
    pub fn st_shared_v2_b32(address: u32, value: [u32; 2]) {
        asm!("st.shared.v2.b32 [{0}], {{{1}, {2}}};", in(reg32) address, in(reg32) value[0], in(reg32) value[1], options(nostack));
    } else {
        simt::intrinsic::st_shared::<[u32; 2]>(address, value)
    }
}

intrinsic! {
    /// `st.shared.v4.b32`.
    pub fn st_shared_v4_b32(address: u32, value: [u32; 4]) {
        asm!("st.shared.v4.b32 [{0}], {{{1}, {2}, {3}, {4}}};", in(reg32) address, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3], options(nostack));
    } else {
        simt::intrinsic::st_shared::<[u32; 4]>(address, value)
    }
}

intrinsic! {
    /// `atom.shared.add.u32`: the value before the addition. Relaxed.
    pub fn atom_add_shared_u32(address: u32, value: u32) -> u32 {
        let before: u32;
        asm!("atom.shared.add.u32 {}, [{}], {};", out(reg32) before, in(reg32) address, in(reg32) value, options(nostack));
        before
    } else {
        simt::intrinsic::atom_add_shared::<u32>(address, value)
    }
}

intrinsic! {
    /// `atom.shared.add.u64`: the value before the addition. Relaxed.
    pub fn atom_add_shared_u64(address: u32, value: u64) -> u64 {
        let before: u64;
        asm!("atom.shared.add.u64 {}, [{}], {};", out(reg64) before, in(reg32) address, in(reg64) value, options(nostack));
        before
    } else {
        simt::intrinsic::atom_add_shared::<u64>(address, value)
    }
}
