//! Loads and stores of global memory. Lane by lane, no ordering beyond program order of the thread.
//!
//! # Safety
//! Every address must be aligned to the access and lie in memory the kernel may touch; what other threads write must be
//! ordered by a barrier.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;
#[cfg(not(target_arch = "nvptx64"))]
use tilewright_simt as simt;

use super::intrinsic;

intrinsic! {
    /// `ld.global.b16`.
    pub fn ld_global_b16(address: u64) -> u16 {
        let value: u16;
        asm!("ld.global.b16 {}, [{}];", out(reg16) value, in(reg64) address, options(nostack));
        value
    } else {
        simt::intrinsic::ld_global::<u16>(address)
    }
}

intrinsic! {
    /// `ld.global.b32`.
    pub fn ld_global_b32(address: u64) -> u32 {
        let value: u32;
        asm!("ld.global.b32 {}, [{}];", out(reg32) value, in(reg64) address, options(nostack));
        value
    } else {
        simt::intrinsic::ld_global::<u32>(address)
    }
}

intrinsic! {
    /// `ld.global.b64`.
    pub fn ld_global_b64(address: u64) -> u64 {
        let value: u64;
        asm!("ld.global.b64 {}, [{}];", out(reg64) value, in(reg64) address, options(nostack));
        value
    } else {
        simt::intrinsic::ld_global::<u64>(address)
    }
}

intrinsic! {
    /// `ld.global.v2.b32`.
    pub fn ld_global_v2_b32(address: u64) -> [u32; 2] {
        let mut v = [0 as u32; 2];
        asm!("ld.global.v2.b32 {{{0}, {1}}}, [{2}];", out(reg32) v[0], out(reg32) v[1], in(reg64) address, options(nostack));
        v
    } else {
        simt::intrinsic::ld_global::<[u32; 2]>(address)
    }
}

intrinsic! {
    /// `ld.global.v4.b32`.
    pub fn ld_global_v4_b32(address: u64) -> [u32; 4] {
        let mut v = [0 as u32; 4];
        asm!("ld.global.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}];", out(reg32) v[0], out(reg32) v[1], out(reg32) v[2], out(reg32) v[3], in(reg64) address, options(nostack));
        v
    } else {
        simt::intrinsic::ld_global::<[u32; 4]>(address)
    }
}

intrinsic! {
    /// `ld.global.nc.b16`: through the read-only cache; the memory must not be written during the launch.
    pub fn ld_global_nc_b16(address: u64) -> u16 {
        let value: u16;
        asm!("ld.global.nc.b16 {}, [{}];", out(reg16) value, in(reg64) address, options(nostack));
        value
    } else {
        simt::intrinsic::ld_global::<u16>(address)
    }
}

intrinsic! {
    /// `ld.global.nc.b32`: through the read-only cache; the memory must not be written during the launch.
    pub fn ld_global_nc_b32(address: u64) -> u32 {
        let value: u32;
        asm!("ld.global.nc.b32 {}, [{}];", out(reg32) value, in(reg64) address, options(nostack));
        value
    } else {
        simt::intrinsic::ld_global::<u32>(address)
    }
}

intrinsic! {
    /// `ld.global.nc.b64`: through the read-only cache; the memory must not be written during the launch.
    pub fn ld_global_nc_b64(address: u64) -> u64 {
        let value: u64;
        asm!("ld.global.nc.b64 {}, [{}];", out(reg64) value, in(reg64) address, options(nostack));
        value
    } else {
        simt::intrinsic::ld_global::<u64>(address)
    }
}

intrinsic! {
    /// `ld.global.nc.v2.b32`: through the read-only cache; the memory must not be written during the launch.
    pub fn ld_global_nc_v2_b32(address: u64) -> [u32; 2] {
        let mut v = [0 as u32; 2];
        asm!("ld.global.nc.v2.b32 {{{0}, {1}}}, [{2}];", out(reg32) v[0], out(reg32) v[1], in(reg64) address, options(nostack));
        v
    } else {
        simt::intrinsic::ld_global::<[u32; 2]>(address)
    }
}

intrinsic! {
    /// `ld.global.nc.v4.b32`: through the read-only cache; the memory must not be written during the launch.
    pub fn ld_global_nc_v4_b32(address: u64) -> [u32; 4] {
        let mut v = [0 as u32; 4];
        asm!("ld.global.nc.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}];", out(reg32) v[0], out(reg32) v[1], out(reg32) v[2], out(reg32) v[3], in(reg64) address, options(nostack));
        v
    } else {
        simt::intrinsic::ld_global::<[u32; 4]>(address)
    }
}

intrinsic! {
    /// `st.global.b16`.
    pub fn st_global_b16(address: u64, value: u16) {
        asm!("st.global.b16 [{}], {};", in(reg64) address, in(reg16) value, options(nostack));
    } else {
        simt::intrinsic::st_global::<u16>(address, value)
    }
}

intrinsic! {
    /// `st.global.b32`.
    pub fn st_global_b32(address: u64, value: u32) {
        asm!("st.global.b32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack));
    } else {
        simt::intrinsic::st_global::<u32>(address, value)
    }
}

intrinsic! {
    /// `@p ld.global.b32`: lanes whose `is_there` is false read nothing and have 0. No branch, behind which lanes might go separate ways.
    pub fn ld_global_b32_if(is_there: bool, address: u64) -> u32 {
        let mut v = 0;
        asm!("{{ .reg .pred there; setp.ne.u32 there, {2}, 0; @there ld.global.b32 {0}, [{1}]; }}",
            inout(reg32) v, in(reg64) address, in(reg32) u32::from(is_there), options(nostack));
        v
    } else {
        if is_there { simt::intrinsic::ld_global::<u32>(address) } else { 0 }
    }
}

intrinsic! {
    /// `@p st.global.b32`: lanes whose `is_there` is false write nothing.
    pub fn st_global_b32_if(is_there: bool, address: u64, value: u32) {
        asm!("{{ .reg .pred there; setp.ne.u32 there, {2}, 0; @there st.global.b32 [{0}], {1}; }}",
            in(reg64) address, in(reg32) value, in(reg32) u32::from(is_there), options(nostack));
    } else {
        if is_there { simt::intrinsic::st_global::<u32>(address, value) }
    }
}

intrinsic! {
    /// `st.global.b64`.
    pub fn st_global_b64(address: u64, value: u64) {
        asm!("st.global.b64 [{}], {};", in(reg64) address, in(reg64) value, options(nostack));
    } else {
        simt::intrinsic::st_global::<u64>(address, value)
    }
}

intrinsic! {
    /// `st.global.v2.b32`.
    pub fn st_global_v2_b32(address: u64, value: [u32; 2]) {
        asm!("st.global.v2.b32 [{0}], {{{1}, {2}}};", in(reg64) address, in(reg32) value[0], in(reg32) value[1], options(nostack));
    } else {
        simt::intrinsic::st_global::<[u32; 2]>(address, value)
    }
}

intrinsic! {
    /// `st.global.v4.b32`.
    pub fn st_global_v4_b32(address: u64, value: [u32; 4]) {
        asm!("st.global.v4.b32 [{0}], {{{1}, {2}, {3}, {4}}};", in(reg64) address, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3], options(nostack));
    } else {
        simt::intrinsic::st_global::<[u32; 4]>(address, value)
    }
}

intrinsic! {
    /// `atom.global.add.u32`: the value before the addition. Relaxed.
    pub fn atom_add_global_u32(address: u64, value: u32) -> u32 {
        let before: u32;
        asm!("atom.global.add.u32 {}, [{}], {};", out(reg32) before, in(reg64) address, in(reg32) value, options(nostack));
        before
    } else {
        simt::intrinsic::atom_add_global::<u32>(address, value)
    }
}

intrinsic! {
    /// `atom.global.inc.u32` up to 2^31 - 1: the value before; fewer than that are counted. Relaxed. An addition of all lanes that are
    /// there is made one by the assembler, with a vote before and a shuffle after it, which waits for the answer at once.
    pub fn atom_count_global_u32(address: u64) -> u32 {
        let before: u32;
        asm!("atom.global.inc.u32 {}, [{}], 0x7fffffff;", out(reg32) before, in(reg64) address, options(nostack));
        before
    } else {
        simt::intrinsic::atom_add_global::<u32>(address, 1)
    }
}

intrinsic! {
    /// `atom.global.add.u64`: the value before the addition. Relaxed.
    pub fn atom_add_global_u64(address: u64, value: u64) -> u64 {
        let before: u64;
        asm!("atom.global.add.u64 {}, [{}], {};", out(reg64) before, in(reg64) address, in(reg64) value, options(nostack));
        before
    } else {
        simt::intrinsic::atom_add_global::<u64>(address, value)
    }
}
