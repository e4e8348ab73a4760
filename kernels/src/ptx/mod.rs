//! One function per instruction. The only home of `asm!`.
//!
//! Each function has two bodies: the instruction on `nvptx64`, a call into the `simt` emulator on the host. Global memory is
//! named by `u64` addresses and shared memory by `u32` offsets into the block's dynamic shared memory window; device code never
//! dereferences a pointer, so the emulator sees every access.
//!
//! Host bodies are `#[track_caller]`, so that what the emulator reports names the kernel's line.

// What an instruction asks of its caller is the same within a file, and stands in its header.
#![allow(clippy::missing_safety_doc)]

mod async_copy;
mod bf16_pairs;
#[cfg(any(target_feature = "sm_90a", not(target_arch = "nvptx64")))]
mod bulk;
mod device_order;
mod global;
mod math;
#[cfg(any(target_feature = "sm_90a", not(target_arch = "nvptx64")))]
mod mbarrier;
mod mma;
#[cfg(any(target_feature = "sm_90a", not(target_arch = "nvptx64")))]
mod param;
mod shared;
mod sync;
mod thread;
mod warp;
#[cfg(any(target_feature = "sm_90a", not(target_arch = "nvptx64")))]
mod wgmma;

pub use async_copy::*;
pub use bf16_pairs::*;
#[cfg(any(target_feature = "sm_90a", not(target_arch = "nvptx64")))]
pub use bulk::*;
pub use device_order::*;
pub use global::*;
pub use math::*;
#[cfg(any(target_feature = "sm_90a", not(target_arch = "nvptx64")))]
pub use mbarrier::*;
pub use mma::*;
#[cfg(any(target_feature = "sm_90a", not(target_arch = "nvptx64")))]
pub(crate) use param::param_address;
pub use shared::*;
pub use sync::*;
pub use thread::*;
pub use warp::*;
#[cfg(any(target_feature = "sm_90a", not(target_arch = "nvptx64")))]
pub use wgmma::*;

/// Declares an intrinsic: its PTX body for the device, its emulator call for the host.
macro_rules! intrinsic {
    ($(#[$doc:meta])* pub fn $name:ident $(<const $g:ident : $gt:ty>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? { $($ptx:tt)* } else { $($emu:tt)* }) => {
        $(#[$doc])*
        #[inline(always)]
        #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
        pub unsafe fn $name $(<const $g: $gt>)? ($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "nvptx64")]
            // SAFETY: the instruction's operands are values; what it asks of addresses and of the other lanes is the caller's
            // promise, stated in this function's documentation.
            unsafe { $($ptx)* }
            #[cfg(not(target_arch = "nvptx64"))]
            { $($emu)* }
        }
    };
}
pub(crate) use intrinsic;
