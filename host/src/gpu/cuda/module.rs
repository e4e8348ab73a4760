use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr::null_mut,
};

use cust::sys::{CUfunction, CUmodule};
use tilewright_kernels::{abi::KernelSpec, module::kernels_for};

use super::api;
use crate::{Error, Result};

/// Dynamic shared memory that a block gets without asking, in bytes.
const DEFAULT_SHARED_BYTES: u32 = 48 << 10;
/// Room for what the compiler in the driver says of the PTX.
const LOG_BYTES: usize = 8 << 10;

/// The kernels, loaded and compiled by the driver.
pub(super) struct Module {
    handle: CUmodule,
    functions: HashMap<&'static str, CUfunction>,
}

// SAFETY: the handles name objects of the driver, which any thread with the context current may use.
unsafe impl Send for Module {}
// SAFETY: as above; nothing is changed after loading.
unsafe impl Sync for Module {}

impl Module {
    /// Loads the PTX made for a device of that capability into the current context and looks all its kernels up.
    pub(super) fn load(ptx: &str, compute_capability: (u32, u32)) -> Result<Module> {
        let image = CString::new(ptx).map_err(|_| Error::Driver {
            call: "cuModuleLoadDataEx",
            code: "the PTX holds a NUL".into(),
            observed: None,
        })?;
        let mut log = vec![0u8; LOG_BYTES];
        let names: [c_int; 2] = [api::JIT_ERROR_LOG, api::JIT_ERROR_LOG_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), (log.len() - 1) as *mut c_void];
        let mut module = Module { handle: null_mut(), functions: HashMap::new() };
        // SAFETY: the image ends in NUL; two options, of a buffer and one less than its size, so that it ends in NUL too.
        let code = unsafe {
            api::cuModuleLoadDataEx(
                &mut module.handle,
                image.as_ptr().cast(),
                2,
                names.as_ptr(),
                values.as_mut_ptr(),
            )
        };
        api::check("cuModuleLoadDataEx", code, || {
            let said =
                CStr::from_bytes_until_nul(&log).map(|said| said.to_string_lossy()).unwrap_or_default();
            let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            (!lines.is_empty()).then(|| lines.join("; "))
        })?;
        for spec in kernels_for(compute_capability) {
            let function = module.look_up(spec)?;
            module.functions.insert(spec.name, function);
        }
        Ok(module)
    }

    fn look_up(&self, spec: &KernelSpec) -> Result<CUfunction> {
        let observed = || Some(spec.name.to_string());
        let symbol: Vec<u8> = spec.name.bytes().chain([0]).collect();
        let mut function = null_mut();
        // SAFETY: the module is loaded and the name ends in NUL.
        let code =
            unsafe { api::cuModuleGetFunction(&mut function, self.handle, symbol.as_ptr().cast::<c_char>()) };
        api::check("cuModuleGetFunction", code, observed)?;
        if spec.shared_bytes > DEFAULT_SHARED_BYTES {
            // SAFETY: a function of the module.
            let code = unsafe {
                api::cuFuncSetAttribute(function, api::MAX_DYNAMIC_SHARED_BYTES, spec.shared_bytes as c_int)
            };
            api::check("cuFuncSetAttribute", code, observed)?;
        }
        Ok(function)
    }

    /// The function of a kernel.
    pub(super) fn function(&self, spec: &KernelSpec) -> Result<CUfunction> {
        self.functions.get(spec.name).copied().ok_or_else(|| Error::Driver {
            call: "cuModuleGetFunction",
            code: "not in the module".into(),
            observed: Some(spec.name.into()),
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: loaded by this module, and used by nothing after it. An error has nobody to go to.
            let _ = unsafe { api::cuModuleUnload(self.handle) };
        }
    }
}
