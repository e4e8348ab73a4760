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

/// `value`, in a way that keeps the compiler from computing what follows from it earlier than here: out of a loop, say, where it
/// would hold registers that the loop's body needs more.
#[inline(always)]
pub fn here(value: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let out: u32;
        // SAFETY: copies a register. Not `pure`, so it stays where it is.
        unsafe {
            core::arch::asm!("mov.b32 {}, {};", out(reg32) out, in(reg32) value, options(nomem, nostack))
        };
        out
    }
    #[cfg(not(target_arch = "nvptx64"))]
    value
}

/// As [`here`], of an address.
#[inline(always)]
pub fn address_here(value: u64) -> u64 {
    #[cfg(target_arch = "nvptx64")]
    {
        let out: u64;
        // SAFETY: as in `here`.
        unsafe {
            core::arch::asm!("mov.b64 {}, {};", out(reg64) out, in(reg64) value, options(nomem, nostack))
        };
        out
    }
    #[cfg(not(target_arch = "nvptx64"))]
    value
}
