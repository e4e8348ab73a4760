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
