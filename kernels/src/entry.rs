/// Declares a kernel entry: `#[no_mangle] extern "ptx-kernel"` on the device, a plain function for the emulator on the host.
///
/// # Safety
/// Of every entry: the parameters describe memory of the shapes their block documents, aligned to 16 bytes, and the launch
/// has the grid that the block documents and the threads and shared memory of the kernel's `KernelSpec`.
macro_rules! kernel {
    ($(#[$doc:meta])* pub fn $name:ident($p:ident: $params:ty) $body:block) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The parameters must describe memory of the documented shapes, and the launch must be the one the spec asks for.
        #[cfg(target_arch = "nvptx64")]
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $name($p: $params) {
            // SAFETY: the launcher's promise about parameters, grid, threads and shared memory.
            unsafe { $body }
        }

        $(#[$doc])*
        ///
        /// # Safety
        /// The parameters must describe memory of the documented shapes, and the launch must be the one the spec asks for.
        #[cfg(not(target_arch = "nvptx64"))]
        pub unsafe fn $name($p: $params) {
            // SAFETY: as above; the emulator checks every access as well.
            unsafe { $body }
        }
    };
}
pub(crate) use kernel;

/// The generic address of an entry's parameter block `$p`, for what the hardware reads by address: tensor maps.
macro_rules! param_address {
    ($name:ident, $p:ident) => {{
        #[cfg(target_arch = "nvptx64")]
        {
            let address: u64;
            // Names the entry's own parameter, in whose (unsafe) body this stands.
            core::arch::asm!(
                concat!("{{ .reg .b64 param; mov.b64 param, ", stringify!($name), "_param_0; cvta.param.u64 {}, param; }}"),
                out(reg64) address,
                options(pure, nomem, nostack)
            );
            address
        }
        #[cfg(not(target_arch = "nvptx64"))]
        {
            (&raw const $p).addr() as u64
        }
    }};
}
#[cfg(any(target_feature = "sm_90a", not(target_arch = "nvptx64")))]
pub(crate) use param_address;
