//! Device code of tilewright: kernels in Rust, the parameters they are launched with and the PTX made of them.
//!
//! The same source has three lives. For `nvptx64` it is compiled to PTX ([`ptx`] holds the only assembly). On the host it
//! offers [`abi`], which launchers read. On the host with the feature `emulation` the device code is compiled too, each
//! intrinsic answered by the `simt` crate, so that a kernel can be run and checked without a GPU.
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, stdarch_nvptx, asm_experimental_arch))]

pub mod abi;

#[cfg(any(target_arch = "nvptx64", feature = "emulation"))]
pub mod ptx;

#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: `trap` ends the grid; nothing runs after it.
    unsafe { core::arch::nvptx::trap() }
}
