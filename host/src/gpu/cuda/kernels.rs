use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr::null_mut,
    sync::{Mutex, OnceLock},
};

use cust::sys::{CUfunction, CUmodule};
use tilewright_kernels::{
    abi::KernelSpec,
    module::{Parts, kernels_for},
};

use super::{api, lock, spread};
use crate::{Error, Result};

/// Dynamic shared memory that a block gets without asking, in bytes.
const DEFAULT_SHARED_BYTES: u32 = 48 << 10;
/// Room for what the compiler in the driver says of the PTX.
const LOG_BYTES: usize = 8 << 10;

/// The kernels of a device, each compiled by the driver when it is first asked for: all of them take it many seconds, those of a model few.
pub(super) struct Kernels {
    parts: Parts<'static>,
    kernels: HashMap<&'static str, Kernel>,
}

#[derive(Default)]
struct Kernel {
    loaded: OnceLock<Loaded>,
    /// Held while it is compiled, so that it is once; others are compiled meanwhile.
    loading: Mutex<()>,
}

/// A module of one kernel in the driver's hands.
struct Loaded {
    module: CUmodule,
    function: CUfunction,
}

// SAFETY: the handles name objects of the driver, which any thread with the context current may use.
unsafe impl Send for Loaded {}
// SAFETY: as above; nothing is changed after loading.
unsafe impl Sync for Loaded {}

impl Kernels {
    /// Those of a module for devices of that capability.
    pub(super) fn new(ptx: &'static str, compute_capability: (u32, u32)) -> Kernels {
        let kernels = kernels_for(compute_capability).map(|spec| (spec.name, Kernel::default())).collect();
        Kernels { parts: Parts::of(ptx), kernels }
    }

    /// Whether a kernel is compiled.
    pub(super) fn holds(&self, spec: &KernelSpec) -> bool {
        self.kernels.get(spec.name).is_some_and(|kernel| kernel.loaded.get().is_some())
    }

    /// The function of a kernel, compiled into the current context if it isn't yet. Then, the calling thread captures no stream.
    pub(super) fn function(&self, spec: &KernelSpec) -> Result<CUfunction> {
        let kernel = self.kernels.get(spec.name).ok_or_else(|| absent(spec))?;
        if let Some(loaded) = kernel.loaded.get() {
            return Ok(loaded.function);
        }
        let _alone = lock(&kernel.loading);
        match kernel.loaded.get() {
            Some(loaded) => Ok(loaded.function),
            None => {
                let ptx = self.parts.module_of(spec.name).ok_or_else(|| absent(spec))?;
                let loaded = Loaded::new(ptx, spec)?;
                Ok(kernel.loaded.get_or_init(|| loaded).function)
            }
        }
    }
}

fn absent(spec: &KernelSpec) -> Error {
    Error::Driver {
        call: "cuModuleGetFunction",
        code: "not in the module".into(),
        observed: Some(spec.name.into()),
    }
}

impl Loaded {
    fn new(ptx: String, spec: &KernelSpec) -> Result<Loaded> {
        let image = CString::new(ptx).map_err(|_| Error::Driver {
            call: "cuModuleLoadDataEx",
            code: "the PTX holds a NUL".into(),
            observed: Some(spec.name.into()),
        })?;
        let mut log = vec![0u8; LOG_BYTES];
        let names: [c_int; 2] = [api::JIT_ERROR_LOG, api::JIT_ERROR_LOG_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), (log.len() - 1) as *mut c_void];
        let mut loaded = Loaded { module: null_mut(), function: null_mut() };
        // SAFETY: the image ends in NUL; two options, of a buffer and one less than its size, so that it ends in NUL too.
        let code = unsafe {
            api::cuModuleLoadDataEx(
                &mut loaded.module,
                image.as_ptr().cast(),
                2,
                names.as_ptr(),
                values.as_mut_ptr(),
            )
        };
        api::check("cuModuleLoadDataEx", code, || {
            let said =
                CStr::from_bytes_until_nul(&log).map(|said| said.to_string_lossy()).unwrap_or_default();
            let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
            Some([spec.name].into_iter().chain(lines).collect::<Vec<_>>().join("; "))
        })?;
        loaded.look_up(spec)?;
        Ok(loaded)
    }

    fn look_up(&mut self, spec: &KernelSpec) -> Result<()> {
        let observed = || Some(spec.name.to_string());
        let symbol: Vec<u8> = spec.name.bytes().chain([0]).collect();
        // SAFETY: the module is loaded and the name ends in NUL.
        let code = unsafe {
            api::cuModuleGetFunction(&mut self.function, self.module, symbol.as_ptr().cast::<c_char>())
        };
        api::check("cuModuleGetFunction", code, observed)?;
        let most = spread::most_shared_bytes(spec);
        if most > DEFAULT_SHARED_BYTES {
            // SAFETY: a function of the module.
            let code = unsafe {
                api::cuFuncSetAttribute(self.function, api::MAX_DYNAMIC_SHARED_BYTES, most as c_int)
            };
            api::check("cuFuncSetAttribute", code, observed)?;
        }
        Ok(())
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if !self.module.is_null() {
            // SAFETY: loaded by this, and used by nothing after it. An error has nobody to go to.
            let _ = unsafe { api::cuModuleUnload(self.module) };
        }
    }
}
