//! The device's memory pool.

use std::{
    ffi::c_int,
    ptr::{from_mut, null_mut},
};

use cust::sys::{CUdevice, CUmemoryPool};

use super::api;
use crate::{Error, MemoryUse, Result};

/// The device's own pool, or the driver's code.
fn pool(device: CUdevice) -> Result<CUmemoryPool, u32> {
    let mut pool = null_mut();
    // SAFETY: writes the device's own pool, which lives as long as the device.
    match unsafe { api::cuDeviceGetDefaultMemPool(&mut pool, device) } {
        0 => Ok(pool),
        code => Err(code),
    }
}

/// Has the pool keep what is freed, so that the next step's allocations are free of system calls.
pub(super) fn keep_freed(device: CUdevice) -> Result<(), String> {
    let mut supported: c_int = 0;
    // SAFETY: writes one integer.
    let code = unsafe { api::cuDeviceGetAttribute(&mut supported, api::MEMORY_POOLS_SUPPORTED, device) };
    if code != 0 || supported == 0 {
        return Err(
            "the driver has no stream-ordered memory; install one of CUDA 11.2 or newer, or use the CPU"
                .into(),
        );
    }
    let mut threshold = u64::MAX;
    let code = match pool(device) {
        // SAFETY: reads a threshold of 64 bits.
        Ok(pool) => unsafe {
            api::cuMemPoolSetAttribute(pool, api::RELEASE_THRESHOLD, from_mut(&mut threshold).cast())
        },
        Err(code) => code,
    };
    if code == 0 { Ok(()) } else { Err(format!("its memory pool answered {}", api::name(code))) }
}

/// What is allocated of the pool; the most of it counts from here again.
pub(super) fn in_use(device: CUdevice) -> Result<MemoryUse> {
    let pool = pool(device).map_err(|code| Error::Driver {
        call: "cuDeviceGetDefaultMemPool",
        code: api::name(code),
        observed: None,
    })?;
    let read = |attribute| {
        let mut bytes = 0u64;
        // SAFETY: writes 64 bits.
        let code = unsafe { api::cuMemPoolGetAttribute(pool, attribute, from_mut(&mut bytes).cast()) };
        api::check("cuMemPoolGetAttribute", code, || None).map(|()| bytes as usize)
    };
    let (now, most) = (read(api::USED_BYTES)?, read(api::MOST_USED_BYTES)?);
    // SAFETY: reads 64 bits, of which 0 is the one value that is taken.
    let code = unsafe { api::cuMemPoolSetAttribute(pool, api::MOST_USED_BYTES, from_mut(&mut 0u64).cast()) };
    api::check("cuMemPoolSetAttribute", code, || None)?;
    Ok(MemoryUse { now, most })
}
