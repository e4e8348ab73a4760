//! Where a thread stands. All pure: no memory, no other lane.

macro_rules! special_register {
    ($(#[$doc:meta])* $name:ident, $text:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> u32 {
            #[cfg(target_arch = "nvptx64")]
            {
                let value: u32;
                // SAFETY: reads a special register.
                unsafe { core::arch::asm!(concat!("mov.u32 {}, ", $text, ";"), out(reg32) value, options(pure, nomem, nostack)) };
                value
            }
            #[cfg(not(target_arch = "nvptx64"))]
            simt::intrinsic::$name()
        }
    };
}
#[cfg(not(target_arch = "nvptx64"))]
use tilewright_simt as simt;

special_register!(/// `%tid.x`
    tid_x, "%tid.x");
special_register!(/// `%ntid.x`
    ntid_x, "%ntid.x");
special_register!(/// `%ctaid.x`
    ctaid_x, "%ctaid.x");
special_register!(/// `%ctaid.y`
    ctaid_y, "%ctaid.y");
special_register!(/// `%ctaid.z`
    ctaid_z, "%ctaid.z");
special_register!(/// `%nctaid.x`
    nctaid_x, "%nctaid.x");
special_register!(/// `%nctaid.y`
    nctaid_y, "%nctaid.y");

/// `%tid.x`, read anew: what follows from it is computed where it is used, rather than held in registers through a loop before.
#[inline(always)]
pub fn tid_x_anew() -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let value: u32;
        // SAFETY: reads a special register.
        unsafe { core::arch::asm!("mov.u32 {}, %tid.x;", out(reg32) value, options(nostack)) };
        value
    }
    #[cfg(not(target_arch = "nvptx64"))]
    simt::intrinsic::tid_x()
}

/// The lane within its warp (`tid.x % 32`; blocks are one-dimensional).
#[inline(always)]
pub fn lane() -> u32 {
    tid_x() & 31
}

/// The warp within its block.
#[inline(always)]
pub fn warp() -> u32 {
    tid_x() >> 5
}
