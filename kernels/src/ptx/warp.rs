//! Exchanges among the 32 lanes of a warp.
//!
//! # Safety
//! Every lane of the warp must execute the same call.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;
#[cfg(not(target_arch = "nvptx64"))]
use tilewright_simt as simt;

use super::intrinsic;

macro_rules! shuffle {
    ($name:ident, $mode:literal, $clamp:literal, $doc:literal) => {
        intrinsic! {
            #[doc = $doc]
            pub fn $name(value: u32, operand: u32) -> u32 {
                let out: u32;
                asm!(concat!("shfl.sync.", $mode, ".b32 {}, {}, {}, ", $clamp, ", 0xffffffff;"),
                    out(reg32) out, in(reg32) value, in(reg32) operand, options(nostack));
                out
            } else {
                simt::intrinsic::$name(value, operand)
            }
        }
    };
}

shuffle!(shfl_bfly, "bfly", "31", "`shfl.sync.bfly.b32`: the value of lane `lane ^ operand`.");
shuffle!(shfl_idx, "idx", "31", "`shfl.sync.idx.b32`: the value of lane `operand`.");
shuffle!(
    shfl_down,
    "down",
    "31",
    "`shfl.sync.down.b32`: the value of lane `lane + operand`, one's own past the end."
);
shuffle!(
    shfl_up,
    "up",
    "0",
    "`shfl.sync.up.b32`: the value of lane `lane - operand`, one's own before the start."
);

intrinsic! {
    /// `vote.sync.ballot.b32`: bit `i` is lane `i`'s predicate.
    pub fn ballot(predicate: bool) -> u32 {
        let out: u32;
        asm!("{{ .reg .pred p; setp.ne.u32 p, {1}, 0; vote.sync.ballot.b32 {0}, p, 0xffffffff; }}",
            out(reg32) out, in(reg32) predicate as u32, options(nostack));
        out
    } else {
        simt::intrinsic::ballot(predicate)
    }
}

/// [`shfl_bfly`] of an `f32`.
///
/// # Safety
/// Every lane of the warp must execute the same call.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub unsafe fn shfl_bfly_f32(value: f32, mask: u32) -> f32 {
    // SAFETY: the caller's promise.
    f32::from_bits(unsafe { shfl_bfly(value.to_bits(), mask) })
}
