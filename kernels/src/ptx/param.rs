//! The kernel's own parameters, by address.

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
pub(crate) use param_address;
